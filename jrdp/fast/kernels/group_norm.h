// Group norm and ReLU of [n, pixels, channels], float32; the result may be kept as bfloat16. Means and squared deviations
// are taken block by block from the block's own mean and merged (Chan, Golub and LeVeque, 1979): no difference of large
// squares, one pass over memory. What is infinite or not a number makes its whole group no numbers, as in the plain
// operator, so that prediction can refuse it; this needs -fno-finite-math-only.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <omp.h>

#include "numbers.h"

namespace jrdp_fast {

const int kBlock = 32;  // pixels a block, which stay in the first-level cache

// ReLU; what is not a number stays so. By a mask, as the compiler would make two branches of every test behind a choice.
inline float without_negative(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits &= (uint32_t)(value < 0.f) - 1;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

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

// Moments of `width` channels of `pixels` pixels, in double, for what is too large for the sums in float32: squares of
// numbers above 1e19. What is infinite or not a number makes them not a number.
inline void merge_in_double(const float* first, int pixels, int channels, int width, Moments& moments) {
    const double count = (double)pixels * width;
    double mean = 0, squares = 0;
    for (int p = 0; p < pixels; p++)
        for (int k = 0; k < width; k++) mean += first[(int64_t)p * channels + k];
    mean /= count;
    for (int p = 0; p < pixels; p++)
        for (int k = 0; k < width; k++) {
            const double d = first[(int64_t)p * channels + k] - mean;
            squares += d * d;
        }
    moments.merge(count, mean, squares);
}

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
            if (!std::isfinite(sum + left)) {
                merge_in_double(image + (int64_t)block * channels + g * width, stop - block, channels, width, moments[g]);
                continue;
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
                        for (int c = 0; c < channels; c++) {
                            const float value = (x[c] - shift[c]) * scale[c] + add[c];
                            put(y + c, without_negative(value));
                        }
                    else
                        for (int c = 0; c < channels; c++) put(y + c, (x[c] - shift[c]) * scale[c] + add[c]);
                }
            }
    }
}

}  // namespace jrdp_fast
