// Non-maximum suppression in CUDA, three launches and no return to the host: rank and sort, overlaps as bits, sweep.
//
// Several images go through together, one in each y of the grid. Each has room for `capacity` boxes, of which the first
// counts[image] are there; without counts all are.
//
// Floor, at 1,000 and 5,000 boxes (64 a word; n(n-1)/2 pairs, 20 flops and one division a pair, counted as 28):
//   bytes  boxes and scores 20 n read, 24 n written sorted, bits of the upper triangle n^2/16 written and read once:
//          1,000: 0.17 MB; 5,000: 3.3 MB; an H100 moves that in under 0.1 us and 1 us
//   flops  1,000: 14 M, 5,000: 350 M: 0.2 us and 5 us at 67 TFLOP/s
//   order  what binds is the chain: the sweep takes 64 boxes after 64. Each step reads 64 words of the diagonal,
//          decides, and joins the kept rows: about 2.5 us; 16 steps (1,000) take 40 us, 79 steps (5,000) 200 us; and
//          three launches about 3 us each. So the sweep's steps are the floor to aim at: 50 us and 220 us in all.
// All of this is derived, none of it measured.
#pragma once
#include "cuda_launch.h"
#include "nms.h"

typedef unsigned long long NmsWord;  // bit k of word w: sorted box 64 w + k

const int kNmsBits = 64;
const int kNmsRanked = 32, kNmsParts = 8;  // a block ranks 32 boxes, eight threads each
const int kNmsSweepers = 256;

__device__ __forceinline__ int nms_count(const int* counts, int capacity) {
    return counts ? counts[blockIdx.y] : capacity;
}

// Where each box goes in descending order of score, counting the boxes before it: stable, whatever the scores. Also
// clears what the sweep marks, and notes the first box that is not finite.
__global__ void __launch_bounds__(kNmsRanked* kNmsParts)
    nms_rank_kernel(const float* __restrict__ boxes, const float* __restrict__ scores,
                    const int* __restrict__ counts, int capacity, float* __restrict__ sorted, int* __restrict__ order,
                    int* __restrict__ keep, int* __restrict__ flags) {
    __shared__ int before[kNmsParts][kNmsRanked];
    const int n = nms_count(counts, capacity);
    const size_t first = (size_t)blockIdx.y * capacity;
    boxes += 4 * first;
    scores += first;
    sorted += 5 * first;
    order += first;
    keep += first;
    flags += first;
    const int i = blockIdx.x * kNmsRanked + threadIdx.x, part = threadIdx.y;
    int count = 0;
    if (i < n)
        for (int j = part; j < n; j += kNmsParts) count += nms_before(scores[j], j, scores[i], i) ? 1 : 0;
    before[part][threadIdx.x] = count;
    __syncthreads();
    if (i < capacity && part == 0) keep[i] = -1;
    if (i >= n || part != 0) return;
    int rank = 0;
    for (int p = 0; p < kNmsParts; p++) rank += before[p][threadIdx.x];
    const float* box = boxes + (size_t)i * 4;
    flags[i] = nms_is_usable(box, scores[i]) ? 0 : -1;
    // A score that is not a number has no rank; its box may then share a place, and the sweep reports it.
    order[rank] = i;
    for (int k = 0; k < 4; k++) sorted[(size_t)rank * 5 + k] = box[k];
    sorted[(size_t)rank * 5 + 4] = nms_area(box);
}

// Block (i, j) of the upper triangle compares 64 boxes with 64 boxes.
__global__ void __launch_bounds__(kNmsBits)
    nms_overlap_kernel(const float* __restrict__ sorted, const int* __restrict__ counts, int capacity,
                       float threshold, NmsWord* __restrict__ mask, int words) {
    __shared__ float others[kNmsBits][5];
    const int n = nms_count(counts, capacity);
    sorted += (size_t)blockIdx.y * capacity * 5;
    mask += (size_t)blockIdx.y * (capacity + 1) * words;
    // The triangle's blocks are numbered row by row: row r starts after words + (words - 1) + ... of the rows above.
    int row = 0, column = blockIdx.x;
    while (column >= words - row) column -= words - row++;
    column += row;
    const int i = row * kNmsBits + threadIdx.x, base = column * kNmsBits;
    const int live = n - base < kNmsBits ? n - base : kNmsBits;
    if (live <= 0) return;
    if ((int)threadIdx.x < live)
        for (int k = 0; k < 5; k++) others[threadIdx.x][k] = sorted[(size_t)(base + threadIdx.x) * 5 + k];
    __syncthreads();
    if (i >= n) return;
    float mine[5];
    for (int k = 0; k < 5; k++) mine[k] = sorted[(size_t)i * 5 + k];
    NmsWord bits = 0;
    for (int k = row == column ? threadIdx.x + 1 : 0; k < live; k++)
        if (nms_iou(mine, others[k]) > threshold) bits |= (NmsWord)1 << k;
    mask[(size_t)i * words + column] = bits;
}

// One block goes through the sorted boxes 64 at a time: thread 0 settles which of them live from the diagonal words
// alone, then every thread joins the kept rows into the words that it owns. Last, the kept boxes are listed in
// ascending order. It may stop when `enough` are kept and no later box has the score of one of them.
__global__ void __launch_bounds__(kNmsSweepers)
    nms_sweep_kernel(NmsWord* __restrict__ mask, const float* __restrict__ scores, const int* __restrict__ counts,
                     int capacity, int words, int enough, const int* __restrict__ order, int* __restrict__ flags,
                     int* __restrict__ keep, int* __restrict__ status) {
    __shared__ NmsWord diagonal[kNmsBits], kept;
    __shared__ int total, kept_by[kNmsSweepers], broken[kNmsSweepers];
    const int n = nms_count(counts, capacity);
    const size_t first = (size_t)blockIdx.y * capacity;
    mask += (size_t)blockIdx.y * (capacity + 1) * words;
    NmsWord* suppressed = mask + (size_t)capacity * words;
    scores += first;
    order += first;
    flags += first;
    keep += first;
    status += 2 * blockIdx.y;
    const int thread = threadIdx.x;
    const int live_words = (n + kNmsBits - 1) / kNmsBits, share = (n + kNmsSweepers - 1) / kNmsSweepers;
    const int begin = thread * share < n ? thread * share : n, end = begin + share < n ? begin + share : n;
    for (int w = thread; w < live_words; w += kNmsSweepers) suppressed[w] = 0;
    broken[thread] = -1;
    if (thread == 0) total = 0;
    for (int i = end - 1; i >= begin; i--)
        if (flags[i] < 0) broken[thread] = i;
    __syncthreads();
    int first_broken = -1;
    for (int t = kNmsSweepers - 1; t >= 0; t--)
        if (broken[t] >= 0) first_broken = broken[t];
    if (first_broken >= 0) {
        if (thread == 0) {
            status[0] = 0;
            status[1] = first_broken;
        }
        return;
    }
    for (int base = 0, w = 0; base < n; base += kNmsBits, w++) {
        if (total >= enough && scores[order[base]] < scores[order[base - 1]]) break;
        const int live = n - base < kNmsBits ? n - base : kNmsBits;
        if (thread < live) diagonal[thread] = mask[(size_t)(base + thread) * words + w];
        __syncthreads();
        if (thread == 0) {
            NmsWord alive = ~suppressed[w] & (live == kNmsBits ? ~(NmsWord)0 : ((NmsWord)1 << live) - 1), chosen = 0;
            while (alive) {
                const int k = __ffsll((long long)alive) - 1;
                chosen |= (NmsWord)1 << k;
                alive &= ~(diagonal[k] | (NmsWord)1 << k);
            }
            kept = chosen;
            total += __popcll(chosen);
        }
        __syncthreads();
        const NmsWord chosen = kept;
        for (int other = w + 1 + thread; other < live_words; other += kNmsSweepers) {
            NmsWord bits = suppressed[other];
            for (NmsWord rest = chosen; rest; rest &= rest - 1)
                bits |= mask[(size_t)(base + __ffsll((long long)rest) - 1) * words + other];
            suppressed[other] = bits;
        }
        if (thread < live && (chosen >> thread & 1)) flags[order[base + thread]] = 1;
        __syncthreads();
    }
    int count = 0;
    for (int i = begin; i < end; i++) count += flags[i];
    kept_by[thread] = count;
    __syncthreads();
    int place = 0;
    for (int t = 0; t < thread; t++) place += kept_by[t];
    for (int i = begin; i < end; i++)
        if (flags[i]) keep[place++] = i;
    if (thread == kNmsSweepers - 1) {
        status[0] = place;
        status[1] = -1;
    }
}

// For each image: keep [capacity]: kept indices ascending, then -1; status [2]: how many, and the first box that is not
// finite or -1. Of more than `enough` boxes that would stay, those with lower scores than the `enough` best may be missing.
// Scratch: sorted [capacity, 5] floats, order [capacity], mask [(capacity + 1) * ceil(capacity / 64) * 2] ints,
// flags [capacity]. capacity >= 1; counts may be null.
static inline void nms_batch(const float* boxes, const float* scores, const int* counts, int images, int capacity,
                             float threshold, int enough, int* keep, int* status, float* sorted, int* order, int* mask,
                             int* flags) {
    const int words = (capacity + kNmsBits - 1) / kNmsBits;
    NmsWord* bits = (NmsWord*)mask;
    CUDA_LAUNCH(nms_rank_kernel, dim3((capacity + kNmsRanked - 1) / kNmsRanked, images), dim3(kNmsRanked, kNmsParts),
                boxes, scores, counts, capacity, sorted, order, keep, flags);
    CUDA_LAUNCH(nms_overlap_kernel, dim3(words * (words + 1) / 2, images), kNmsBits, sorted, counts, capacity,
                threshold, bits, words);
    CUDA_LAUNCH(nms_sweep_kernel, dim3(1, images), kNmsSweepers, bits, scores, counts, capacity, words, enough, order,
                flags, keep, status);
}

// One image, all boxes that stay.
static inline void nms_run(const float* boxes, const float* scores, int n, float threshold, int* keep, int* status,
                           float* sorted, int* order, int* mask, int* flags) {
    nms_batch(boxes, scores, nullptr, 1, n, threshold, n, keep, status, sorted, order, mask, flags);
}
