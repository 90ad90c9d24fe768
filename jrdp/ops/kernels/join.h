// Copies between a matrix and parts of its columns, on the CPU.
#pragma once
#include <cstring>
#include "join_parts.h"

// to_whole: from the parts to the matrix, else back. The parts' widths sum up to the matrix's.
template <bool to_whole, typename T>
static inline void join_copy(const JoinParts<T>& parts, T* whole) {
    long at = 0;
    for (int k = 0; k < parts.count; k++) {
        const long width = parts.width[k];
        T* const part = parts.part[k];
#pragma omp parallel for if (width * parts.rows > 65536)
        for (long row = 0; row < parts.rows; row++) {
            T* const place = whole + row * parts.all + at;
            if (to_whole) std::memcpy(place, part + row * width, sizeof(T) * (size_t)width);
            else std::memcpy(part + row * width, place, sizeof(T) * (size_t)width);
        }
        at += width;
    }
}
