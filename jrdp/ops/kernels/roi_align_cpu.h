// RoIAlign on the CPU. Samples lie on a grid, so a bin is a weighted sum of rows of a weighted sum of columns: rows are
// summed first, over the box's width and vectorised, then columns are gathered. Backward runs the same two steps the
// other way; each thread owns whole channels, so nothing is added to from two sides and results never vary.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>
#include "roi_align.h"

struct RoiTaps {
    std::vector<RoiTap> taps;  // [size * grid]
    int grid, first, last;     // samples a bin; the range of pixels read

    void fill(const RoiAxis& axis, int size, int length) {
        grid = axis.grid;
        first = length;
        last = -1;
        taps.resize((size_t)size * grid);
        for (int bin = 0; bin < size; bin++)
            for (int sample = 0; sample < grid; sample++) {
                const RoiTap tap = roi_tap(roi_sample(axis, bin, sample), length);
                taps[(size_t)bin * grid + sample] = tap;
                first = std::min(first, tap.low);
                last = std::max(last, tap.high);
            }
    }
};

struct RoiGrid {
    RoiTaps rows, columns;

    void fill(const RoiLevel& level, const float* roi, int sampling) {
        rows.fill(roi_axis(roi[2], roi[4], level.scale, level.size, sampling), level.size, level.height);
        columns.fill(roi_axis(roi[1], roi[3], level.scale, level.size, sampling), level.size, level.width);
    }
    float share() const { return 1.0f / ((float)rows.grid * (float)columns.grid); }
};

static inline void roi_require_usable(const RoiLevels& levels, const float* rois) {
    for (int r = 0; r < levels.rois; r++)
        if (!roi_is_usable(rois + (size_t)r * 5, levels.images))
            throw std::invalid_argument(
                "rois: box " + std::to_string(r) +
                " has a coordinate that is not finite or too large, or a batch index outside 0.." +
                std::to_string(levels.images - 1));
}

static inline void roi_pool_channel(const float* feature, float* pooled, int width, int size, const RoiGrid& grid,
                                    float* row) {
    const int first = grid.columns.first, last = grid.columns.last;
    const float share = grid.share();
    const RoiTap* row_tap = grid.rows.taps.data();
    for (int y = 0; y < size; y++) {
        std::fill(row + first, row + last + 1, 0.0f);
        for (int sample = 0; sample < grid.rows.grid; sample++, row_tap++) {
            const float* low = feature + (size_t)row_tap->low * width;
            const float* high = feature + (size_t)row_tap->high * width;
            const float low_weight = row_tap->low_weight * share, high_weight = row_tap->high_weight * share;
            for (int x = first; x <= last; x++) row[x] += low_weight * low[x] + high_weight * high[x];
        }
        const RoiTap* tap = grid.columns.taps.data();
        for (int x = 0; x < size; x++) {
            float sum = 0.0f;
            for (int sample = 0; sample < grid.columns.grid; sample++, tap++)
                sum += tap->low_weight * row[tap->low] + tap->high_weight * row[tap->high];
            pooled[y * size + x] = sum;
        }
    }
}

static inline void roi_spread_channel(float* feature, const float* pooled, int width, int size, const RoiGrid& grid,
                                    float* row) {
    const int first = grid.columns.first, last = grid.columns.last;
    const float share = grid.share();
    const RoiTap* row_tap = grid.rows.taps.data();
    for (int y = 0; y < size; y++) {
        std::fill(row + first, row + last + 1, 0.0f);
        const RoiTap* tap = grid.columns.taps.data();
        for (int x = 0; x < size; x++) {
            const float value = pooled[y * size + x] * share;
            for (int sample = 0; sample < grid.columns.grid; sample++, tap++) {
                row[tap->low] += value * tap->low_weight;
                row[tap->high] += value * tap->high_weight;
            }
        }
        for (int sample = 0; sample < grid.rows.grid; sample++, row_tap++) {
            float* low = feature + (size_t)row_tap->low * width;
            float* high = feature + (size_t)row_tap->high * width;
            const float low_weight = row_tap->low_weight, high_weight = row_tap->high_weight;
            for (int x = first; x <= last; x++) low[x] += low_weight * row[x];
            for (int x = first; x <= last; x++) high[x] += high_weight * row[x];
        }
    }
}

// Tasks are (box, level, 32 channels), so that even one box keeps every thread busy.
static inline void roi_align_forward(const RoiLevels& levels, const float* rois) {
    roi_require_usable(levels, rois);
    const int channels = levels.channels, part = 32, parts = (channels + part - 1) / part;
    const int tasks = levels.rois * levels.count * parts;
#pragma omp parallel
    {
        RoiGrid grid;
        std::vector<float> row;
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < tasks; task++) {
            const int r = task / (levels.count * parts);
            const RoiLevel& level = levels.level[task / parts % levels.count];
            const int begin = task % parts * part, end = std::min(channels, begin + part);
            const float* roi = rois + (size_t)r * 5;
            grid.fill(level, roi, levels.sampling);
            row.resize(level.width);
            const size_t area = (size_t)level.height * level.width, bins = (size_t)level.size * level.size;
            for (int c = begin; c < end; c++)
                roi_pool_channel(level.feature + ((size_t)roi[0] * channels + c) * area,
                                 level.pooled + ((size_t)r * channels + c) * bins, level.width, level.size, grid,
                                 row.data());
        }
    }
}

// `deterministic` is what CUDA chooses by; here the one way is the deterministic one.
static inline void roi_align_backward(const RoiLevels& levels, const float* rois, bool /*deterministic*/) {
    roi_require_usable(levels, rois);
    const int channels = levels.channels;
    std::vector<RoiGrid> grids((size_t)levels.count * levels.rois);
    for (int l = 0; l < levels.count; l++)
        for (int r = 0; r < levels.rois; r++)
            grids[(size_t)l * levels.rois + r].fill(levels.level[l], rois + (size_t)r * 5, levels.sampling);
#pragma omp parallel
    {
        std::vector<float> row;
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < levels.count * channels; task++) {
            const int l = task / channels, c = task % channels;
            const RoiLevel& level = levels.level[l];
            const size_t area = (size_t)level.height * level.width, bins = (size_t)level.size * level.size;
            row.resize(level.width);
            for (int image = 0; image < levels.images; image++) {
                float* gradient = level.feature + ((size_t)image * channels + c) * area;
                std::fill(gradient, gradient + area, 0.0f);
            }
            for (int r = 0; r < levels.rois; r++)
                roi_spread_channel(level.feature + ((size_t)rois[(size_t)r * 5] * channels + c) * area,
                                   level.pooled + ((size_t)r * channels + c) * bins, level.width, level.size,
                                   grids[(size_t)l * levels.rois + r], row.data());
        }
    }
}
