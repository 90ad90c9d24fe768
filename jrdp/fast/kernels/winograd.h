// 3x3 convolution of stride 1, padding 1, NHWC, with bias and ReLU, by Winograd's F(4x4, 3x3) (Lavin and Gray, 2016).
//
// Four times fewer multiplications than the direct way. A chunk of tiles goes through all three steps (transform 6x6
// input tiles; 36 matrix products over the channels; transform back to 4x4 outputs) while it is in a core's cache.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <vector>

#include <omp.h>

namespace jrdp_fast {

#ifndef JRDP_LANES  // floats in a vector register; tests set it to run either arrangement on any processor
#ifdef __AVX512F__
#define JRDP_LANES 16
#else
#define JRDP_LANES 8
#endif
#endif
const int kLanes = JRDP_LANES;
const int kRows = kLanes == 16 ? 12 : 6;  // the product keeps kRows x 2 vectors in registers, of 32 or 16
const int kColumns = 2 * kLanes;
const int kPoints = 36;

typedef float Lanes __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Lanes load(const float* p) { return *reinterpret_cast<const Lanes*>(p); }
inline void store(float* p, Lanes v) { *reinterpret_cast<Lanes*>(p) = v; }

// [co, ci, 3, 3] -> G g G^T as [36, co / kColumns, ci, kColumns]; in double, once.
inline void winograd_pack(const float* weights, int co, int ci, float* packed) {
    static const double G[6][3] = {{1. / 4, 0, 0},           {-1. / 6, -1. / 6, -1. / 6}, {-1. / 6, 1. / 6, -1. / 6},
                                   {1. / 24, 1. / 12, 1. / 6}, {1. / 24, -1. / 12, 1. / 6}, {0, 0, 1}};
#pragma omp parallel for
    for (int o = 0; o < co; o++)
        for (int i = 0; i < ci; i++) {
            const float* g = weights + ((int64_t)o * ci + i) * 9;
            double half[6][3];
            for (int a = 0; a < 6; a++)
                for (int b = 0; b < 3; b++) half[a][b] = G[a][0] * g[b] + G[a][1] * g[3 + b] + G[a][2] * g[6 + b];
            for (int a = 0; a < 6; a++)
                for (int b = 0; b < 6; b++) {
                    const double value = half[a][0] * G[b][0] + half[a][1] * G[b][1] + half[a][2] * G[b][2];
                    const int64_t block = (int64_t)(a * 6 + b) * (co / kColumns) + o / kColumns;
                    packed[(block * ci + i) * kColumns + o % kColumns] = (float)value;
                }
        }
}

// B^T d along one direction
inline void input_transform(const Lanes d[6], Lanes t[6]) {
    const Lanes even = d[4] - 4.f * d[2], odd = d[3] - 4.f * d[1], p = d[4] - d[2], q = 2.f * (d[3] - d[1]);
    t[0] = 4.f * d[0] - 5.f * d[2] + d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = p + q;
    t[4] = p - q;
    t[5] = 4.f * d[1] - 5.f * d[3] + d[5];
}

// A^T m along one direction
inline void output_transform(const Lanes m[6], Lanes s[4]) {
    const Lanes a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], d = m[3] - m[4];
    s[0] = m[0] + a + c;
    s[1] = b + 2.f * d;
    s[2] = a + 4.f * c;
    s[3] = b + 8.f * d + m[5];
}

// c[kRows, kColumns] = a[kRows, depth] * b[depth, kColumns]
inline void product(const float* a, int64_t a_stride, const float* b, int depth, float* c, int64_t c_stride) {
    Lanes sum[kRows][2];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) sum[r][0] = sum[r][1] = Lanes{};
    for (int k = 0; k < depth; k++) {
        const Lanes b0 = load(b + (int64_t)k * kColumns), b1 = load(b + (int64_t)k * kColumns + kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; r++) {
            const float x = a[r * a_stride + k];
            sum[r][0] += x * b0;
            sum[r][1] += x * b1;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
        store(c + r * c_stride, sum[r][0]);
        store(c + r * c_stride + kLanes, sum[r][1]);
    }
}

struct Tiles {
    int n, h, w, rows, columns;
    Tiles(int n, int h, int w) : n(n), h(h), w(w), rows((h + 3) / 4), columns((w + 3) / 4) {}
    int64_t count() const { return (int64_t)n * rows * columns; }
    int left(int64_t tile) const { return (int)(tile % columns) * 4; }  // of its outputs
    int top(int64_t tile) const { return (int)(tile / columns % rows) * 4; }
    int64_t first_pixel(int64_t tile) const { return tile / columns / rows * h * w; }  // of its image
};

// B^T d B of one 6x6 input tile, with zeros outside the map; keep(point, first of kLanes channels, value) takes it.
template <class Keep>
inline void transform_input_tile(const float* in, const Tiles& tiles, int64_t tile, int ci, const float* zeros,
                                 const Keep& keep) {
    const int left = tiles.left(tile) - 1, top = tiles.top(tile) - 1;
    const float* image = in + tiles.first_pixel(tile) * ci;
    const float* pixel[kPoints];
    for (int y = 0; y < 6; y++)
        for (int x = 0; x < 6; x++) {
            const bool inside = top + y >= 0 && top + y < tiles.h && left + x >= 0 && left + x < tiles.w;
            pixel[y * 6 + x] = inside ? image + ((int64_t)(top + y) * tiles.w + left + x) * ci : zeros;
        }
    for (int c = 0; c < ci; c += kLanes) {
        Lanes half[6][6];
        for (int x = 0; x < 6; x++) {
            Lanes column[6], result[6];
            for (int y = 0; y < 6; y++) column[y] = load(pixel[y * 6 + x] + c);
            input_transform(column, result);
            for (int y = 0; y < 6; y++) half[y][x] = result[y];
        }
        for (int y = 0; y < 6; y++) {
            Lanes result[6];
            input_transform(half[y], result);
            for (int x = 0; x < 6; x++) keep(y * 6 + x, c, result[x]);
        }
    }
}

// in [n, h, w, ci], packed by winograd_pack, out [n, h, w, co]; ci a multiple of kLanes, co of kColumns
inline void winograd(const float* in, const float* packed, const float* bias, bool relu, int n, int h, int w, int ci,
                     int co, float* out) {
    static std::mutex mutex;  // for the work space, which is kept between calls
    static std::vector<float> space;
    std::lock_guard<std::mutex> guard(mutex);
    const Tiles tiles(n, h, w);
    const int threads = omp_get_max_threads();
    // As many tiles at a time as keep both transformed arrays within about 1 MB, and work for every thread.
    const int64_t fit = std::max<int64_t>(1, 262144 / ((int64_t)kPoints * (ci + co)) / kRows) * kRows;
    const int64_t share = (tiles.count() + threads - 1) / threads;
    const int chunk = (int)std::min(fit, (share + kRows - 1) / kRows * kRows);
    // 16 floats more between points: strides of whole pages would all compete for the same lines of the cache.
    const int64_t in_stride = (int64_t)chunk * ci + 16, out_stride = (int64_t)chunk * co + 16;
    const int64_t per_thread = kPoints * (in_stride + out_stride) + 64;
    if ((int64_t)space.size() < threads * per_thread) std::vector<float>(threads * per_thread).swap(space);
    const int64_t chunks = (tiles.count() + chunk - 1) / chunk;
    const std::vector<float> zeros(ci, 0.f);

#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t which = 0; which < chunks; which++) {
        float* transformed = space.data() + omp_get_thread_num() * per_thread;  // [36][chunk, ci]
        float* products = transformed + kPoints * in_stride;                   // [36][chunk, co]
        const int64_t first = which * chunk;
        const int count = (int)std::min<int64_t>(chunk, tiles.count() - first);
        const int padded = (count + kRows - 1) / kRows * kRows;

        for (int t = 0; t < count; t++)
            transform_input_tile(in, tiles, first + t, ci, zeros.data(), [&](int p, int c, Lanes value) {
                store(transformed + p * in_stride + (int64_t)t * ci + c, value);
            });
        for (int p = 0; p < kPoints; p++)
            std::memset(transformed + p * in_stride + (int64_t)count * ci, 0, (padded - count) * ci * sizeof(float));

        for (int p = 0; p < kPoints; p++)
            for (int o = 0; o < co; o += kColumns) {
                const float* b = packed + ((int64_t)p * co + o) * ci;
                for (int t = 0; t < padded; t += kRows)
                    product(transformed + p * in_stride + (int64_t)t * ci, ci, b, ci,
                            products + p * out_stride + (int64_t)t * co + o, co);
            }

        for (int t = 0; t < count; t++) {
            const int64_t tile = first + t;
            const int left = tiles.left(tile), top = tiles.top(tile);
            float* image = out + tiles.first_pixel(tile) * co;
            const int height = std::min(4, h - top), width = std::min(4, w - left);
            for (int c = 0; c < co; c += kLanes) {
                Lanes half[4][6];
                for (int x = 0; x < 6; x++) {
                    Lanes column[6], result[4];
                    for (int y = 0; y < 6; y++)
                        column[y] = load(products + (y * 6 + x) * out_stride + (int64_t)t * co + c);
                    output_transform(column, result);
                    for (int y = 0; y < 4; y++) half[y][x] = result[y];
                }
                const Lanes shift = load(bias + c);
                for (int y = 0; y < height; y++) {
                    Lanes result[4];
                    output_transform(half[y], result);
                    for (int x = 0; x < width; x++) {
                        Lanes value = result[x] + shift;
                        if (relu) value = value < 0.f ? Lanes{} : value;  // what is not a number stays so
                        store(image + ((int64_t)(top + y) * w + left + x) * co + c, value);
                    }
                }
            }
        }
    }
}

}  // namespace jrdp_fast
