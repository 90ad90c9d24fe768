// What training needs beside winograd.h: weights that change at every step, and the gradients of the convolution.
//
// With U = B^T d B of an input tile and V = A dy A^T of the gradient of its 4x4 outputs, the gradient of the transformed
// weights is the sum of U V over all tiles, at each of 36 points a product of matrices over the tiles, and that of the
// weights G^T (...) G. The gradient of the input is the convolution of dy with the weights turned by half a turn.
#pragma once
#include "winograd.h"

namespace jrdp_fast {

// G g along one direction
inline void weight_transform(const Lanes g[3], Lanes t[6]) {
    const Lanes even = (g[0] + g[2]) * (-1.f / 6), odd = g[1] * (1.f / 6);
    const Lanes p = g[0] * (1.f / 24) + g[2] * (1.f / 6), q = g[1] * (1.f / 12);
    t[0] = g[0] * 0.25f;
    t[1] = even - odd;
    t[2] = even + odd;
    t[3] = p + q;
    t[4] = p - q;
    t[5] = g[2];
}

// G^T m along one direction
inline void weight_transform_back(const Lanes m[6], Lanes g[3]) {
    const Lanes a = m[1] + m[2], b = m[2] - m[1], c = m[3] + m[4], d = m[3] - m[4];
    g[0] = m[0] * 0.25f - a * (1.f / 6) + c * (1.f / 24);
    g[1] = b * (1.f / 6) + d * (1.f / 12);
    g[2] = (c - a) * (1.f / 6) + m[5];
}

// A s along one direction
inline void gradient_transform(const Lanes s[4], Lanes m[6]) {
    const Lanes even = s[0] + s[2], odd = s[1] + s[3], p = s[0] + 4.f * s[2], q = 2.f * s[1] + 8.f * s[3];
    m[0] = s[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = p + q;
    m[4] = p - q;
    m[5] = s[3];
}

// What winograd_pack gives, in float32. `turned`: of the convolution that takes dy to the gradient of the input, so that
// `weights` are [ci, co, 3, 3].
inline void pack_for_training(const float* weights, int co, int ci, bool turned, float* packed) {
#pragma omp parallel for collapse(2)
    for (int o = 0; o < co; o += kLanes)
        for (int i = 0; i < ci; i++) {
            float gathered[9][kLanes];
            for (int lane = 0; lane < kLanes; lane++) {
                const float* g = weights + (turned ? (int64_t)i * co + o + lane : (int64_t)(o + lane) * ci + i) * 9;
                for (int k = 0; k < 9; k++) gathered[k][lane] = g[turned ? 8 - k : k];
            }
            Lanes half[6][3];
            for (int b = 0; b < 3; b++) {
                const Lanes column[3] = {load(gathered[b]), load(gathered[3 + b]), load(gathered[6 + b])};
                Lanes result[6];
                weight_transform(column, result);
                for (int a = 0; a < 6; a++) half[a][b] = result[a];
            }
            for (int a = 0; a < 6; a++) {
                Lanes result[6];
                weight_transform(half[a], result);
                for (int b = 0; b < 6; b++) {
                    const int64_t block = (int64_t)(a * 6 + b) * (co / kColumns) + o / kColumns;
                    store(packed + (block * ci + i) * kColumns + o % kColumns, result[b]);
                }
            }
        }
}

// x [n, h, w, ci] by weights [co, ci, 3, 3] -> out [n, h, w, co]; turned: by weights [ci, co, 3, 3], see above
inline void winograd_for_training(const float* x, const float* weights, bool turned, int n, int h, int w, int ci, int co,
                                  float* out) {
    static std::mutex mutex;  // for the transformed weights, whose memory is kept between calls
    static std::vector<float> packed, zeros;
    std::lock_guard<std::mutex> guard(mutex);
    if (packed.size() < (size_t)kPoints * ci * co) packed.resize((size_t)kPoints * ci * co);
    if (zeros.size() < (size_t)co) zeros.resize(co, 0.f);
    pack_for_training(weights, co, ci, turned, packed.data());
    winograd(x, packed.data(), zeros.data(), false, n, h, w, ci, co, out);
}

const int kGradientRows = kLanes / 2;  // 16 or 8 sums in registers

// c[kGradientRows, kColumns] += a^T b over `depth` tiles; a [depth, kLanes], b [depth, kColumns]
inline void add_product(const float* a, const float* b, int depth, float* c, int64_t c_stride) {
    Lanes sum[kGradientRows][2];
#pragma GCC unroll 16
    for (int r = 0; r < kGradientRows; r++) {
        sum[r][0] = load(c + r * c_stride);
        sum[r][1] = load(c + r * c_stride + kLanes);
    }
    for (int k = 0; k < depth; k++) {
        const Lanes b0 = load(b + (int64_t)k * kColumns), b1 = load(b + (int64_t)k * kColumns + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kGradientRows; r++) {
            const float x = a[(int64_t)k * kLanes + r];
            sum[r][0] += x * b0;
            sum[r][1] += x * b1;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kGradientRows; r++) {
        store(c + r * c_stride, sum[r][0]);
        store(c + r * c_stride + kLanes, sum[r][1]);
    }
}

// A dy A^T of one tile of outputs, zero outside the map; `keep` as for transform_input_tile.
template <class Keep>
inline void transform_gradient_tile(const float* dy, const Tiles& tiles, int64_t tile, int co, const Keep& keep) {
    const int left = tiles.left(tile), top = tiles.top(tile);
    const float* image = dy + tiles.first_pixel(tile) * co;
    const int height = std::min(4, tiles.h - top), width = std::min(4, tiles.w - left);
    for (int c = 0; c < co; c += kLanes) {
        Lanes half[6][4];
        for (int x = 0; x < 4; x++) {
            Lanes column[4], result[6];
            for (int y = 0; y < 4; y++)
                column[y] = x < width && y < height ? load(image + ((int64_t)(top + y) * tiles.w + left + x) * co + c) : Lanes{};
            gradient_transform(column, result);
            for (int y = 0; y < 6; y++) half[y][x] = result[y];
        }
        for (int y = 0; y < 6; y++) {
            Lanes result[6];
            gradient_transform(half[y], result);
            for (int x = 0; x < 6; x++) keep(y * 6 + x, c, result[x]);
        }
    }
}

// x [n, h, w, ci], dy [n, h, w, co] -> dw [co, ci, 3, 3]; ci a multiple of kLanes, co of kColumns. The order of the sums
// does not depend on the number of threads.
inline void winograd_weight_gradient(const float* x, const float* dy, int n, int h, int w, int ci, int co, float* dw) {
    static std::mutex mutex;  // for the work space, which is kept between calls
    static std::vector<float> space;
    std::lock_guard<std::mutex> guard(mutex);
    const Tiles tiles(n, h, w);
    // So many tiles at a time that both transformed arrays take at most 32 MB.
    const int chunk = (int)std::min<int64_t>(tiles.count(), std::max<int64_t>(16, (8 << 20) / ((int64_t)kPoints * (ci + co))));
    const int64_t in_size = (int64_t)chunk * ci, out_size = (int64_t)chunk * co, sums_size = (int64_t)ci * co;
    const int64_t wanted = kPoints * (in_size + out_size + sums_size);
    if ((int64_t)space.size() < wanted) std::vector<float>(wanted).swap(space);
    float* transformed = space.data();                    // [36][ci / kLanes][chunk, kLanes]
    float* gradients = transformed + kPoints * in_size;   // [36][co / kColumns][chunk, kColumns]
    float* sums = gradients + kPoints * out_size;         // [36][ci, co]
    const std::vector<float> zeros(ci, 0.f);

    for (int64_t first = 0; first < tiles.count(); first += chunk) {
        const int count = (int)std::min<int64_t>(chunk, tiles.count() - first);
#pragma omp parallel for
        for (int t = 0; t < count; t++) {
            transform_input_tile(x, tiles, first + t, ci, zeros.data(), [&](int p, int c, Lanes value) {
                store(transformed + p * in_size + ((int64_t)c / kLanes * chunk + t) * kLanes, value);
            });
            transform_gradient_tile(dy, tiles, first + t, co, [&](int p, int c, Lanes value) {
                store(gradients + p * out_size + ((int64_t)c / kColumns * chunk + t) * kColumns + c % kColumns, value);
            });
        }
#pragma omp parallel for schedule(dynamic, 1)
        for (int p = 0; p < kPoints; p++) {
            float* c = sums + p * sums_size;
            if (first == 0) std::memset(c, 0, sums_size * sizeof(float));
            for (int o = 0; o < co; o += kColumns)
                for (int i = 0; i < ci; i += kGradientRows)
                    add_product(transformed + p * in_size + (int64_t)(i / kLanes) * chunk * kLanes + i % kLanes,
                                gradients + p * out_size + (int64_t)(o / kColumns) * chunk * kColumns, count,
                                c + (int64_t)i * co + o, co);
        }
    }

#pragma omp parallel for collapse(2)
    for (int o = 0; o < co; o += kLanes)
        for (int i = 0; i < ci; i++) {
            Lanes half[3][6];
            for (int b = 0; b < 6; b++) {
                Lanes column[6], result[3];
                for (int a = 0; a < 6; a++) column[a] = load(sums + (a * 6 + b) * sums_size + (int64_t)i * co + o);
                weight_transform_back(column, result);
                for (int a = 0; a < 3; a++) half[a][b] = result[a];
            }
            for (int a = 0; a < 3; a++) {
                Lanes result[3];
                weight_transform_back(half[a], result);
                for (int b = 0; b < 3; b++)
                    for (int lane = 0; lane < kLanes; lane++)
                        dw[((int64_t)(o + lane) * ci + i) * 9 + a * 3 + b] = result[b][lane];
            }
        }
}

}  // namespace jrdp_fast
