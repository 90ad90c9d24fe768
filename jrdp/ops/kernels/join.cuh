// Copies between a matrix and parts of its columns, in CUDA: all parts in one launch, one element of the matrix a thread,
// neighbours beside each other.
//
// Floor, the largest in the network at 320x480 (P4's five maps of 256 channels, 20x30 pixels, are 3 MB): each byte read and
// written once, 2 us on an H100; the launch takes as long, about 3 us. Derived, not measured.
#pragma once
#include "cuda_launch.h"
#include "join_parts.h"

template <bool to_whole, typename T>
__global__ void join_copy_kernel(JoinParts<T> parts, T* __restrict__ whole) {
    const long step = (long)gridDim.x * blockDim.x, count = parts.rows * parts.all;
    for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const long row = i / parts.all;
        long column = i - row * parts.all;
        // By comparing, not by counting up: an array among a kernel's arguments that is indexed by what only the thread knows
        // would be copied to every thread's stack.
        T* part = nullptr;
        long width = 0;
#pragma unroll
        for (int k = 0; k < kJoinParts; k++)
            if (k < parts.count && part == nullptr) {
                if (column < parts.width[k]) {
                    part = parts.part[k];
                    width = parts.width[k];
                } else
                    column -= parts.width[k];
            }
        part += row * width + column;
        if (to_whole) whole[i] = *part;
        else *part = whole[i];
    }
}

// to_whole: from the parts to the matrix, else back. The parts' widths sum up to the matrix's.
template <bool to_whole, typename T>
static void join_copy(const JoinParts<T>& parts, T* whole) {
    const long blocks = (parts.rows * parts.all + 255) / 256;
    if (blocks == 0) return;
    const int grid = (int)(blocks < 4096 ? blocks : 4096);
    auto join_copy_kernel_of_type = join_copy_kernel<to_whole, T>;
    CUDA_LAUNCH(join_copy_kernel_of_type, grid, 256, parts, whole);
}
