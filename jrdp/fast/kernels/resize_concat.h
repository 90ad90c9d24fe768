// What the dense pyramids fuse: up to four finer maps resized to a level's size, each times the level's attention
// (regularized) or as they are, and the level itself last. NHWC.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bilinear.h"
#include "numbers.h"

namespace jrdp_fast {

// exp is only taken of negative numbers: fast arithmetic divides by an approximation, which gives NaN for infinity.
inline float sigmoid(float x) {
    const float small = std::exp(-std::fabs(x)), share = 1.f / (1.f + small);
    return x < 0 ? small * share : share;
}

template <class Number>
struct Map {
    const Number* data;
    int h, w;
};

// level [n, h, w, c], float32 or bfloat16 like the maps and out; attention logits of the same shape, or null;
// out [n, h, w, (maps + 1) * c]
template <class Number, class Logit>
inline void resize_concat(const Number* level, const Logit* attention, const Map<Number>* maps, int count, int n, int h,
                          int w, int channels, Number* out) {
#pragma omp parallel
    {
        std::vector<float> factor(channels, 1.f);
#pragma omp for collapse(2)
        for (int i = 0; i < n; i++)
            for (int y = 0; y < h; y++)
                for (int x = 0; x < w; x++) {
                    const int64_t pixel = ((int64_t)i * h + y) * w + x;
                    Number* o = out + pixel * channels * (count + 1);
                    float* f = factor.data();
                    if (attention) {
                        const Logit* logit = attention + pixel * channels;
                        for (int c = 0; c < channels; c++) f[c] = sigmoid(number(logit + c));
                    }
                    for (int k = 0; k < count; k++, o += channels) {
                        const Map<Number>& m = maps[k];
                        const Between v(y, h, m.h), u(x, w, m.w);
                        const Number* upper = m.data + ((int64_t)i * m.h + v.low) * m.w * channels;
                        const Number* lower = m.data + ((int64_t)i * m.h + v.high) * m.w * channels;
                        const Number *a = upper + (int64_t)u.low * channels, *b = upper + (int64_t)u.high * channels;
                        const Number *p = lower + (int64_t)u.low * channels, *q = lower + (int64_t)u.high * channels;
                        const float wa = v.low_weight * u.low_weight, wb = v.low_weight * u.high_weight;
                        const float wp = v.high_weight * u.low_weight, wq = v.high_weight * u.high_weight;
                        for (int c = 0; c < channels; c++)
                            put(o + c, f[c] * (wa * number(a + c) + wb * number(b + c) + wp * number(p + c) +
                                              wq * number(q + c)));
                    }
                    std::memcpy(o, level + pixel * channels, channels * sizeof(Number));
                }
    }
}

}  // namespace jrdp_fast
