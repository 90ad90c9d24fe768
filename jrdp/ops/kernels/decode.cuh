// From the answers of an FCOS head to boxes in CUDA, without a return to the host: candidates of each level, the best of
// each level, suppression over all levels, the best of each image. `models/fcos_decode.py` is the definition, in NumPy.
//
// Floor at 320x480, one image (3,200 locations, at most 1,805 candidates): 77 KB of answers read, 29 KB of boxes written,
// nothing beside the launches: 7 of them at about 3 us. One block an image selects: five levels, each about 15 barriers,
// four times as many where more than the limit qualify, together about 10 us. Suppression is what takes long, see nms.cuh.
// All of this is derived, none of it measured.
#pragma once
#include "cuda_launch.h"
#include "nms.cuh"

const int kDecodeMaxLevels = 8;
const int kDecodeThreads = 256;  // also the size of a histogram of 8 bits

struct DecodeLevel {
    const float *logits, *distances, *centerness;
    int height, width, stride;
    int start;  // of its locations among those of all levels
};

struct DecodeLevels {
    DecodeLevel level[kDecodeMaxLevels];
    int count, images, locations;
};

static inline DecodeLevels decode_levels(int images) {
    DecodeLevels levels;
    levels.count = 0;
    levels.images = images;
    levels.locations = 0;
    return levels;
}

static inline void decode_add_level(DecodeLevels& levels, const float* logits, const float* distances,
                                    const float* centerness, int height, int width, double stride) {
    levels.level[levels.count++] = {logits, distances, centerness, height, width, (int)stride, levels.locations};
    levels.locations += height * width;
}

// In double: there exp is exact to the float's last bit, whatever fast math does to expf.
HOST_DEVICE float decode_sigmoid(float x) { return (float)(1.0 / (1.0 + exp(-(double)x))); }

// Numbers of at least zero in their order as whole numbers.
HOST_DEVICE unsigned int decode_key(float value) {
    union {
        float number;
        unsigned int bits;
    } view;
    view.number = value;
    return view.bits;
}

// Block (x, level, image): probability and score of each location, the level's largest probability in the batch, and in
// largest[levels + image] whether an answer for the image is not finite.
// A logit that is not a number gives a probability of -1, so that it is never a candidate.
__global__ void __launch_bounds__(kDecodeThreads)
    decode_score_kernel(DecodeLevels levels, float* __restrict__ probabilities, float* __restrict__ scores,
                        int* __restrict__ largest) {
    __shared__ int highest[kDecodeThreads];
    const DecodeLevel level = levels.level[blockIdx.y];
    const int size = level.height * level.width, image = blockIdx.z, thread = threadIdx.x;
    const int i = blockIdx.x * kDecodeThreads + thread;
    highest[thread] = 0;
    if (i < size) {
        const float logit = level.logits[(size_t)image * size + i];
        const bool is_number = (decode_key(logit) & 0x7fffffffu) <= 0x7f800000u;
        const float probability = is_number ? decode_sigmoid(logit) : -1.0f;
        const size_t place = (size_t)image * levels.locations + level.start + i;
        probabilities[place] = probability;
        const float center = level.centerness[(size_t)image * size + i];
        scores[place] = multiply_exact(probability, decode_sigmoid(center));
        if (is_number) highest[thread] = (int)decode_key(probability);
        bool is_finite = is_finite_bits(logit) && is_finite_bits(center);
        for (int k = 0; k < 4; k++)
            is_finite = is_finite && is_finite_bits(level.distances[((size_t)image * 4 + k) * size + i]);
        if (!is_finite) atomicMax(largest + levels.count + image, 1);
    }
    __syncthreads();
    for (int half = kDecodeThreads / 2; half > 0; half /= 2) {
        if (thread < half && highest[thread + half] > highest[thread]) highest[thread] = highest[thread + half];
        __syncthreads();
    }
    if (thread == 0) atomicMax(largest + blockIdx.y, highest[0]);
}

// The sum of `value` over the threads before this one; `sums` then ends with the sum over all of them.
__device__ __forceinline__ int decode_scan(int value, int* sums) {
    const int thread = threadIdx.x;
    __syncthreads();
    sums[thread] = value;
    __syncthreads();
    for (int step = 1; step < kDecodeThreads; step *= 2) {
        const int before = thread >= step ? sums[thread - step] : 0;
        __syncthreads();
        sums[thread] += before;
        __syncthreads();
    }
    return sums[thread] - value;
}

// What a block shares while it looks for the best of a list.
struct DecodeShared {
    int sums[kDecodeThreads], histogram[kDecodeThreads];
    unsigned int prefix;
    int wanted;
};

// The `wanted`-th largest key among those of `count` items; of equals to it, `wanted` ends as how many belong to the best.
// key(i) gives the key of item i, and false in `counts` for an item that does not take part. Eight bits at a time.
template <class Key>
__device__ __forceinline__ unsigned int decode_limit(int count, int& wanted, Key key, DecodeShared& shared) {
    const int thread = threadIdx.x;
    unsigned int prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        shared.histogram[thread] = 0;
        __syncthreads();
        for (int i = thread; i < count; i += kDecodeThreads) {
            unsigned int bits = 0;
            if (key(i, bits) && (shift == 24 || bits >> (shift + 8) == prefix))
                atomicAdd(&shared.histogram[bits >> shift & 255], 1);
        }
        __syncthreads();
        const int digit = kDecodeThreads - 1 - thread, here = shared.histogram[digit];  // the largest digit first
        const int larger = decode_scan(here, shared.sums);
        if (larger < wanted && wanted <= larger + here) {
            shared.prefix = prefix << 8 | (unsigned int)digit;
            shared.wanted = wanted - larger;
        }
        __syncthreads();
        prefix = shared.prefix;
        wanted = shared.wanted;
        __syncthreads();
    }
    return prefix;
}

// One block an image: its candidates, level by level and row-major, as boxes and scores; counts[image] says how many.
__global__ void __launch_bounds__(kDecodeThreads)
    decode_select_kernel(DecodeLevels levels, const int* __restrict__ sizes, const float* __restrict__ probabilities,
                         const float* __restrict__ scores, const int* __restrict__ largest, float threshold,
                         int top_n, int capacity, float* __restrict__ boxes, float* __restrict__ found,
                         int* __restrict__ counts) {
    __shared__ DecodeShared shared;
    const int image = blockIdx.x, thread = threadIdx.x;
    const float right_end = (float)(sizes[2 * image + 1] - 1), bottom_end = (float)(sizes[2 * image] - 1);
    int place = image * capacity;
    for (int l = 0; l < levels.count; l++) {
        const DecodeLevel level = levels.level[l];
        const int size = level.height * level.width;
        const float* probability = probabilities + (size_t)image * levels.locations + level.start;
        const float* score = scores + (size_t)image * levels.locations + level.start;
        // Above the threshold; where no location of the batch is, the level's best, as released.
        const int best = largest[l];
        const bool above = best > (int)decode_key(threshold);
        auto is_candidate = [&](int i) {
            const float p = probability[i];
            return above ? p > threshold : p >= 0.0f && (int)decode_key(p) >= best;
        };
        const int share = (size + kDecodeThreads - 1) / kDecodeThreads;
        const int begin = thread * share < size ? thread * share : size;
        const int end = begin + share < size ? begin + share : size;
        int mine = 0;
        for (int i = begin; i < end; i++) mine += is_candidate(i) ? 1 : 0;
        decode_scan(mine, shared.sums);
        const int count = shared.sums[kDecodeThreads - 1];
        unsigned int limit = 0;
        int equals = count;  // how many candidates of exactly that score are taken, the first ones
        if (count > top_n) {
            equals = top_n;
            limit = decode_limit(
                size, equals,
                [&](int i, unsigned int& bits) {
                    bits = decode_key(score[i]);
                    return is_candidate(i);
                },
                shared);
        }
        int better = 0, equal = 0;
        for (int i = begin; i < end; i++) {
            if (!is_candidate(i)) continue;
            better += decode_key(score[i]) > limit ? 1 : 0;
            equal += decode_key(score[i]) == limit ? 1 : 0;
        }
        int better_before = decode_scan(better, shared.sums);
        const int all_better = shared.sums[kDecodeThreads - 1];
        int equal_before = decode_scan(equal, shared.sums);
        const int all_equal = shared.sums[kDecodeThreads - 1] < equals ? shared.sums[kDecodeThreads - 1] : equals;
        for (int i = begin; i < end; i++) {
            if (!is_candidate(i)) continue;
            const unsigned int key = decode_key(score[i]);
            if (key < limit || (key == limit && equal_before >= equals)) continue;
            const int target = place + better_before + (equal_before < equals ? equal_before : equals);
            better_before += key > limit ? 1 : 0;
            equal_before += key == limit ? 1 : 0;
            const float x = (float)(i % level.width * level.stride + level.stride / 2);
            const float y = (float)(i / level.width * level.stride + level.stride / 2);
            const float* distance = level.distances + (size_t)image * 4 * size + i;
            const float corners[4] = {add_exact(x, -distance[0]), add_exact(y, -distance[size]),
                                      add_exact(x, distance[2 * (size_t)size]),
                                      add_exact(y, distance[3 * (size_t)size])};
            for (int k = 0; k < 4; k++) {
                const float end_ = k % 2 ? bottom_end : right_end;
                // Written so that what is not a number stays so: suppression reports it.
                boxes[4 * (size_t)target + k] = corners[k] < 0.0f ? 0.0f : corners[k] > end_ ? end_ : corners[k];
            }
            found[target] = score[i];
        }
        place += all_better + all_equal;
    }
    if (thread == 0) counts[image] = place - image * capacity;
}

// One block an image: of what suppression kept, the best `top_n`, and all that equal the last of them.
__global__ void __launch_bounds__(kDecodeThreads)
    decode_finish_kernel(const float* __restrict__ boxes, const float* __restrict__ found,
                         const int* __restrict__ kept, const int* __restrict__ faults, int top_n, int capacity,
                         float* __restrict__ out_boxes, float* __restrict__ out_scores, int* __restrict__ status) {
    __shared__ DecodeShared shared;
    const int image = blockIdx.x, thread = threadIdx.x;
    const size_t first = (size_t)image * capacity;
    const int count = status[2 * image];
    unsigned int limit = 0;
    if (count > top_n) {
        int wanted = top_n;
        limit = decode_limit(
            count, wanted,
            [&](int i, unsigned int& bits) {
                bits = decode_key(found[first + kept[first + i]]);
                return true;
            },
            shared);
    }
    const int share = (count + kDecodeThreads - 1) / kDecodeThreads;
    const int begin = thread * share < count ? thread * share : count;
    const int end = begin + share < count ? begin + share : count;
    int mine = 0;
    for (int i = begin; i < end; i++) mine += decode_key(found[first + kept[first + i]]) >= limit ? 1 : 0;
    int place = decode_scan(mine, shared.sums);
    const int all = shared.sums[kDecodeThreads - 1];
    for (int i = begin; i < end; i++) {
        const size_t source = first + kept[first + i];
        if (decode_key(found[source]) < limit) continue;
        for (int k = 0; k < 4; k++) out_boxes[4 * (first + place) + k] = boxes[4 * source + k];
        out_scores[first + place++] = found[source];
    }
    __syncthreads();
    if (thread == 0) {
        status[2 * image] = all;
        status[2 * image + 1] = faults[image];
    }
}

// out_boxes [N, capacity, 4], out_scores [N, capacity]; status [N, 2]: how many (none where a candidate is not a number),
// and 1 where an answer for the image is not finite, else 0. sizes [N, 2]: height, width. The rest is scratch: numbers
// [2, N, locations] and [N, capacity, 5] and nms' [N, capacity, 5]; largest [levels + N], counts [N]; nms' keep, order,
// flags [N, capacity] and mask.
static inline void decode_run(const DecodeLevels& levels, const int* sizes, double threshold, int top_n, double overlap,
                              int final_n, int capacity, float* out_boxes, float* out_scores, int* status,
                              float* answers, float* candidates, float* sorted, int* largest, int* counts, int* keep,
                              int* order, int* flags, int* mask) {
    const int images = levels.images;
    float *probabilities = answers, *scores = answers + (size_t)images * levels.locations;
    float *boxes = candidates, *found = candidates + (size_t)images * capacity * 4;
    int most = 0;
    for (int l = 0; l < levels.count; l++) {
        const int size = levels.level[l].height * levels.level[l].width;
        most = size > most ? size : most;
    }
    cuda_require(cudaMemsetAsync(largest, 0, (levels.count + images) * sizeof(int)), "clearing the largest probabilities");
    CUDA_LAUNCH(decode_score_kernel, dim3((most + kDecodeThreads - 1) / kDecodeThreads, levels.count, images),
                kDecodeThreads, levels, probabilities, scores, largest);
    CUDA_LAUNCH(decode_select_kernel, images, kDecodeThreads, levels, sizes, probabilities, scores, largest,
                (float)threshold, top_n, capacity, boxes, found, counts);
    nms_batch(boxes, found, counts, images, capacity, (float)overlap, final_n, keep, status, sorted, order, mask, flags);
    CUDA_LAUNCH(decode_finish_kernel, images, kDecodeThreads, boxes, found, keep, largest + levels.count, final_n, capacity,
                out_boxes, out_scores, status);
}
