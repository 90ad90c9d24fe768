// Maps of several levels on one canvas, so that a convolution that all of them share is one launch; CUDA only.
//
// Each level is a region in the upper left corner of a cell; the cells cover the canvas. What is not in a region is zero and
// stays zero, so that a 3x3 convolution sees around each level what padding would put there. Cells are at least a pixel wider
// and higher than their regions, except at the canvas's edge.
//
// Floors at 320x480, one image ([1, 256, 41, 91], 3.8 MB): placing reads and writes 7 MB, 2 us on an H100; a tower's norm
// ([1, 128, 41, 91]) 3.8 MB, 1 us; they cost what their launches do, about 3 us each, in place of five times as many. Derived,
// not measured.
#pragma once
#include "cuda_launch.h"
#include "host_device.h"

const int kCanvasMaxLevels = 8;
const int kCanvasThreads = 256;

struct CanvasRegion {
    int top, left, height, width, cell_height, cell_width;
};

struct Canvas {
    CanvasRegion region[kCanvasMaxLevels];
    int count, height, width;
};

static inline Canvas canvas_of(int height, int width) {
    Canvas canvas;
    canvas.count = 0;
    canvas.height = height;
    canvas.width = width;
    return canvas;
}

static inline void canvas_add(Canvas& canvas, double top, double left, double height, double width, double cell_height,
                              double cell_width) {
    canvas.region[canvas.count++] = {(int)top, (int)left, (int)height, (int)width, (int)cell_height, (int)cell_width};
}

struct CanvasMaps {
    float* map[kCanvasMaxLevels];  // of each level
};

// pointers[level]. Looked up by comparing: an array among a kernel's arguments that is indexed by what only the thread knows
// would be copied to every thread's stack.
template <typename T>
HOST_DEVICE T* canvas_pick(T* const (&pointers)[kCanvasMaxLevels], int level) {
    T* found = pointers[0];
#pragma unroll
    for (int k = 1; k < kCanvasMaxLevels; k++) found = k == level ? pointers[k] : found;
    return found;
}

// The level whose region holds the pixel, or -1.
HOST_DEVICE int canvas_level(const Canvas& canvas, int row, int column) {
    for (int level = 0; level < canvas.count; level++) {
        const CanvasRegion& region = canvas.region[level];
        const int y = row - region.top, x = column - region.left;
        if (y >= 0 && y < region.height && x >= 0 && x < region.width) return level;
    }
    return -1;
}

// One thread a pixel of the canvas: from the maps, or back to them.
template <bool to_canvas>
__global__ void __launch_bounds__(kCanvasThreads)
    canvas_copy_kernel(Canvas layout, CanvasMaps maps, long count, float* __restrict__ canvas) {
    const long i = (long)blockIdx.x * kCanvasThreads + threadIdx.x;
    if (i >= count) return;
    const int area = layout.height * layout.width;
    const int pixel = (int)(i % area), row = pixel / layout.width, column = pixel % layout.width;
    const int level = canvas_level(layout, row, column);
    if (level < 0) {
        if (to_canvas) canvas[i] = 0;
        return;
    }
    const CanvasRegion& region = layout.region[level];
    const size_t place = (size_t)(i / area) * region.height * region.width +
                         (size_t)(row - region.top) * region.width + (column - region.left);
    float* map = canvas_pick(maps.map, level);
    if (to_canvas) canvas[i] = map[place];
    else map[place] = canvas[i];
}

// maps [planes, h, w] of each level, canvas [planes, H, W]
static inline void canvas_place(const Canvas& layout, const CanvasMaps& maps, int planes, float* canvas) {
    const long count = (long)planes * layout.height * layout.width;
    if (count == 0) return;
    CUDA_LAUNCH(canvas_copy_kernel<true>, (int)((count + kCanvasThreads - 1) / kCanvasThreads), kCanvasThreads, layout,
                maps, count, canvas);
}

static inline void canvas_take(const Canvas& layout, const CanvasMaps& maps, int planes, const float* canvas) {
    const long count = (long)planes * layout.height * layout.width;
    if (count == 0) return;
    CUDA_LAUNCH(canvas_copy_kernel<false>, (int)((count + kCanvasThreads - 1) / kCanvasThreads), kCanvasThreads, layout,
                maps, count, const_cast<float*>(canvas));
}

// The sums of three numbers over the block, in every thread, in an order that is always the same.
__device__ __forceinline__ void canvas_reduce(float& a, float& b, float& c, float (*shared)[3]) {
    const int thread = threadIdx.x;
    __syncthreads();
    shared[thread][0] = a;
    shared[thread][1] = b;
    shared[thread][2] = c;
    __syncthreads();
    for (int half = kCanvasThreads / 2; half > 0; half /= 2) {
        if (thread < half)
            for (int k = 0; k < 3; k++) shared[thread][k] += shared[thread + half][k];
        __syncthreads();
    }
    a = shared[0][0];
    b = shared[0][1];
    c = shared[0][2];
}

// Group norm and ReLU of x + shift, each level by itself. Block: a group of a level of an image; it writes the level's cell.
__global__ void __launch_bounds__(kCanvasThreads)
    canvas_norm_forward_kernel(Canvas layout, const float* __restrict__ x, const float* __restrict__ shift,
                               const float* __restrict__ weight, const float* __restrict__ bias, int share, int groups,
                               float eps, float* __restrict__ y, float* __restrict__ means,
                               float* __restrict__ scales) {
    __shared__ float shared[kCanvasThreads][3];
    const int item = blockIdx.x, thread = threadIdx.x;
    const int group = item % groups, level = item / groups % layout.count, image = item / groups / layout.count;
    const CanvasRegion region = layout.region[level];
    const int area = region.height * region.width, count = share * area, plane = layout.height * layout.width;
    const int corner = region.top * layout.width + region.left;
    const size_t first = (size_t)(image * groups + group) * share * plane;
    auto value = [&](int k) {
        const int c = k / area, pixel = k % area;
        return x[first + (size_t)c * plane + corner + pixel / region.width * layout.width + pixel % region.width] +
               shift[group * share + c];
    };
    float sum = 0, unused = 0, unused_too = 0;
    for (int k = thread; k < count; k += kCanvasThreads) sum += value(k);
    canvas_reduce(sum, unused, unused_too, shared);
    const float mean = sum / count;
    float rest = 0, squares = 0;
    for (int k = thread; k < count; k += kCanvasThreads) {
        const float d = value(k) - mean;
        rest += d;
        squares += d * d;
    }
    canvas_reduce(rest, squares, unused_too, shared);
    const float correction = rest / count, variance = squares / count - correction * correction;
    const float scale = 1.0f / sqrtf((variance > 0 ? variance : 0) + eps);
    if (thread == 0) {
        means[item] = mean + correction;
        scales[item] = scale;
    }
    const int cell = region.cell_height * region.cell_width;
    for (int k = thread; k < share * cell; k += kCanvasThreads) {
        const int c = k / cell, row = k % cell / region.cell_width, column = k % cell % region.cell_width;
        const int channel = group * share + c;
        const size_t place = first + (size_t)c * plane + corner + row * layout.width + column;
        float normal = 0;
        if (row < region.height && column < region.width) {
            normal = (x[place] + shift[channel] - mean - correction) * (weight[channel] * scale) + bias[channel];
            normal = normal < 0 ? 0.0f : normal;
        }
        y[place] = normal;
    }
}

// The gradients by x (zero outside of the regions) and, a number for each channel of each level of each image, of shift,
// weight and bias: sums [3, N * levels, C].
__global__ void __launch_bounds__(kCanvasThreads)
    canvas_norm_backward_kernel(Canvas layout, const float* __restrict__ dy, const float* __restrict__ x,
                                const float* __restrict__ y, const float* __restrict__ shift,
                                const float* __restrict__ weight, const float* __restrict__ means,
                                const float* __restrict__ scales, int share, int groups, int images,
                                float* __restrict__ dx, float* __restrict__ sums) {
    __shared__ float shared[kCanvasThreads][3];
    const int item = blockIdx.x, thread = threadIdx.x;
    const int group = item % groups, level = item / groups % layout.count, image = item / groups / layout.count;
    const CanvasRegion region = layout.region[level];
    const int area = region.height * region.width, count = share * area, plane = layout.height * layout.width;
    const int corner = region.top * layout.width + region.left;
    const size_t first = (size_t)(image * groups + group) * share * plane;
    const float mean = means[item], scale = scales[item];
    const float *own_weight = weight + group * share, *own_shift = shift + group * share;
    const int rows = images * layout.count, channels = groups * share;
    float* of_shift = sums + (size_t)(image * layout.count + level) * channels + group * share;
    float *of_weight = of_shift + (size_t)rows * channels, *of_bias = of_weight + (size_t)rows * channels;
    float plain = 0, along = 0;
    for (int c = 0; c < share; c++) {
        float sum = 0, product = 0, centred = 0;
        for (int k = thread; k < area; k += kCanvasThreads) {
            const size_t place =
                first + (size_t)c * plane + corner + k / region.width * layout.width + k % region.width;
            const float given = y[place] > 0 ? dy[place] : 0.0f, d = x[place] + own_shift[c] - mean;
            sum += given;
            product += given * d;
            centred += d;
        }
        canvas_reduce(sum, product, centred, shared);
        if (thread == 0) {
            of_bias[c] = sum;
            of_weight[c] = product * scale;
            of_shift[c] = centred;
        }
        plain += own_weight[c] * sum;
        along += own_weight[c] * product * scale;
    }
    const float constant = -scale * plain / count, slope = -scale * scale * along / count;
    if (thread == 0)
        for (int c = 0; c < share; c++)
            of_shift[c] = scale * own_weight[c] * of_bias[c] + slope * of_shift[c] + constant * area;
    const int cell = region.cell_height * region.cell_width;
    for (int k = thread; k < share * cell; k += kCanvasThreads) {
        const int c = k / cell, row = k % cell / region.cell_width, column = k % cell % region.cell_width;
        const size_t place = first + (size_t)c * plane + corner + row * layout.width + column;
        float gradient = 0;
        if (row < region.height && column < region.width) {
            const float given = y[place] > 0 ? dy[place] : 0.0f;
            gradient = scale * own_weight[c] * given + slope * (x[place] + own_shift[c] - mean) + constant;
        }
        dx[place] = gradient;
    }
}

// The three gradients of a channel from its `sums`.
__global__ void __launch_bounds__(kCanvasThreads)
    canvas_norm_total_kernel(const float* __restrict__ sums, int rows, int channels, float* __restrict__ dshift,
                             float* __restrict__ dweight, float* __restrict__ dbias) {
    const int channel = blockIdx.x * kCanvasThreads + threadIdx.x;
    if (channel >= channels) return;
    float totals[3] = {0, 0, 0};
    for (int which = 0; which < 3; which++)
        for (int row = 0; row < rows; row++) totals[which] += sums[((size_t)which * rows + row) * channels + channel];
    dshift[channel] = totals[0];
    dweight[channel] = totals[1];
    dbias[channel] = totals[2];
}

// x, y [N, C, H, W]; statistics [2, N * levels * groups]: means, and 1 / sqrt(variance + eps).
static inline void canvas_norm_forward(const Canvas& layout, const float* x, const float* shift, const float* weight,
                                       const float* bias, int images, int channels, int groups, double eps, float* y,
                                       float* statistics) {
    const int items = images * layout.count * groups;
    if (items == 0) return;
    CUDA_LAUNCH(canvas_norm_forward_kernel, items, kCanvasThreads, layout, x, shift, weight, bias, channels / groups,
                groups, (float)eps, y, statistics, statistics + items);
}

static inline void canvas_norm_backward(const Canvas& layout, const float* dy, const float* x, const float* y,
                                        const float* shift, const float* weight, const float* statistics, int images,
                                        int channels, int groups, float* dx, float* dshift, float* dweight,
                                        float* dbias, float* sums) {
    const int items = images * layout.count * groups;
    if (items > 0)
        CUDA_LAUNCH(canvas_norm_backward_kernel, items, kCanvasThreads, layout, dy, x, y, shift, weight, statistics,
                    statistics + items, channels / groups, groups, images, dx, sums);
    CUDA_LAUNCH(canvas_norm_total_kernel, (channels + kCanvasThreads - 1) / kCanvasThreads, kCanvasThreads, sums,
                images * layout.count, channels, dshift, dweight, dbias);
}

// ---- from what the last convolutions of an FCOS head say to its answers ----

// Channels of an answer: logit, left, top, right, bottom, centerness.
const int kAnswers = 6;

struct CanvasAnswers {
    const float* scale[kCanvasMaxLevels];  // of the distances of each level, one number
    float *logits[kCanvasMaxLevels], *distances[kCanvasMaxLevels], *centerness[kCanvasMaxLevels];
};

struct CanvasPlace {
    int level, pixel;  // the pixel's number in its level
    int canvas;        // and its place in a plane of the canvas
};

HOST_DEVICE CanvasPlace canvas_location(const Canvas& layout, int location) {
    int level = 0;
    for (; location >= layout.region[level].height * layout.region[level].width; level++)
        location -= layout.region[level].height * layout.region[level].width;
    const CanvasRegion& region = layout.region[level];
    const int row = region.top + location / region.width, column = region.left + location % region.width;
    return {level, location, row * layout.width + column};
}

// One thread a location of an image. logits + bias, exp(scale * (distances + bias)), centerness + bias, each for every level
// and for all levels together, [N, c, L].
__global__ void __launch_bounds__(kCanvasThreads)
    canvas_answers_kernel(Canvas layout, CanvasAnswers answers, const float* __restrict__ cls,
                          const float* __restrict__ box, const float* __restrict__ center,
                          const float* __restrict__ cls_bias, const float* __restrict__ box_bias,
                          const float* __restrict__ center_bias, int images, int locations,
                          float* __restrict__ all_logits, float* __restrict__ all_distances,
                          float* __restrict__ all_centerness) {
    const int i = blockIdx.x * kCanvasThreads + threadIdx.x;
    if (i >= images * locations) return;
    const int image = i / locations, location = i % locations, plane = layout.height * layout.width;
    const CanvasPlace at = canvas_location(layout, location);
    const int area = layout.region[at.level].height * layout.region[at.level].width;
    const float logit = cls[(size_t)image * plane + at.canvas] + cls_bias[0];
    const float centerness = center[(size_t)image * plane + at.canvas] + center_bias[0];
    all_logits[i] = logit;
    all_centerness[i] = centerness;
    canvas_pick(answers.logits, at.level)[(size_t)image * area + at.pixel] = logit;
    canvas_pick(answers.centerness, at.level)[(size_t)image * area + at.pixel] = centerness;
    const float scale = canvas_pick(answers.scale, at.level)[0];
    for (int k = 0; k < 4; k++) {
        const float distance = expf((box[((size_t)image * 4 + k) * plane + at.canvas] + box_bias[k]) * scale);
        all_distances[((size_t)image * 4 + k) * locations + location] = distance;
        canvas_pick(answers.distances, at.level)[((size_t)image * 4 + k) * area + at.pixel] = distance;
    }
}

// One thread a pixel of an image's canvas: the gradients by what the convolutions said, zero outside of the regions.
__global__ void __launch_bounds__(kCanvasThreads)
    canvas_answers_backward_kernel(Canvas layout, CanvasAnswers answers, const float* __restrict__ dlogits,
                                   const float* __restrict__ ddistances, const float* __restrict__ dcenterness,
                                   const float* __restrict__ distances, int images, int locations,
                                   float* __restrict__ dcls, float* __restrict__ dbox, float* __restrict__ dcenter) {
    const int i = blockIdx.x * kCanvasThreads + threadIdx.x, plane = layout.height * layout.width;
    if (i >= images * plane) return;
    const int image = i / plane, pixel = i % plane, row = pixel / layout.width, column = pixel % layout.width;
    const int level = canvas_level(layout, row, column);
    if (level < 0) {
        dcls[i] = dcenter[i] = 0;
        for (int k = 0; k < 4; k++) dbox[((size_t)image * 4 + k) * plane + pixel] = 0;
        return;
    }
    int location = (row - layout.region[level].top) * layout.region[level].width + column - layout.region[level].left;
    for (int before = 0; before < level; before++)
        location += layout.region[before].height * layout.region[before].width;
    dcls[i] = dlogits[(size_t)image * locations + location];
    dcenter[i] = dcenterness[(size_t)image * locations + location];
    for (int k = 0; k < 4; k++) {
        const size_t place = ((size_t)image * 4 + k) * locations + location;
        dbox[((size_t)image * 4 + k) * plane + pixel] = ddistances[place] * distances[place] * canvas_pick(answers.scale, level)[0];
    }
}

struct CanvasSums {
    float *cls_bias, *box_bias, *center_bias;  // [1], [4], [1]
    float* scale[kCanvasMaxLevels];            // [1]
};

// A block for each bias and each scale: its gradient, summed in an order that is always the same.
__global__ void __launch_bounds__(kCanvasThreads)
    canvas_answers_sums_kernel(Canvas layout, CanvasAnswers answers, const float* __restrict__ dlogits,
                               const float* __restrict__ ddistances, const float* __restrict__ dcenterness,
                               const float* __restrict__ distances, const float* __restrict__ box,
                               const float* __restrict__ box_bias, int images, int locations, CanvasSums sums) {
    __shared__ float shared[kCanvasThreads][3];
    const int which = blockIdx.x, thread = threadIdx.x, plane = layout.height * layout.width;
    float sum = 0, unused = 0, unused_too = 0;
    if (which == 0 || which == 5) {
        const float* given = which == 0 ? dlogits : dcenterness;
        for (int i = thread; i < images * locations; i += kCanvasThreads) sum += given[i];
    } else if (which < 5) {
        for (int i = thread; i < images * locations; i += kCanvasThreads) {
            const int image = i / locations, location = i % locations;
            const size_t place = ((size_t)image * 4 + which - 1) * locations + location;
            sum += ddistances[place] * distances[place] * canvas_pick(answers.scale, canvas_location(layout, location).level)[0];
        }
    } else {
        int start = 0;
        for (int level = 0; level < which - kAnswers; level++)
            start += layout.region[level].height * layout.region[level].width;
        const int area = layout.region[which - kAnswers].height * layout.region[which - kAnswers].width;
        for (int i = thread; i < images * 4 * area; i += kCanvasThreads) {
            const int row = i / area, location = start + i % area;  // row: of image and distance
            const float raw = box[(size_t)row * plane + canvas_location(layout, location).canvas] + box_bias[row % 4];
            sum += ddistances[(size_t)row * locations + location] * distances[(size_t)row * locations + location] * raw;
        }
    }
    canvas_reduce(sum, unused, unused_too, shared);
    if (thread) return;
    if (which == 0) sums.cls_bias[0] = sum;
    else if (which == 5) sums.center_bias[0] = sum;
    else if (which < 5) sums.box_bias[which - 1] = sum;
    else canvas_pick(sums.scale, which - kAnswers)[0] = sum;
}

static inline int canvas_locations(const Canvas& layout) {
    int locations = 0;
    for (int level = 0; level < layout.count; level++)
        locations += layout.region[level].height * layout.region[level].width;
    return locations;
}

static inline void canvas_answers(const Canvas& layout, const CanvasAnswers& answers, const float* cls,
                                  const float* box, const float* center, const float* cls_bias, const float* box_bias,
                                  const float* center_bias, int images, float* all_logits, float* all_distances,
                                  float* all_centerness) {
    const int locations = canvas_locations(layout), count = images * locations;
    if (count == 0) return;
    CUDA_LAUNCH(canvas_answers_kernel, (count + kCanvasThreads - 1) / kCanvasThreads, kCanvasThreads, layout, answers,
                cls, box, center, cls_bias, box_bias, center_bias, images, locations, all_logits, all_distances,
                all_centerness);
}

static inline void canvas_answers_backward(const Canvas& layout, const CanvasAnswers& answers, const float* dlogits,
                                           const float* ddistances, const float* dcenterness, const float* distances,
                                           const float* box, const float* box_bias, int images, float* dcls,
                                           float* dbox, float* dcenter, const CanvasSums& sums) {
    const int locations = canvas_locations(layout), count = images * layout.height * layout.width;
    if (count > 0)
        CUDA_LAUNCH(canvas_answers_backward_kernel, (count + kCanvasThreads - 1) / kCanvasThreads, kCanvasThreads,
                    layout, answers, dlogits, ddistances, dcenterness, distances, images, locations, dcls, dbox,
                    dcenter);
    CUDA_LAUNCH(canvas_answers_sums_kernel, kAnswers + layout.count, kCanvasThreads, layout, answers, dlogits,
                ddistances, dcenterness, distances, box, box_bias, images, locations, sums);
}
