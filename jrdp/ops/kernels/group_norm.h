// Group normalisation on the CPU, with the ReLU behind it, forward and backward, one group of one image after the other. The sums that decide are in
// double, the variance is that of what is left when the mean is taken off, so a mean that is large against the spread does
// no harm.
#pragma once
#include <cmath>
#include <cstddef>

const int kNormLanes = 8;  // sums side by side, so that the compiler vectorises them as they are written

struct NormSums {
    double first, second;
};

// The sums of a[k] and of a[k] * (b[k] - shift).
static inline NormSums norm_sums(const float* a, const float* b, float shift, long count) {
    double first[kNormLanes] = {0}, second[kNormLanes] = {0};
    long k = 0;
    for (; k + kNormLanes <= count; k += kNormLanes)
        for (int lane = 0; lane < kNormLanes; lane++) {
            first[lane] += a[k + lane];
            second[lane] += (double)a[k + lane] * (double)(b[k + lane] - shift);
        }
    for (; k < count; k++) {
        first[0] += a[k];
        second[0] += (double)a[k] * (double)(b[k] - shift);
    }
    NormSums sums = {0, 0};
    for (int lane = 0; lane < kNormLanes; lane++) {
        sums.first += first[lane];
        sums.second += second[lane];
    }
    return sums;
}

static inline double norm_mean(const float* a, long count) {
    double lanes[kNormLanes] = {0}, sum = 0;
    long k = 0;
    for (; k + kNormLanes <= count; k += kNormLanes)
        for (int lane = 0; lane < kNormLanes; lane++) lanes[lane] += a[k + lane];
    for (; k < count; k++) lanes[0] += a[k];
    for (int lane = 0; lane < kNormLanes; lane++) sum += lanes[lane];
    return sum / count;
}

// The variance; `rest` becomes what rounding the mean to `shift` left over.
static inline double norm_variance(const float* a, float shift, long count, double& rest) {
    double first[kNormLanes] = {0}, second[kNormLanes] = {0}, sum = 0, squares = 0;
    long k = 0;
    for (; k + kNormLanes <= count; k += kNormLanes)
        for (int lane = 0; lane < kNormLanes; lane++) {
            const double d = (double)(a[k + lane] - shift);
            first[lane] += d;
            second[lane] += d * d;
        }
    for (; k < count; k++) {
        const double d = (double)(a[k] - shift);
        first[0] += d;
        second[0] += d * d;
    }
    for (int lane = 0; lane < kNormLanes; lane++) {
        sum += first[lane];
        squares += second[lane];
    }
    rest = sum / count;
    const double variance = squares / count - rest * rest;
    return variance > 0 ? variance : 0;
}

// x, y [N, C, area]; statistics [2, N, groups]: means, and 1 / sqrt(variance + eps).
static inline void group_norm_forward(const float* x, const float* weight, const float* bias, long images,
                                      long channels, long area, long groups, double eps, bool relu, float* y,
                                      float* statistics) {
    const long share = channels / groups, count = share * area;
    float *means = statistics, *scales = statistics + images * groups;
#pragma omp parallel for
    for (long item = 0; item < images * groups; item++) {
        const float* in = x + item * count;
        const float mean = (float)norm_mean(in, count);
        double left;
        const double variance = norm_variance(in, mean, count, left);
        const float rest = (float)left;
        const float scale = (float)(1.0 / std::sqrt(variance + eps));
        means[item] = mean;
        scales[item] = scale;
        for (long c = 0; c < share; c++) {
            const long channel = item % groups * share + c;
            const float factor = weight[channel] * scale, shift = bias[channel];
            const float* from = in + c * area;
            float* to = y + item * count + c * area;
            const float least = relu ? 0.0f : -HUGE_VALF;
            for (long k = 0; k < area; k++) {
                const float value = ((from[k] - mean) - rest) * factor + shift;
                to[k] = value < least ? least : value;  // what is not a number stays so
            }
        }
    }
}

// dx [N, C, area], dweight and dbias [C]; sums [2, N, C] is scratch. With a ReLU, dx first holds what comes through it.
static inline void group_norm_backward(const float* dy, const float* x, const float* y, const float* weight,
                                       const float* statistics, long images, long channels, long area, long groups,
                                       bool relu, float* dx, float* dweight, float* dbias, float* sums) {
    const long share = channels / groups, count = share * area;
    const float *means = statistics, *scales = statistics + images * groups;
    float *of_bias = sums, *of_weight = sums + images * channels;
#pragma omp parallel for
    for (long item = 0; item < images * groups; item++) {
        const long first = item * share;  // the group's first channel among those of all images
        const float mean = means[item], scale = scales[item];
        const float* own_weight = weight + item % groups * share;
        const float* through = relu ? dx : dy;
        if (relu)
            for (long k = first * area; k < (first + share) * area; k++) dx[k] = y[k] > 0 ? dy[k] : 0.0f;
        double plain = 0, along = 0;
        for (long c = 0; c < share; c++) {
            const NormSums s = norm_sums(through + (first + c) * area, x + (first + c) * area, mean, area);
            of_bias[first + c] = (float)s.first;
            of_weight[first + c] = (float)(s.second * scale);
            plain += own_weight[c] * s.first;
            along += own_weight[c] * s.second * scale;
        }
        // Not multiplied by `scale` once more here: where x spreads over more than 1e19 its square is no float.
        const float level = (float)(-scale * plain / count), slope = (float)(-scale * along / count);
        for (long c = 0; c < share; c++) {
            const float factor = scale * own_weight[c];
            const float *from = x + (first + c) * area, *given = through + (first + c) * area;
            float* to = dx + (first + c) * area;
            for (long k = 0; k < area; k++) to[k] = factor * given[k] + slope * ((from[k] - mean) * scale) + level;
        }
    }
#pragma omp parallel for
    for (long channel = 0; channel < channels; channel++) {
        double bias_sum = 0, weight_sum = 0;
        for (long image = 0; image < images; image++) {
            bias_sum += of_bias[image * channels + channel];
            weight_sum += of_weight[image * channels + channel];
        }
        dbias[channel] = (float)bias_sum;
        dweight[channel] = (float)weight_sum;
    }
}
