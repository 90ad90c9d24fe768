// 3x3 maximum of stride 2 and padding 1, NHWC: [n, h, w, c] -> [n, (h + 1) / 2, (w + 1) / 2, c]; float32 or bfloat16.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace jrdp_fast {

template <class Number>
inline void max_pool(const Number* in, int n, int h, int w, int channels, Number* out) {
    const int oh = (h - 1) / 2 + 1, ow = (w - 1) / 2 + 1;
#pragma omp parallel for collapse(2)
    for (int i = 0; i < n; i++)
        for (int y = 0; y < oh; y++)
            for (int x = 0; x < ow; x++) {
                Number* o = out + (((int64_t)i * oh + y) * ow + x) * channels;
                bool first = true;
                for (int a = std::max(0, 2 * y - 1); a < std::min(h, 2 * y + 2); a++)
                    for (int b = std::max(0, 2 * x - 1); b < std::min(w, 2 * x + 2); b++) {
                        const Number* p = in + (((int64_t)i * h + a) * w + b) * channels;
                        if (first)
                            std::memcpy(o, p, channels * sizeof(Number));
                        else
                            for (int c = 0; c < channels; c++) put(o + c, std::max(number(o + c), number(p + c)));
                        first = false;
                    }
            }
}

}  // namespace jrdp_fast
