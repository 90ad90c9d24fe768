// Copies between a matrix and a part of its columns, in CUDA: one element a thread, neighbours beside each other.
//
// Floor, the largest in the network at 320x480 (P4's five maps of 256 channels, 20x30 pixels, are 3 MB): each byte read and
// written once, 2 us on an H100; the launches, one a part, take longer, about 3 us each. Derived, not measured.
#pragma once
#include "cuda_launch.h"

template <typename T>
__global__ void join_copy_kernel(T* __restrict__ to, long to_pitch, const T* __restrict__ from, long from_pitch,
                                 long width, long count) {
    const long step = (long)gridDim.x * blockDim.x;
    for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const long row = i / width, column = i - row * width;
        to[row * to_pitch + column] = from[row * from_pitch + column];
    }
}

template <typename T>
static void join_copy(T* to, long to_pitch, const T* from, long from_pitch, long width, long rows) {
    const long count = width * rows, blocks = (count + 255) / 256;
    if (count == 0) return;
    CUDA_LAUNCH(join_copy_kernel, (int)(blocks < 4096 ? blocks : 4096), 256, to, to_pitch, from, from_pitch, width,
                count);
}
