// RoIAlign in CUDA: one launch for all levels, forward and backward.
//
// Floor, at the network's real sizes (100 boxes, 128 channels, 320x480: maps of 40x60, 20x30, 10x15, 5x8, 3x4 pixels;
// 32, 16, 8, 4, 4 bins a side; 2x2 samples a bin):
//   bins a box and channel 1,376, so 17.6 M outputs; maps 3,202 pixels a channel, so 0.41 M inputs
//   bytes  forward writes 70.5 MB and reads 1.6 MB once: 72.1 MB of memory traffic (backward the reverse)
//   flops  4 samples x 4 pixels x multiply-add = 32 an output: 0.56 G
//   time   an H100 (3.35 TB/s, 67 TFLOP/s): 22 us for the bytes, 8 us for the flops: bound by writing the result
// Besides, each output reads 16 values that hit L1 or L2 (the maps fit in L2): 1.1 GB through L1, about 40 us at the
// 28 TB/s of 132 L1 caches. So forward should reach 22/60 or about 0.35 of the memory floor; aim at under 65 us.
// Backward by gathering reads each of the 17.6 M gradients from the up to 16 pixels it goes to (neighbouring pixels
// share them in L1) and works out two weights for every eight channels: aim at under 150 us. Backward with atomics
// issues 282 M float additions into 0.41 M addresses, which L2 serves at roughly 1 T/s at best and less where lanes
// meet at one address: 280 us and more. That is why gathering is the default. All of this is derived, none of it
// measured.
#pragma once
#include <stdexcept>
#include "cuda_launch.h"
#include "roi_align.h"

const int kRoiChannels = 8;  // channels a thread carries: what a bin's sample positions and weights are shared over
const int kRoiThreads = 256;
const int kRoiPixels = 32;   // pixels and slices of boxes of a block of the gathering backward pass
const int kRoiSlices = 8;
static_assert(kRoiSlices == kRoiChannels, "in the final sum slice s writes channel s");

inline __host__ __device__ int roi_groups(const RoiLevels& levels) {
    return (levels.channels + kRoiChannels - 1) / kRoiChannels;
}

// One thread's work in the forward and the atomic backward pass: one bin of one box on one level, eight channels.
// Neighbouring threads take neighbouring bins: they write consecutive addresses and read nearby ones.
struct RoiItem {
    int level, roi, channel, bin;
};

inline __device__ RoiItem roi_item(const RoiLevels& levels, int item) {
    RoiItem at;
    at.level = 0;
    const int groups = roi_groups(levels);
    int bins = 0;
    for (; at.level < levels.count; at.level++) {
        bins = levels.level[at.level].size * levels.level[at.level].size;
        const int here = bins * groups * levels.rois;
        if (item < here) break;
        item -= here;
    }
    at.bin = item % bins;
    item /= bins;
    at.channel = item % groups * kRoiChannels;
    at.roi = item / groups;
    return at;
}

// The four pixels that a sample reads, as offsets into a map, and their weights.
struct RoiCorners {
    int place[4];
    float weight[4];
};

inline __device__ RoiCorners roi_corners(const RoiTap& y, const RoiTap& x, int width) {
    RoiCorners corners;
    corners.place[0] = y.low * width + x.low;
    corners.place[1] = y.low * width + x.high;
    corners.place[2] = y.high * width + x.low;
    corners.place[3] = y.high * width + x.high;
    corners.weight[0] = y.low_weight * x.low_weight;
    corners.weight[1] = y.low_weight * x.high_weight;
    corners.weight[2] = y.high_weight * x.low_weight;
    corners.weight[3] = y.high_weight * x.high_weight;
    return corners;
}

__global__ void __launch_bounds__(kRoiThreads)
    roi_forward_kernel(const RoiLevels levels, const float* __restrict__ rois, int items) {
    const int item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= items) return;
    const RoiItem at = roi_item(levels, item);
    const RoiLevel level = levels.level[at.level];
    const float* roi = rois + (size_t)at.roi * 5;
    const int live = levels.channels - at.channel < kRoiChannels ? levels.channels - at.channel : kRoiChannels;
    const int area = level.height * level.width, bins = level.size * level.size;
    float sums[kRoiChannels] = {0.0f};
    float share = 0.0f;
    if (roi_is_usable(roi, levels.images)) {
        const RoiAxis rows = roi_axis(roi[2], roi[4], level.scale, level.size, levels.sampling);
        const RoiAxis columns = roi_axis(roi[1], roi[3], level.scale, level.size, levels.sampling);
        const float* feature = level.feature + ((size_t)roi[0] * levels.channels + at.channel) * area;
        share = 1.0f / ((float)rows.grid * (float)columns.grid);
        for (int sy = 0; sy < rows.grid; sy++) {
            const RoiTap y = roi_tap(roi_sample(rows, at.bin / level.size, sy), level.height);
            for (int sx = 0; sx < columns.grid; sx++) {
                const RoiTap x = roi_tap(roi_sample(columns, at.bin % level.size, sx), level.width);
                const RoiCorners at_sample = roi_corners(y, x, level.width);
                const float* map = feature;
#pragma unroll
                for (int c = 0; c < kRoiChannels; c++, map += area)
                    if (c < live)
                        for (int k = 0; k < 4; k++) sums[c] += at_sample.weight[k] * map[at_sample.place[k]];
            }
        }
    }
    float* pooled = level.pooled + ((size_t)at.roi * levels.channels + at.channel) * bins + at.bin;
#pragma unroll
    for (int c = 0; c < kRoiChannels; c++, pooled += bins)
        if (c < live) *pooled = sums[c] * share;
}

__global__ void __launch_bounds__(kRoiThreads)
    roi_scatter_kernel(const RoiLevels levels, const float* __restrict__ rois, int items) {
    const int item = blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= items) return;
    const RoiItem at = roi_item(levels, item);
    const RoiLevel level = levels.level[at.level];
    const float* roi = rois + (size_t)at.roi * 5;
    if (!roi_is_usable(roi, levels.images)) return;
    const int live = levels.channels - at.channel < kRoiChannels ? levels.channels - at.channel : kRoiChannels;
    const int area = level.height * level.width, bins = level.size * level.size;
    const RoiAxis rows = roi_axis(roi[2], roi[4], level.scale, level.size, levels.sampling);
    const RoiAxis columns = roi_axis(roi[1], roi[3], level.scale, level.size, levels.sampling);
    const float share = 1.0f / ((float)rows.grid * (float)columns.grid);
    float* feature = level.feature + ((size_t)roi[0] * levels.channels + at.channel) * area;
    const float* pooled = level.pooled + ((size_t)at.roi * levels.channels + at.channel) * bins + at.bin;
    float values[kRoiChannels];
#pragma unroll
    for (int c = 0; c < kRoiChannels; c++, pooled += bins) values[c] = c < live ? *pooled * share : 0.0f;
    for (int sy = 0; sy < rows.grid; sy++) {
        const RoiTap y = roi_tap(roi_sample(rows, at.bin / level.size, sy), level.height);
        for (int sx = 0; sx < columns.grid; sx++) {
            const RoiTap x = roi_tap(roi_sample(columns, at.bin % level.size, sx), level.width);
            const RoiCorners at_sample = roi_corners(y, x, level.width);
            for (int k = 0; k < 4; k++) {
                if (at_sample.weight[k] == 0.0f) continue;
                float* map = feature + at_sample.place[k];
#pragma unroll
                for (int c = 0; c < kRoiChannels; c++, map += area)
                    if (c < live) atomicAdd(map, values[c] * at_sample.weight[k]);
            }
        }
    }
}

// A block owns 32 neighbouring pixels of one image, level and group of channels, so nobody else adds to them. Its eight
// slices of threads share out the boxes, and their sums meet in shared memory in a fixed order.
__global__ void __launch_bounds__(kRoiThreads)
    roi_gather_kernel(const RoiLevels levels, const float* __restrict__ rois) {
    __shared__ float partial[kRoiSlices][kRoiChannels][kRoiPixels];
    const int groups = roi_groups(levels), lane = threadIdx.x, slice = threadIdx.y;
    int block = blockIdx.x, l = 0, tiles = 0;
    for (; l < levels.count; l++) {
        tiles = (levels.level[l].height * levels.level[l].width + kRoiPixels - 1) / kRoiPixels;
        const int here = tiles * groups * levels.images;
        if (block < here) break;
        block -= here;
    }
    const RoiLevel level = levels.level[l];
    const int area = level.height * level.width, size = level.size;
    const int pixel = block % tiles * kRoiPixels + lane;
    block /= tiles;
    const int channel = block % groups * kRoiChannels, image = block / groups;
    const int live = levels.channels - channel < kRoiChannels ? levels.channels - channel : kRoiChannels;
    const int y = pixel / level.width, x = pixel % level.width;
    const int bins = size * size;
    float sums[kRoiChannels] = {0.0f};
    for (int r = slice; r < levels.rois && pixel < area; r += kRoiSlices) {
        const float* roi = rois + (size_t)r * 5;
        if (!roi_is_usable(roi, levels.images) || (int)roi[0] != image) continue;
        int first_row, last_row, first_column, last_column;
        const RoiAxis rows = roi_axis(roi[2], roi[4], level.scale, size, levels.sampling);
        roi_bins_near(rows, y, size, first_row, last_row);
        if (first_row > last_row) continue;
        const RoiAxis columns = roi_axis(roi[1], roi[3], level.scale, size, levels.sampling);
        roi_bins_near(columns, x, size, first_column, last_column);
        const float share = 1.0f / ((float)rows.grid * (float)columns.grid);
        const float* pooled = level.pooled + ((size_t)r * levels.channels + channel) * bins;
        for (int row = first_row; row <= last_row; row++) {
            const float row_weight = share * roi_pixel_weight(rows, row, y, level.height);
            if (row_weight == 0.0f) continue;
            for (int column = first_column; column <= last_column; column++) {
                const float weight = row_weight * roi_pixel_weight(columns, column, x, level.width);
                if (weight == 0.0f) continue;
                const float* gradient = pooled + row * size + column;
#pragma unroll
                for (int c = 0; c < kRoiChannels; c++, gradient += bins)
                    if (c < live) sums[c] += weight * *gradient;
            }
        }
    }
#pragma unroll
    for (int c = 0; c < kRoiChannels; c++) partial[slice][c][lane] = sums[c];
    __syncthreads();
    if (slice < live && pixel < area) {
        float sum = 0.0f;
        for (int s = 0; s < kRoiSlices; s++) sum += partial[s][slice][lane];
        level.feature[((size_t)image * levels.channels + channel + slice) * area + pixel] = sum;
    }
}

static inline int roi_count(long long count, const char* what) {
    if (count > 0x7fffffffLL - kRoiThreads)
        throw std::length_error(std::string(what) + ": too many boxes, channels or bins for one launch");
    return (int)count;
}

static inline int roi_items(const RoiLevels& levels) {
    long long items = 0;
    for (int l = 0; l < levels.count; l++)
        items += (long long)levels.level[l].size * levels.level[l].size * roi_groups(levels) * levels.rois;
    return roi_count(items, "roi_align");
}

static inline void roi_align_forward(const RoiLevels& levels, const float* rois) {
    const int items = roi_items(levels);
    if (items == 0) return;
    CUDA_LAUNCH(roi_forward_kernel, (items + kRoiThreads - 1) / kRoiThreads, kRoiThreads, levels, rois, items);
}

static inline void roi_align_backward(const RoiLevels& levels, const float* rois, bool deterministic) {
    if (deterministic) {
        long long blocks = 0;
        for (int l = 0; l < levels.count; l++)
            blocks += ((long long)levels.level[l].height * levels.level[l].width + kRoiPixels - 1) / kRoiPixels *
                      roi_groups(levels) * levels.images;
        if (blocks == 0) return;
        CUDA_LAUNCH(roi_gather_kernel, roi_count(blocks, "roi_align"), dim3(kRoiPixels, kRoiSlices), levels, rois);
        return;
    }
    for (int l = 0; l < levels.count; l++) {
        const RoiLevel& level = levels.level[l];
        const size_t bytes = sizeof(float) * levels.images * levels.channels * level.height * level.width;
        cuda_require(cudaMemsetAsync(level.feature, 0, bytes), "clearing the gradient of roi_align");
    }
    const int items = roi_items(levels);
    if (items == 0) return;
    CUDA_LAUNCH(roi_scatter_kernel, (items + kRoiThreads - 1) / kRoiThreads, kRoiThreads, levels, rois, items);
}
