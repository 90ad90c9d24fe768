// What the dense pyramids fuse: up to four finer maps resized to a level's size, each times the level's attention
// (regularized) or as they are, and the level itself last. NHWC.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bilinear.h"

namespace jrdp_fast {

struct Map {
    const float* data;
    int h, w;
};

// level [n, h, w, c]; attention logits of the same shape, or null; out [n, h, w, (maps + 1) * c]
inline void resize_concat(const float* level, const float* attention, const Map* maps, int count, int n, int h, int w,
                          int channels, float* out) {
#pragma omp parallel
    {
        std::vector<float> factor(channels, 1.f);
#pragma omp for collapse(2)
        for (int i = 0; i < n; i++)
            for (int y = 0; y < h; y++)
                for (int x = 0; x < w; x++) {
                    const int64_t pixel = ((int64_t)i * h + y) * w + x;
                    float* o = out + pixel * channels * (count + 1);
                    float* f = factor.data();
                    if (attention) {
                        const float* logit = attention + pixel * channels;
                        for (int c = 0; c < channels; c++) f[c] = 1.f / (1.f + std::exp(-logit[c]));
                    }
                    for (int k = 0; k < count; k++, o += channels) {
                        const Map& m = maps[k];
                        const Between v(y, h, m.h), u(x, w, m.w);
                        const float* upper = m.data + ((int64_t)i * m.h + v.low) * m.w * channels;
                        const float* lower = m.data + ((int64_t)i * m.h + v.high) * m.w * channels;
                        const float *a = upper + (int64_t)u.low * channels, *b = upper + (int64_t)u.high * channels;
                        const float *p = lower + (int64_t)u.low * channels, *q = lower + (int64_t)u.high * channels;
                        const float wa = v.low_weight * u.low_weight, wb = v.low_weight * u.high_weight;
                        const float wp = v.high_weight * u.low_weight, wq = v.high_weight * u.high_weight;
                        for (int c = 0; c < channels; c++)
                            o[c] = f[c] * (wa * a[c] + wb * b[c] + wp * p[c] + wq * q[c]);
                    }
                    std::memcpy(o, level + pixel * channels, channels * sizeof(float));
                }
    }
}

}  // namespace jrdp_fast
