// Frozen batch norm, with the shortcut that is added and the ReLU behind it, in one launch each way; CUDA only.
//
// Floor, C2 at 320x480 ([1, 256, 80, 120], 9.8 MB): x and shortcut read, y written, 29 MB, 9 us on an H100. Backward reads dy and y
// and writes dx and the shortcut's gradient, 39 MB, 12 us. A channel's four numbers come from the cache. Derived, not measured.
#pragma once
#include "cuda_launch.h"

const int kFrozenThreads = 256;
const int kFrozenPixels = 4 * kFrozenThreads;  // of one channel, for one block

// Block: a piece of one channel of one image. y = [max(0,] x * scale + shift [+ add)].
__global__ void __launch_bounds__(kFrozenThreads)
    frozen_norm_forward_kernel(const float* __restrict__ x, const float* __restrict__ weight,
                               const float* __restrict__ bias, const float* __restrict__ mean,
                               const float* __restrict__ variance, const float* __restrict__ add, int channels, int area,
                               int pieces, bool relu, float* __restrict__ y) {
    const int plane = blockIdx.x / pieces, channel = plane % channels;
    const int begin = (blockIdx.x % pieces) * kFrozenPixels;
    const int end = begin + kFrozenPixels < area ? begin + kFrozenPixels : area;
    const float scale = weight[channel] / sqrtf(variance[channel]);
    const float shift = bias[channel] - mean[channel] * scale;
    const size_t first = (size_t)plane * area;
    for (int k = begin + threadIdx.x; k < end; k += kFrozenThreads) {
        float value = x[first + k] * scale + shift;
        if (add) value += add[first + k];
        y[first + k] = relu && value < 0 ? 0.0f : value;
    }
}

__global__ void __launch_bounds__(kFrozenThreads)
    frozen_norm_backward_kernel(const float* __restrict__ dy, const float* __restrict__ y,
                                const float* __restrict__ weight, const float* __restrict__ variance, int channels,
                                int area, int pieces, bool relu, float* __restrict__ dx, float* __restrict__ dadd) {
    const int plane = blockIdx.x / pieces, channel = plane % channels;
    const int begin = (blockIdx.x % pieces) * kFrozenPixels;
    const int end = begin + kFrozenPixels < area ? begin + kFrozenPixels : area;
    const float scale = weight[channel] / sqrtf(variance[channel]);
    const size_t first = (size_t)plane * area;
    for (int k = begin + threadIdx.x; k < end; k += kFrozenThreads) {
        const float given = relu && !(y[first + k] > 0) ? 0.0f : dy[first + k];
        dx[first + k] = given * scale;
        if (dadd) dadd[first + k] = given;
    }
}

static inline int frozen_norm_pieces(int area) { return (area + kFrozenPixels - 1) / kFrozenPixels; }

// x, y, add [N, C, area], the rest [C]; add may be null.
static inline void frozen_norm_forward(const float* x, const float* weight, const float* bias, const float* mean,
                                       const float* variance, const float* add, int images, int channels, int area,
                                       bool relu, float* y) {
    const int pieces = frozen_norm_pieces(area), blocks = images * channels * pieces;
    if (blocks == 0) return;
    CUDA_LAUNCH(frozen_norm_forward_kernel, blocks, kFrozenThreads, x, weight, bias, mean, variance, add, channels, area,
                pieces, relu, y);
}

// dadd, the gradient of what was added, may be null.
static inline void frozen_norm_backward(const float* dy, const float* y, const float* weight, const float* variance,
                                        int images, int channels, int area, bool relu, float* dx, float* dadd) {
    const int pieces = frozen_norm_pieces(area), blocks = images * channels * pieces;
    if (blocks == 0) return;
    CUDA_LAUNCH(frozen_norm_backward_kernel, blocks, kFrozenThreads, dy, y, weight, variance, channels, area, pieces,
                relu, dx, dadd);
}
