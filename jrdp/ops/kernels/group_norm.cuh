// Group normalisation in CUDA, with the ReLU behind it, forward and backward: one block for a group of an image, in one launch
// each.
//
// Floor, [100, 128, 32, 32], the largest in the network: forward reads x and writes y once, 105 MB, 31 us on an H100; a group
// (16 KB) is read three times, of which two hit L1. Backward reads x and dy, writes dx: 157 MB, 47 us. For a tower's P3
// ([1, 128, 40, 60]) it is the launch that takes long, 3 us; Jittor's own kernels would be seven. Derived, not measured.
#pragma once
#include "cuda_launch.h"

const int kNormThreads = 256;

// The sums of `a` and `b` over the block, in every thread; sums of floats in a tree, so that they do not depend on order.
__device__ __forceinline__ void norm_reduce(float& a, float& b, float (*shared)[2]) {
    const int thread = threadIdx.x;
    __syncthreads();
    shared[thread][0] = a;
    shared[thread][1] = b;
    __syncthreads();
    for (int half = kNormThreads / 2; half > 0; half /= 2) {
        if (thread < half) {
            shared[thread][0] += shared[thread + half][0];
            shared[thread][1] += shared[thread + half][1];
        }
        __syncthreads();
    }
    a = shared[0][0];
    b = shared[0][1];
}

__global__ void __launch_bounds__(kNormThreads)
    group_norm_forward_kernel(const float* __restrict__ x, const float* __restrict__ weight,
                              const float* __restrict__ bias, int area, int share, int groups, float eps,
                              bool relu, float* __restrict__ y, float* __restrict__ means, float* __restrict__ scales) {
    __shared__ float shared[kNormThreads][2];
    const int item = blockIdx.x, thread = threadIdx.x, count = share * area;
    const float* in = x + (size_t)item * count;
    float* out = y + (size_t)item * count;
    float sum = 0, unused = 0;
    for (int k = thread; k < count; k += kNormThreads) sum += in[k];
    norm_reduce(sum, unused, shared);
    const float mean = sum / count;
    // The variance of what is left when the mean is taken off, less what the mean's rounding left over.
    float rest = 0, squares = 0;
    for (int k = thread; k < count; k += kNormThreads) {
        const float d = in[k] - mean;
        rest += d;
        squares += d * d;
    }
    norm_reduce(rest, squares, shared);
    const float correction = rest / count, variance = squares / count - correction * correction;
    const float scale = 1.0f / sqrtf((variance > 0 ? variance : 0) + eps);
    if (thread == 0) {
        means[item] = mean + correction;
        scales[item] = scale;
    }
    for (int k = thread; k < count; k += kNormThreads) {
        const int channel = item % groups * share + k / area;
        const float value = (in[k] - mean - correction) * (weight[channel] * scale) + bias[channel];
        out[k] = relu && value < 0 ? 0.0f : value;
    }
}

__global__ void __launch_bounds__(kNormThreads)
    group_norm_backward_kernel(const float* __restrict__ dy, const float* __restrict__ x,
                               const float* __restrict__ y, const float* __restrict__ weight, const float* __restrict__ means,
                               const float* __restrict__ scales, int area, int share, int groups, bool relu,
                               float* __restrict__ dx, float* __restrict__ of_bias, float* __restrict__ of_weight) {
    __shared__ float shared[kNormThreads][2];
    const int item = blockIdx.x, thread = threadIdx.x, count = share * area, first = item * share;
    const float *in = x + (size_t)item * count, *raw = dy + (size_t)item * count, *out = y + (size_t)item * count;
    const float mean = means[item], scale = scales[item];
    auto given = [&](int k) { return relu && !(out[k] > 0) ? 0.0f : raw[k]; };
    const float* own_weight = weight + item % groups * share;
    float plain = 0, along = 0;
    for (int c = 0; c < share; c++) {
        float sum = 0, product = 0;
        for (int k = c * area + thread; k < (c + 1) * area; k += kNormThreads) {
            sum += given(k);
            product += given(k) * (in[k] - mean);
        }
        norm_reduce(sum, product, shared);
        if (thread == 0) {
            of_bias[first + c] = sum;
            of_weight[first + c] = product * scale;
        }
        plain += own_weight[c] * sum;
        along += own_weight[c] * product * scale;
    }
    const float level = -scale * plain / count, slope = -scale * scale * along / count;
    for (int k = thread; k < count; k += kNormThreads)
        dx[(size_t)item * count + k] = scale * own_weight[k / area] * given(k) + slope * (in[k] - mean) + level;
}

__global__ void __launch_bounds__(kNormThreads)
    group_norm_total_kernel(const float* __restrict__ of_bias, const float* __restrict__ of_weight, int images,
                            int channels, float* __restrict__ dweight, float* __restrict__ dbias) {
    const int channel = blockIdx.x * kNormThreads + threadIdx.x;
    if (channel >= channels) return;
    float bias_sum = 0, weight_sum = 0;
    for (int image = 0; image < images; image++) {
        bias_sum += of_bias[image * channels + channel];
        weight_sum += of_weight[image * channels + channel];
    }
    dbias[channel] = bias_sum;
    dweight[channel] = weight_sum;
}

// As in group_norm.h.
static inline void group_norm_forward(const float* x, const float* weight, const float* bias, int images, int channels,
                                      int area, int groups, double eps, bool relu, float* y, float* statistics) {
    const int items = images * groups;
    if (items * area == 0) return;
    CUDA_LAUNCH(group_norm_forward_kernel, items, kNormThreads, x, weight, bias, area, channels / groups, groups,
                (float)eps, relu, y, statistics, statistics + items);
}

static inline void group_norm_backward(const float* dy, const float* x, const float* y, const float* weight,
                                       const float* statistics, int images, int channels, int area, int groups,
                                       bool relu, float* dx, float* dweight, float* dbias, float* sums) {
    const int items = images * groups;
    float *of_bias = sums, *of_weight = sums + images * channels;
    if (items * area > 0)
        CUDA_LAUNCH(group_norm_backward_kernel, items, kNormThreads, dy, x, y, weight, statistics,
                    statistics + items, area, channels / groups, groups, relu, dx, of_bias, of_weight);
    CUDA_LAUNCH(group_norm_total_kernel, (channels + kNormThreads - 1) / kNormThreads, kNormThreads, of_bias, of_weight,
                images, channels, dweight, dbias);
}
