// Copies between a matrix and a part of its columns, on the CPU.
#pragma once
#include <cstring>

template <typename T>
static inline void join_copy(T* to, long to_pitch, const T* from, long from_pitch, long width, long rows) {
#pragma omp parallel for if (width * rows > 65536)
    for (long row = 0; row < rows; row++)
        std::memcpy(to + row * to_pitch, from + row * from_pitch, sizeof(T) * (size_t)width);
}
