// RoIAlign over several feature maps at once: the arithmetic that the CPU and CUDA kernels share.
//
// As released: a box (batch index, x1, y1, x2, y2) in network pixels is scaled to feature pixels without a half-pixel
// shift, is at least one feature pixel wide and high, and is cut into size x size bins. A bin is the mean of grid_y x
// grid_x bilinear samples at the centres of its equal parts. A sample outside [-1, length] counts as zero; one between
// the border and that takes the border's value.
#pragma once
#include <cmath>
#include "host_device.h"

const int kMaxRoiLevels = 8;

// One feature map [images, channels, height, width] and what is pooled from it [rois, channels, size, size]. In the
// backward pass both pointers are to the gradients.
struct RoiLevel {
    float* feature;
    float* pooled;
    int height, width, size;
    float scale;
};

struct RoiLevels {
    RoiLevel level[kMaxRoiLevels];
    int count, rois, images, channels;
    int sampling;  // samples a bin in each direction; 0: ceil(bin length in feature pixels)
};

inline RoiLevels roi_levels(int rois, int images, int channels, int sampling) {
    RoiLevels levels = {};
    levels.rois = rois;
    levels.images = images;
    levels.channels = channels;
    levels.sampling = sampling;
    return levels;
}

inline void roi_add_level(RoiLevels& levels, float* feature, float* pooled, int height, int width, int size,
                          double scale) {
    RoiLevel level = {feature, pooled, height, width, size, (float)scale};
    levels.level[levels.count++] = level;
}

// Beyond 2^24 a float32 no longer tells pixels apart, and sample counts would overflow.
HOST_DEVICE bool roi_is_usable(const float* roi, int images) {
    for (int i = 0; i < 5; i++)
        if (!is_finite_bits(roi[i]) || roi[i] > 16777216.0f || roi[i] < -16777216.0f) return false;
    return roi[0] >= 0.0f && roi[0] < (float)images;
}

// The bins of a box along one axis of a feature map.
struct RoiAxis {
    float start, bin;  // feature pixels
    int grid;          // samples a bin
};

HOST_DEVICE RoiAxis roi_axis(float low, float high, float scale, int size, int sampling) {
    RoiAxis axis;
    axis.start = multiply_exact(low, scale);
    float length = add_exact(multiply_exact(high, scale), -axis.start);
    length = length > 1.0f ? length : 1.0f;
    axis.bin = divide_exact(length, (float)size);
    axis.grid = sampling > 0 ? sampling : (int)ceilf(axis.bin);
    return axis;
}

HOST_DEVICE float roi_sample(const RoiAxis& axis, int bin, int sample) {
    const float offset = divide_exact(multiply_exact(sample + 0.5f, axis.bin), (float)axis.grid);
    return add_exact(add_exact(axis.start, multiply_exact((float)bin, axis.bin)), offset);
}

// The two pixels that a sample reads along one axis, and how much of each: nothing of the border's if it lies outside.
struct RoiTap {
    int low, high;
    float low_weight, high_weight;
};

HOST_DEVICE RoiTap roi_tap(float position, int length) {
    const bool outside = position < -1.0f || position > (float)length;
    if (position < 0.0f) position = 0.0f;
    RoiTap tap;
    tap.low = (int)position;
    if (tap.low >= length - 1) {
        tap.low = tap.high = length - 1;
        tap.low_weight = outside ? 0.0f : 1.0f;
        tap.high_weight = 0.0f;
        return tap;
    }
    tap.high = tap.low + 1;
    tap.high_weight = outside ? 0.0f : position - tap.low;
    tap.low_weight = outside ? 0.0f : 1.0f - tap.high_weight;
    return tap;
}

// How much of `pixel` the samples of one bin read along one axis: the two taps above, seen from the pixel.
HOST_DEVICE float roi_pixel_weight(const RoiAxis& axis, int bin, int pixel, int length) {
    float weight = 0.0f;
    for (int sample = 0; sample < axis.grid; sample++) {
        float position = roi_sample(axis, bin, sample);
        if (position < -1.0f || position > (float)length) continue;
        position = position < 0.0f ? 0.0f : position > length - 1.0f ? length - 1.0f : position;
        const float near = 1.0f - fabsf(position - pixel);
        if (near > 0.0f) weight += near;
    }
    return weight;
}

// The bins [first, last] whose samples can read `pixel`: those that reach into [pixel - 1, pixel + 1]; empty if
// first > last. Slightly too wide rather than too narrow: bins outside get weight zero.
HOST_DEVICE void roi_bins_near(const RoiAxis& axis, int pixel, int size, int& first, int& last) {
    const float slack = 1e-3f;
    const float low = ceilf(divide_exact(pixel - 1.0f - axis.start, axis.bin) - 1.0f - slack);
    const float high = floorf(divide_exact(pixel + 1.0f - axis.start, axis.bin) + slack);
    first = low < 0.0f ? 0 : low > (float)size ? size : (int)low;
    last = high < -1.0f ? -1 : high > size - 1.0f ? size - 1 : (int)high;
}
