// Group norm and ReLU of [n, pixels, channels], float32; the result may be kept as bfloat16. Means and squared deviations
// are taken block by block from the block's own mean and merged (Chan, Golub and LeVeque, 1979): no difference of large
// squares, one pass over memory.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <omp.h>

#include "numbers.h"

namespace jrdp_fast {

const int kBlock = 32;  // pixels a block, which stay in the first-level cache

struct Moments {
    double count = 0, mean = 0, squares = 0;  // squares: sum of squared deviations from the mean

    void merge(double other_count, double other_mean, double other_squares) {
        if (other_count == 0) return;
        const double total = count + other_count, shift = other_mean - mean;
        squares += other_squares + shift * shift * count * other_count / total;
        mean += shift * other_count / total;
        count = total;
    }
};

// Moments of the groups of pixels [begin, end) of one image; the last three are work space for `channels` numbers.
inline void group_moments(const float* image, int begin, int end, int channels, int groups, Moments* moments,
                          float* sums, float* means, float* squares) {
    const int width = channels / groups;
    for (int block = begin; block < end; block += kBlock) {
        const int stop = std::min(end, block + kBlock);
        const float inverse = 1.f / ((stop - block) * width);
        std::fill(sums, sums + channels, 0.f);
        for (int p = block; p < stop; p++) {
            const float* x = image + (int64_t)p * channels;
            for (int c = 0; c < channels; c++) sums[c] += x[c];
        }
        for (int g = 0; g < groups; g++) {
            float sum = 0;
            for (int k = 0; k < width; k++) sum += sums[g * width + k];
            for (int k = 0; k < width; k++) means[g * width + k] = sum * inverse;
        }
        // The block's mean is rounded; `rest`, the mean that is left, corrects for it.
        float* rest = sums;
        std::fill(rest, rest + channels, 0.f);
        std::fill(squares, squares + channels, 0.f);
        for (int p = block; p < stop; p++) {
            const float* x = image + (int64_t)p * channels;
            for (int c = 0; c < channels; c++) {
                const float d = x[c] - means[c];
                rest[c] += d;
                squares[c] += d * d;
            }
        }
        for (int g = 0; g < groups; g++) {
            const double count = (double)(stop - block) * width;
            double left = 0, sum = 0;
            for (int k = 0; k < width; k++) {
                left += rest[g * width + k];
                sum += squares[g * width + k];
            }
            left /= count;
            moments[g].merge(count, means[g * width] + left, std::max(0.0, sum - left * left * count));
        }
    }
}

template <class Number>
inline void group_norm(const float* in, const float* weight, const float* bias, int n, int pixels, int channels,
                       int groups, double eps, bool relu, Number* out) {
    if ((int64_t)n * pixels == 0) return;
    // Few images: several parts of each, so that every thread has work.
    const int parts = n >= 8 ? 1 : std::max(1, std::min(16, pixels / 64)), width = channels / groups;
    std::vector<Moments> moments((size_t)n * parts * groups);
#pragma omp parallel
    {
        std::vector<float> first(channels), second(channels), third(channels), offset(channels);
#pragma omp for collapse(2)
        for (int i = 0; i < n; i++)
            for (int part = 0; part < parts; part++)
                group_moments(in + (int64_t)i * pixels * channels, (int)((int64_t)pixels * part / parts),
                              (int)((int64_t)pixels * (part + 1) / parts), channels, groups,
                              &moments[((size_t)i * parts + part) * groups], first.data(), second.data(), third.data());
        float *scale = first.data(), *shift = second.data(), *add = offset.data();
#pragma omp for collapse(2)
        for (int i = 0; i < n; i++)
            for (int part = 0; part < parts; part++) {
                for (int g = 0; g < groups; g++) {
                    Moments whole;
                    for (int k = 0; k < parts; k++) {
                        const Moments& m = moments[((size_t)i * parts + k) * groups + g];
                        whole.merge(m.count, m.mean, m.squares);
                    }
                    const double factor = 1.0 / std::sqrt(whole.squares / whole.count + eps);
                    for (int k = 0; k < width; k++) {
                        const int c = g * width + k;
                        scale[c] = (float)(weight[c] * factor);
                        shift[c] = (float)whole.mean;
                        // What rounding took from the mean: much, where the spread is small against it.
                        add[c] = (float)(bias[c] - (whole.mean - (double)shift[c]) * factor * weight[c]);
                    }
                }
                const int begin = (int)((int64_t)pixels * part / parts);
                const int end = (int)((int64_t)pixels * (part + 1) / parts);
                for (int p = begin; p < end; p++) {
                    const float* x = in + ((int64_t)i * pixels + p) * channels;
                    Number* y = out + ((int64_t)i * pixels + p) * channels;
                    // The mean comes off first: x * scale - mean * scale would lose what x - mean keeps.
                    if (relu)
                        for (int c = 0; c < channels; c++)
                            put(y + c, std::max(0.f, (x[c] - shift[c]) * scale[c] + add[c]));
                    else
                        for (int c = 0; c < channels; c++) put(y + c, (x[c] - shift[c]) * scale[c] + add[c]);
                }
            }
    }
}

}  // namespace jrdp_fast
