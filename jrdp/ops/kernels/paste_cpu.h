// Masks resized to their boxes and cut, as bits, on the CPU: for each column of the picture the mask's column there, with
// its border of zeros, and then that column resized, which the compiler vectorises.
#pragma once
#include <vector>
#include "paste.h"

static inline void paste_mask(const float* mask, const int* numbers, int side, float threshold, int* words) {
    const int row_low = numbers[0], row_length = numbers[1], first_row = numbers[2], rows = numbers[3];
    const int column_low = numbers[4], column_length = numbers[5], first_column = numbers[6], columns = numbers[7];
    const int size = side + 2, words_a_column = paste_words(rows);
    std::vector<float> transposed((size_t)size * size, 0.0f), line(size), share(rows);
    std::vector<int> near_line(rows), far_line(rows);
    std::vector<unsigned char> inside((size_t)words_a_column * 32, 0);
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) transposed[(size_t)(x + 1) * size + y + 1] = mask[y * side + x];
    for (int r = 0; r < rows; r++) {
        const PasteTap down = paste_tap(first_row + r, row_low, row_length, size);
        near_line[r] = down.near_line;
        far_line[r] = down.far_line;
        share[r] = down.share;
    }
    for (int c = 0; c < columns; c++) {
        const PasteTap across = paste_tap(first_column + c, column_low, column_length, size);
        const float* left = &transposed[(size_t)across.near_line * size];
        const float* right = &transposed[(size_t)across.far_line * size];
        for (int y = 0; y < size; y++) line[y] = paste_blend(left[y], right[y], across.share);
        for (int r = 0; r < rows; r++)
            inside[r] = paste_blend(line[near_line[r]], line[far_line[r]], share[r]) > threshold;
        for (int w = 0; w < words_a_column; w++) {
            unsigned int bits = 0;
            for (int k = 0; k < 32; k++) bits |= (unsigned int)inside[(size_t)w * 32 + k] << k;
            words[(size_t)c * words_a_column + w] = (int)bits;
        }
    }
}

// probabilities [K, M, M], plan [K, 9]; words: as many as the plan needs. `most` is CUDA's.
static inline void paste_run(const float* probabilities, const int* plan, int masks, int side, double threshold,
                             int /*most*/, int* words) {
#pragma omp parallel for schedule(dynamic)
    for (int k = 0; k < masks; k++) {
        const int* numbers = plan + (size_t)k * kPasteNumbers;
        paste_mask(probabilities + (size_t)k * side * side, numbers, side, (float)threshold, words + numbers[8]);
    }
}
