// Masks resized to their boxes and cut, as bits, on the CPU: for each column of the picture the mask's column there, with
// its border of zeros, and then what lies between two lines of that column, which mostly is all inside or all outside.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>
#include "paste.h"

// Rows [first, first + count) of a column, all of which lie between two lines of the mask.
struct PasteStretch {
    int near_line, far_line, first, count;
};

static inline std::vector<PasteStretch> paste_stretches(int first_row, int rows, int low, int length, int size,
                                                        std::vector<float>& share) {
    std::vector<PasteStretch> stretches;
    for (int r = 0; r < rows; r++) {
        const PasteTap down = paste_tap(first_row + r, low, length, size);
        share[r] = down.share;
        if (stretches.empty() || stretches.back().near_line != down.near_line)
            stretches.push_back({down.near_line, down.far_line, r, 0});
        stretches.back().count++;
    }
    return stretches;
}

// Sets the bits [first, first + count) of a column.
static inline void paste_fill(unsigned int* words, int first, int count) {
    for (int end = first + count; first < end;) {
        const int bit = first % 32, here = std::min(32 - bit, end - first);
        words[first / 32] |= (0xffffffffu >> (32 - here)) << bit;
        first += here;
    }
}

static inline void paste_mask(const float* mask, const int* numbers, int side, float threshold, int* words) {
    const int row_low = numbers[0], row_length = numbers[1], first_row = numbers[2], rows = numbers[3];
    const int column_low = numbers[4], column_length = numbers[5], first_column = numbers[6], columns = numbers[7];
    const int size = side + 2, words_a_column = paste_words(rows);
    // A blend of two values lies between them, but for the rounding of its three operations.
    const float margin = 1e-6f * std::max(1.0f, std::abs(threshold)), high = threshold + margin, low = threshold - margin;
    std::vector<float> transposed((size_t)size * size, 0.0f), line(size), share(rows);
    const std::vector<PasteStretch> stretches = paste_stretches(first_row, rows, row_low, row_length, size, share);
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++) transposed[(size_t)(x + 1) * size + y + 1] = mask[y * side + x];
    for (int c = 0; c < columns; c++) {
        const PasteTap across = paste_tap(first_column + c, column_low, column_length, size);
        const float* left = &transposed[(size_t)across.near_line * size];
        const float* right = &transposed[(size_t)across.far_line * size];
        for (int y = 0; y < size; y++) line[y] = paste_blend(left[y], right[y], across.share);
        unsigned int* column = (unsigned int*)words + (size_t)c * words_a_column;
        std::fill(column, column + words_a_column, 0u);
        for (const PasteStretch& s : stretches) {
            const float a = line[s.near_line], b = line[s.far_line];
            if (a < low && b < low) continue;
            if (a > high && b > high) {
                paste_fill(column, s.first, s.count);
                continue;
            }
            for (int r = s.first; r < s.first + s.count; r++)
                column[r / 32] |= (unsigned int)(paste_blend(a, b, share[r]) > threshold) << (r % 32);
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
