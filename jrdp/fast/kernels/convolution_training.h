// A convolution of maps in bfloat16 as training needs it: forward, and the gradients of its input and of its weights, each
// summed in float32. Maps are NHWC. Weights come as float32, as they change at every step, and are rounded here.
#pragma once
#include "convolution.h"

namespace jrdp_fast {

// Of first and second -> result: input and weights -> output; gradient of the output and weights -> of the input; input
// and gradient of the output -> of the weights.
enum Direction { kForward = 0, kInputGradient = 1, kWeightGradient = 2 };

struct TrainingConvolution {
    dnnl::primitive run;
    int names[3];                 // oneDNN's for first, second and result
    dnnl::memory::desc outer[3];  // as they come and go
    dnnl::memory::desc inner[3];  // as the implementation wants them
};

inline std::shared_ptr<TrainingConvolution> make_training_convolution(const ConvShape& s, Direction direction) {
    using namespace dnnl;
    const Threads threads(s);
    const memory::dims strides{s.stride, s.stride}, pads{s.pad(), s.pad()};
    const auto how = algorithm::convolution_direct;
    const auto map = [](const memory::desc& map, bool nhwc) {
        return nhwc ? map : memory::desc(map.dims(), map.data_type(), memory::format_tag::any);
    };
    const auto weights = [&](bool half) {
        return memory::desc(plain_weights(s, half).dims(), number_type(half), memory::format_tag::any);
    };
    const auto forward = [&](bool nhwc, bool half) {
        return convolution_forward::primitive_desc({prop_kind::forward_training, how, map(s.in_map(half), nhwc), weights(half),
                                                    map(s.out_map(false), nhwc), strides, pads, pads}, cpu());
    };
    const auto input_gradient = [&](bool nhwc, bool half) {
        return convolution_backward_data::primitive_desc({how, map(s.in_map(false), nhwc), weights(half),
                                                          map(s.out_map(half), nhwc), strides, pads, pads}, cpu(),
                                                         forward(nhwc, half));
    };
    const auto weight_gradient = [&](bool nhwc, bool half) {
        return convolution_backward_weights::primitive_desc({how, map(s.in_map(half), nhwc), weights(false),
                                                             map(s.out_map(half), nhwc), strides, pads, pads}, cpu(),
                                                            forward(nhwc, half));
    };
    const auto plain = plain_weights(s, false);
    auto c = std::make_shared<TrainingConvolution>();
    if (direction == kForward) {
        const auto d = first_fast(true, forward);
        *c = {convolution_forward(d),
              {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST},
              {s.in_map(true), plain, s.out_map(false)},
              {d.src_desc(), d.weights_desc(), d.dst_desc()}};
    } else if (direction == kInputGradient) {
        const auto d = first_fast(true, input_gradient);
        *c = {convolution_backward_data(d),
              {DNNL_ARG_DIFF_DST, DNNL_ARG_WEIGHTS, DNNL_ARG_DIFF_SRC},
              {s.out_map(true), plain, s.in_map(false)},
              {d.diff_dst_desc(), d.weights_desc(), d.diff_src_desc()}};
    } else {
        // For strided convolutions of maps one pixel wide, oneDNN 2.6 multiplies zeros of the padding with memory that nobody
        // has written, where there may be no number. Maps smaller than the kernel take no time: float32 multiplies them.
        const auto d = first_fast(s.h >= s.kernel && s.w >= s.kernel, weight_gradient);
        *c = {convolution_backward_weights(d),
              {DNNL_ARG_SRC, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_WEIGHTS},
              {s.in_map(true), s.out_map(true), plain},
              {d.src_desc(), d.diff_dst_desc(), d.diff_weights_desc()}};
    }
    return c;
}

inline void convolve_for_training(const ConvShape& s, Direction direction, void* first, void* second, float* result) {
    using namespace dnnl;
    std::lock_guard<std::mutex> guard(lock());
    auto key = s.key();
    key.push_back(direction);
    const auto c = remembered<TrainingConvolution>(key, [&] { return make_training_convolution(s, direction); });
    static std::vector<char> buffers[3], for_rounding;
    stream stream(cpu());
    void* given[3] = {first, second, result};
    memory outer[3], inner[3];
    for (int i = 0; i < 3; i++) {
        inner[i] = outer[i] = memory(c->outer[i], cpu(), given[i]);
        if (c->inner[i] == c->outer[i]) continue;
        inner[i] = memory(c->inner[i], cpu(), scratch(buffers[i], c->inner[i].get_size()));
        if (i == 2) continue;
        if (direction != kWeightGradient && i == 1) {  // the weights, which float32 may be what multiplies
            const auto half = plain_weights(s, true);
            memory rounded(half, cpu(), scratch(for_rounding, half.get_size()));
            reorder(outer[i], rounded).execute(stream, outer[i], rounded);
            outer[i] = rounded;
        }
        reorder(outer[i], inner[i]).execute(stream, outer[i], inner[i]);
    }
    c->run.execute(stream, {{c->names[0], inner[0]}, {c->names[1], inner[1]}, {c->names[2], inner[2]}});
    if (c->inner[2] != c->outer[2]) reorder(inner[2], outer[2]).execute(stream, inner[2], outer[2]);
    stream.wait();
}

}  // namespace jrdp_fast
