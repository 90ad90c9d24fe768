// Masks resized to their boxes and cut, as bits, in CUDA; `ops/pasting.py` is the definition. Only what lies inside box and
// picture is computed and leaves the device, one bit a pixel.
//
// Floor for 100 masks of 32x32 in a picture of 480x320, boxes of a quarter of it: 0.4 MB read, 0.5 MB written, 3.8 M pixels
// of about 20 flops: under 2 us beside the launch. Pixels of a warp lie in neighbouring columns or rows, the mask comes
// from the cache. Derived, not measured.
#pragma once
#include "cuda_launch.h"
#include "paste.h"

const int kPasteThreads = 128;
HOST_DEVICE float paste_value(const float* mask, int side, int row, int column) {
    const bool inside = row > 0 && row <= side && column > 0 && column <= side;
    return inside ? mask[(row - 1) * side + column - 1] : 0.0f;
}

// Block (x, mask): each thread 32 rows of a column, as the bits of a word; words of a column follow each other.
__global__ void __launch_bounds__(kPasteThreads)
    paste_kernel(const float* __restrict__ probabilities, const int* __restrict__ plan, int side, float threshold,
                 int* __restrict__ words) {
    const int* numbers = plan + (size_t)blockIdx.y * kPasteNumbers;
    const int row_low = numbers[0], row_length = numbers[1], first_row = numbers[2], rows = numbers[3];
    const int column_low = numbers[4], column_length = numbers[5], first_column = numbers[6], columns = numbers[7];
    const float* mask = probabilities + (size_t)blockIdx.y * side * side;
    const int words_a_column = paste_words(rows);
    const int word = blockIdx.x * kPasteThreads + threadIdx.x;
    if (word >= words_a_column * columns) return;
    const int column = word / words_a_column, start = word % words_a_column * 32;
    const PasteTap across = paste_tap(first_column + column, column_low, column_length, side + 2);
    unsigned int bits = 0;
    for (int k = 0; k < 32 && start + k < rows; k++) {
        const PasteTap down = paste_tap(first_row + start + k, row_low, row_length, side + 2);
        const float upper = paste_blend(paste_value(mask, side, down.near_line, across.near_line),
                                        paste_value(mask, side, down.near_line, across.far_line), across.share);
        const float lower = paste_blend(paste_value(mask, side, down.far_line, across.near_line),
                                        paste_value(mask, side, down.far_line, across.far_line), across.share);
        if (paste_blend(upper, lower, down.share) > threshold) bits |= 1u << k;
    }
    words[(size_t)numbers[8] + word] = (int)bits;
}

// probabilities [K, M, M], plan [K, 9]; words: as many as the plan needs, `most` of them for the largest mask.
static inline void paste_run(const float* probabilities, const int* plan, int masks, int side, double threshold,
                             int most, int* words) {
    CUDA_LAUNCH(paste_kernel, dim3((most + kPasteThreads - 1) / kPasteThreads, masks), kPasteThreads, probabilities,
                plan, side, (float)threshold, words);
}
