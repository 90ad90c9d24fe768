// The 1x1 convolution of stride 1 and its two gradients as products of matrices, which oneDNN's sgemm computes where the maps
// lie, in NCHW: its convolutions would reorder them first.
#pragma once
#include <dnnl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>

namespace jrdp_fast {

const int64_t kMostPixels = 1024;  // of a part of a map: a thread's work, whose size no number of threads changes

inline void check(bool done) {
    if (!done) throw std::runtime_error("oneDNN could not multiply two matrices");
}

// x [n, ci, pixels] by weights [co, ci] -> out [n, co, pixels]; turned: by weights [ci, co]
inline void pointwise(const float* x, const float* weights, bool turned, int64_t n, int64_t ci, int64_t pixels, int64_t co,
                      float* out) {
    const int64_t parts = (pixels + kMostPixels - 1) / kMostPixels;
    std::atomic<bool> done(true);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t image = 0; image < n; image++)
        for (int64_t part = 0; part < parts; part++) {
            const int64_t begin = part * pixels / parts, end = (part + 1) * pixels / parts;
            if (dnnl_sgemm(turned ? 'T' : 'N', 'N', co, end - begin, ci, 1.f, weights, turned ? co : ci,
                           x + image * ci * pixels + begin, pixels, 0.f, out + image * co * pixels + begin, pixels) !=
                dnnl_success)
                done = false;
        }
    check(done);
}

// x [n, ci, pixels] and dy [n, co, pixels] -> dweights [co, ci]
inline void pointwise_weight_gradient(const float* x, const float* dy, int64_t n, int64_t ci, int64_t pixels, int64_t co,
                                      float* dweights) {
    if (n == 0) std::fill(dweights, dweights + co * ci, 0.f);
    for (int64_t image = 0; image < n; image++)
        check(dnnl_sgemm('N', 'T', co, ci, pixels, 1.f, dy + image * co * pixels, pixels, x + image * ci * pixels, pixels,
                         image ? 1.f : 0.f, dweights, ci) == dnnl_success);
}

}  // namespace jrdp_fast
