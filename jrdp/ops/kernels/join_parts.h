// A matrix's columns as several parts.
#pragma once

const int kJoinParts = 5;

template <typename T>
struct JoinParts {
    T* part[kJoinParts];
    long width[kJoinParts], rows, all;  // all: the matrix's width
    int count;
};

template <typename T>
static inline JoinParts<T> join_parts(long rows, long all) {
    JoinParts<T> parts;
    parts.rows = rows;
    parts.all = all;
    parts.count = 0;
    return parts;
}

template <typename T>
static inline void join_add(JoinParts<T>& parts, T* part, long width) {
    parts.part[parts.count] = part;
    parts.width[parts.count++] = width;
}
