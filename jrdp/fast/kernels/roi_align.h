// RoIAlign as released (no half-pixel shift, RoIs at least one feature pixel wide), NHWC, plus a coarser map of the
// same RoIs resized to the same size: the step of the mask decoder from one level to the next.
#pragma once
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "bilinear.h"
#include "numbers.h"

namespace jrdp_fast {

// Where the samples along one axis read: size * sampling of them, from `start`, `length` feature pixels in all.
struct Samples {
    std::vector<int> low, high;
    std::vector<float> low_weight, high_weight;

    void place(float start, float length, int size, int sampling, int limit) {
        const int count = size * sampling;
        low.resize(count), high.resize(count), low_weight.resize(count), high_weight.resize(count);
        const float bin = length / size;
        for (int i = 0; i < count; i++) {
            float at = start + (i / sampling) * bin + (i % sampling + 0.5f) * bin / sampling;
            const bool counts = at >= -1.f && at <= (float)limit;
            at = std::max(at, 0.f);
            int l = std::max(0, (int)std::min(at, (float)limit));
            if (l >= limit - 1) {
                l = limit - 1;
                at = (float)l;
            }
            low[i] = l;
            high[i] = std::min(l + 1, limit - 1);
            high_weight[i] = counts ? at - l : 0.f;
            low_weight[i] = counts ? 1.f - (at - l) : 0.f;
        }
    }
};

// features [n, h, w, c]; rois [count, 5]; coarse [count, coarse_size, coarse_size, c] or null;
// out [count, size, size, c], float32 or bfloat16
template <class Number>
inline void roi_align(const float* features, int n, int h, int w, int channels, const float* rois, int count,
                      const float* coarse, int coarse_size, float scale, int sampling, int size, Number* out) {
    for (int r = 0; r < count; r++)
        if ((int)rois[r * 5] < 0 || (int)rois[r * 5] >= n)  // as an integer: -Ofast cannot tell a NaN from a number
            throw std::runtime_error("a RoI names an image outside the batch");
    const float share = 1.f / (sampling * sampling);
#pragma omp parallel
    {
        Samples rows, columns;
        std::vector<float> sums(channels);
#pragma omp for schedule(dynamic, 1)
        for (int r = 0; r < count; r++) {
            const float* box = rois + (int64_t)r * 5;
            const float* image = features + (int64_t)box[0] * h * w * channels;
            const float left = box[1] * scale, top = box[2] * scale;
            columns.place(left, std::max(box[3] * scale - left, 1.f), size, sampling, w);
            rows.place(top, std::max(box[4] * scale - top, 1.f), size, sampling, h);
            for (int py = 0; py < size; py++)
                for (int px = 0; px < size; px++) {
                    float* sum = sums.data();
                    if (coarse) {
                        const Between v(py, size, coarse_size), u(px, size, coarse_size);
                        const float* map = coarse + (int64_t)r * coarse_size * coarse_size * channels;
                        const float* a = map + ((int64_t)v.low * coarse_size + u.low) * channels;
                        const float* b = map + ((int64_t)v.low * coarse_size + u.high) * channels;
                        const float* p = map + ((int64_t)v.high * coarse_size + u.low) * channels;
                        const float* q = map + ((int64_t)v.high * coarse_size + u.high) * channels;
                        const float wa = v.low_weight * u.low_weight, wb = v.low_weight * u.high_weight;
                        const float wp = v.high_weight * u.low_weight, wq = v.high_weight * u.high_weight;
                        for (int c = 0; c < channels; c++) sum[c] = wa * a[c] + wb * b[c] + wp * p[c] + wq * q[c];
                    } else {
                        std::fill(sums.begin(), sums.end(), 0.f);
                    }
                    for (int i = py * sampling; i < (py + 1) * sampling; i++) {
                        const float* upper = image + (int64_t)rows.low[i] * w * channels;
                        const float* lower = image + (int64_t)rows.high[i] * w * channels;
                        for (int j = px * sampling; j < (px + 1) * sampling; j++) {
                            const float *a = upper + (int64_t)columns.low[j] * channels;
                            const float *b = upper + (int64_t)columns.high[j] * channels;
                            const float *p = lower + (int64_t)columns.low[j] * channels;
                            const float *q = lower + (int64_t)columns.high[j] * channels;
                            const float wa = rows.low_weight[i] * columns.low_weight[j] * share;
                            const float wb = rows.low_weight[i] * columns.high_weight[j] * share;
                            const float wp = rows.high_weight[i] * columns.low_weight[j] * share;
                            const float wq = rows.high_weight[i] * columns.high_weight[j] * share;
                            for (int c = 0; c < channels; c++) sum[c] += wa * a[c] + wb * b[c] + wp * p[c] + wq * q[c];
                        }
                    }
                    Number* pixel = out + (((int64_t)r * size + py) * size + px) * channels;
                    for (int c = 0; c < channels; c++) put(pixel + c, sum[c]);
                }
        }
    }
}

}  // namespace jrdp_fast
