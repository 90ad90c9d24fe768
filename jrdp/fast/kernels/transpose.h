#pragma once
#include <algorithm>
#include <cstdint>

#include "numbers.h"

namespace jrdp_fast {

const int kTile = 64;  // a side of what is turned at a time, in the first-level cache

// [height, width] of a matrix with `columns` to [width, height] of one with `rows`; read along columns, written along rows.
// Inlined, so that the compiler knows the bounds of a whole tile.
template <class In, class Out>
inline __attribute__((always_inline)) void turn(const In* from, int columns, Out* to, int rows, int height, int width) {
    float tile[kTile][kTile + 1];
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) tile[y][x] = number(from + (int64_t)y * columns + x);
    for (int x = 0; x < width; x++)
        for (int y = 0; y < height; y++) put(to + (int64_t)x * rows + y, tile[y][x]);
}

// [n, rows, columns] -> [n, columns, rows]: between NCHW and NHWC; float32 or bfloat16 on either side.
template <class In, class Out>
inline void transpose(const In* in, int n, int rows, int columns, Out* out) {
    const int64_t size = (int64_t)rows * columns;
    const int down = (rows + kTile - 1) / kTile, across = (columns + kTile - 1) / kTile;
#pragma omp parallel for collapse(3)
    for (int image = 0; image < n; image++)
        for (int i = 0; i < down; i++)
            for (int k = 0; k < across; k++) {
                const int top = i * kTile, left = k * kTile;
                const In* from = in + image * size + (int64_t)top * columns + left;
                Out* to = out + image * size + (int64_t)left * rows + top;
                const int height = std::min(kTile, rows - top), width = std::min(kTile, columns - left);
                if (height == kTile && width == kTile)
                    turn(from, columns, to, rows, kTile, kTile);
                else
                    turn(from, columns, to, rows, height, width);
            }
}

}  // namespace jrdp_fast
