// One NHWC convolution by oneDNN 2.x, "same" padding, with bias, an optional addend and ReLU fused; in float32, or of an
// input and weights in bfloat16, whose products are summed in float32.
//
// Weights are packed by the caller, once, in the layout that `plan` reports, and come in as an input: nothing here
// belongs to a network, so nothing can be stale. What is kept between calls are primitives (compiled code, no weights),
// shared by all layers of one shape, at most kMaxPrimitives of them.
#pragma once
#include <dnnl.hpp>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace jrdp_fast {

const size_t kMaxPrimitives = 256;

inline dnnl::memory::data_type number_type(bool bfloat16) {
    return bfloat16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

enum Addend { kNothing = 0, kSameSize = 1, kHalfSize = 2 };  // kHalfSize: doubled by nearest neighbour first

// in: [n, h, w, ci]; out: [n, oh, ow, co]; weights: [co, ci / groups, kernel, kernel]
struct ConvShape {
    int n, h, w, ci, co, kernel, stride, groups;
    bool relu, add;
    bool bfloat16;      // how it multiplies, and how its input is kept; weights and bias come as float32
    bool out_bfloat16;  // how its output and addend are kept
    bool one_thread;    // whether one thread computes it, whatever OpenMP has

    int pad() const { return kernel / 2; }
    int oh() const { return (h + 2 * pad() - kernel) / stride + 1; }
    int ow() const { return (w + 2 * pad() - kernel) / stride + 1; }
    std::vector<int> key() const {
        return {n, h, w, ci, co, kernel, stride, groups, relu, add, bfloat16, out_bfloat16, one_thread};
    }
    dnnl::memory::desc in_map(bool half) const { return {{n, ci, h, w}, number_type(half), dnnl::memory::format_tag::nhwc}; }
    dnnl::memory::desc out_map(bool half) const {
        return {{n, co, oh(), ow()}, number_type(half), dnnl::memory::format_tag::nhwc};
    }
};

// oneDNN divides a primitive's work among as many threads as there are when it is made.
struct Threads {
    const int before;
    explicit Threads(const ConvShape& s) : before(omp_get_max_threads()) {
        if (s.one_thread) omp_set_num_threads(1);
    }
    ~Threads() { omp_set_num_threads(before); }
};

struct Convolution {
    dnnl::convolution_forward run;
    dnnl::memory::desc weights_layout;
    dnnl::memory outer_in, outer_out, inner_in, inner_out, weights, bias;
    bool reorder_in, reorder_out;  // the implementation wants another layout than NHWC, or other numbers
    bool slow;                     // there is only a reference implementation
    dnnl::reorder to_inner, to_outer;
};

// Function-local statics: one mutex, one engine and one cache for the kernel that includes this file.
inline std::mutex& lock() {
    static std::mutex instance;
    return instance;
}

inline dnnl::engine& cpu() {
    static dnnl::engine instance(dnnl::engine::kind::cpu, 0);
    return instance;
}

// At least `bytes` of memory, aligned for vectors; lives until the next larger request.
inline char* scratch(std::vector<char>& buffer, size_t bytes) {
    if (buffer.size() < bytes + 64) std::vector<char>(bytes + 64).swap(buffer);
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) / 64 * 64);
}

inline dnnl::memory::desc plain_weights(const ConvShape& s, bool bfloat16) {
    using dnnl::memory;
    const auto type = number_type(bfloat16);
    if (s.groups == 1) return memory::desc({s.co, s.ci, s.kernel, s.kernel}, type, memory::format_tag::oihw);
    return memory::desc({s.groups, s.co / s.groups, s.ci / s.groups, s.kernel, s.kernel}, type,
                        memory::format_tag::goihw);
}

// What oneDNN has for a layout and for products of these numbers. A product of bfloat16 can be kept as either; the
// result of float32 products is float32 here and rounded afterwards.
inline dnnl::convolution_forward::primitive_desc describe(const ConvShape& s, bool nhwc, bool bfloat16) {
    using namespace dnnl;
    const auto layout = nhwc ? memory::format_tag::nhwc : memory::format_tag::any;
    memory::desc in({s.n, s.ci, s.h, s.w}, number_type(bfloat16), layout);
    memory::desc out({s.n, s.co, s.oh(), s.ow()}, number_type(bfloat16 && s.out_bfloat16), layout);
    memory::desc weights(plain_weights(s, bfloat16).dims(), number_type(bfloat16), memory::format_tag::any);
    memory::desc bias({s.co}, number_type(false), memory::format_tag::a);
    post_ops after;
    if (s.add) after.append_sum(1.f);
    if (s.relu) after.append_eltwise(1.f, algorithm::eltwise_relu, 0.f, 0.f);
    primitive_attr attributes;
    attributes.set_post_ops(after);
    const memory::dims strides{s.stride, s.stride}, pads{s.pad(), s.pad()};
    convolution_forward::desc description(prop_kind::forward_inference, algorithm::convolution_direct, in, weights,
                                          bias, out, strides, pads, pads);
    return convolution_forward::primitive_desc(description, attributes, cpu());
}

template <class Description>
inline bool is_slow(const Description& description) {
    const std::string name = description.impl_info_str();
    return name.find("ref") != std::string::npos || name.find("gemm") != std::string::npos;
}

// The first implementation that is made for this processor; describe(nhwc, bfloat16) asks oneDNN. Not every one takes
// NHWC: a reorder before and after is cheaper than a slow one. Where there is none for bfloat16, float32 multiplies the
// numbers that were rounded to it.
template <class Describe>
inline auto first_fast(bool bfloat16, const Describe& describe) -> decltype(describe(true, false)) {
    for (const bool half : {true, false})
        for (const bool nhwc : {true, false}) {
            if (half && !bfloat16) continue;
            try {
                auto description = describe(nhwc, half);
                if (!is_slow(description)) return description;
            } catch (const dnnl::error&) {  // nothing at all in bfloat16 on an older processor
                if (!half) throw;
            }
        }
    return describe(true, false);
}

inline std::shared_ptr<Convolution> make_convolution(const ConvShape& s) {
    using namespace dnnl;
    const Threads threads(s);
    const auto description = first_fast(s.bfloat16, [&](bool nhwc, bool half) { return describe(s, nhwc, half); });
    auto c = std::make_shared<Convolution>();
    c->run = convolution_forward(description);
    c->weights_layout = description.weights_desc();
    c->weights = memory(description.weights_desc(), cpu(), DNNL_MEMORY_NONE);
    c->bias = memory(description.bias_desc(), cpu(), DNNL_MEMORY_NONE);
    const auto in = s.in_map(s.bfloat16), out = s.out_map(s.out_bfloat16);
    c->outer_in = memory(in, cpu(), DNNL_MEMORY_NONE);
    c->outer_out = memory(out, cpu(), DNNL_MEMORY_NONE);
    c->reorder_in = description.src_desc() != in;
    c->reorder_out = description.dst_desc() != out;
    c->slow = is_slow(description);
    if (c->reorder_in) {
        c->inner_in = memory(description.src_desc(), cpu(), DNNL_MEMORY_NONE);
        c->to_inner = reorder(c->outer_in, c->inner_in);
    }
    if (c->reorder_out) {
        c->inner_out = memory(description.dst_desc(), cpu(), DNNL_MEMORY_NONE);
        c->to_outer = reorder(c->inner_out, c->outer_out);
    }
    return c;
}

// What was made for a key; the least recently used one goes when there are too many. The caller holds the lock.
template <class Made, class Make>
inline std::shared_ptr<Made> remembered(const std::vector<int>& key, const Make& make) {
    typedef std::pair<std::vector<int>, std::shared_ptr<Made>> Entry;
    static std::list<Entry> by_age;  // newest first
    static std::map<std::vector<int>, typename std::list<Entry>::iterator> by_key;
    const auto found = by_key.find(key);
    if (found != by_key.end()) {
        by_age.splice(by_age.begin(), by_age, found->second);
        return by_age.front().second;
    }
    by_age.emplace_front(key, make());
    by_key[key] = by_age.begin();
    if (by_age.size() > kMaxPrimitives) {
        by_key.erase(by_age.back().first);
        by_age.pop_back();
    }
    return by_age.front().second;
}

inline std::shared_ptr<Convolution> find_convolution(const ConvShape& shape) {
    return remembered<Convolution>(shape.key(), [&] { return make_convolution(shape); });
}

// What identifies the layout of packed weights, as 24 bits, which a float32 holds exactly.
inline int layout_hash(const dnnl::memory::desc& layout) {
    const dnnl_memory_desc_t& d = layout.data;
    if (d.format_kind != dnnl_blocked) throw std::runtime_error("oneDNN packs these weights in an unknown layout");
    const dnnl_blocking_desc_t& b = d.format_desc.blocking;
    uint64_t hash = 1469598103934665603ull;
    const auto add = [&hash](int64_t value) { hash = (hash ^ (uint64_t)value) * 1099511628211ull; };
    add(d.data_type);
    for (int i = 0; i < d.ndims; i++) {
        add(d.padded_dims[i]);
        add(b.strides[i]);
    }
    for (int i = 0; i < b.inner_nblks; i++) {
        add(b.inner_blks[i]);
        add(b.inner_idxs[i]);
    }
    return (int)((hash ^ (hash >> 24) ^ (hash >> 48)) & 0xffffff);
}

// answer[0]: floats that packed weights take (in units of 16); answer[1]: hash of their layout;
// answer[2]: 1 if input or output is reordered; answer[3]: 1 if only a slow implementation exists.
inline void plan_convolution(const ConvShape& shape, float* answer) {
    std::lock_guard<std::mutex> guard(lock());
    const auto c = find_convolution(shape);
    answer[0] = (float)((c->weights_layout.get_size() + 63) / 64);
    answer[1] = (float)layout_hash(c->weights_layout);
    answer[2] = c->reorder_in || c->reorder_out;
    answer[3] = c->slow;
}

inline void check_packed(const Convolution& c, int64_t floats) {
    if (c.weights_layout.get_size() > (size_t)floats * sizeof(float))
        throw std::runtime_error("packed weights are smaller than the convolution needs");
}

inline void pack_weights(const ConvShape& shape, float* plain, float* packed, int64_t floats) {
    std::lock_guard<std::mutex> guard(lock());
    const auto c = find_convolution(shape);
    check_packed(*c, floats);
    dnnl::memory from(plain_weights(shape, false), cpu(), plain), to(c->weights_layout, cpu(), packed);
    dnnl::stream stream(cpu());
    if (shape.bfloat16) {  // rounded first, as float32 may be what multiplies them
        dnnl::memory rounded(plain_weights(shape, true), cpu());
        dnnl::reorder(from, rounded).execute(stream, from, rounded);
        from = rounded;
    }
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
}

inline void place_addend(const ConvShape& s, Addend kind, const void* addend, int addend_h, int addend_w, void* out) {
    const int oh = s.oh(), ow = s.ow();
    const int64_t pixel = (int64_t)s.co * (s.out_bfloat16 ? 2 : 4), row = ow * pixel;  // bytes
    const char* source = static_cast<const char*>(addend);
#pragma omp parallel for collapse(2)
    for (int n = 0; n < s.n; n++)
        for (int y = 0; y < oh; y++) {
            char* to = static_cast<char*>(out) + ((int64_t)n * oh + y) * row;
            if (kind == kSameSize) {
                std::memcpy(to, source + ((int64_t)n * oh + y) * row, row);
                continue;
            }
            const char* from = source + ((int64_t)n * addend_h + std::min(y / 2, addend_h - 1)) * addend_w * pixel;
            for (int x = 0; x < ow; x++)
                std::memcpy(to + x * pixel, from + std::min(x / 2, addend_w - 1) * pixel, pixel);
        }
}

inline void convolve(const ConvShape& shape, void* in, float* packed, int64_t packed_floats, float* bias, Addend kind,
                     const void* addend, int addend_h, int addend_w, void* out) {
    std::lock_guard<std::mutex> guard(lock());
    static std::vector<char> in_buffer, out_buffer;
    const auto c = find_convolution(shape);
    check_packed(*c, packed_floats);
    dnnl::stream stream(cpu());
    c->outer_in.set_data_handle(in);
    c->outer_out.set_data_handle(out);
    dnnl::memory from = c->outer_in, to = c->outer_out;
    if (c->reorder_in) {
        c->inner_in.set_data_handle(scratch(in_buffer, c->inner_in.get_desc().get_size()));
        c->to_inner.execute(stream, c->outer_in, c->inner_in);
        from = c->inner_in;
    }
    if (kind != kNothing) place_addend(shape, kind, addend, addend_h, addend_w, out);
    if (c->reorder_out) {
        c->inner_out.set_data_handle(scratch(out_buffer, c->inner_out.get_desc().get_size()));
        to = c->inner_out;
        if (kind != kNothing) {
            dnnl::reorder(c->outer_out, c->inner_out).execute(stream, c->outer_out, c->inner_out);
        }
    }
    c->weights.set_data_handle(packed);
    c->bias.set_data_handle(bias);
    c->run.execute(stream, {{DNNL_ARG_SRC, from}, {DNNL_ARG_WEIGHTS, c->weights}, {DNNL_ARG_BIAS, c->bias},
                            {DNNL_ARG_DST, to}});
    if (c->reorder_out) c->to_outer.execute(stream, c->inner_out, c->outer_out);
    stream.wait();
}

}  // namespace jrdp_fast
