// What is done with every parameter of a network, in a few launches for all of them, in CUDA.
//
// Floor of a step of SGD, R-50 (36 million parameters): weight, gradient and momentum read, weight and momentum written, 720
// MB, 215 us on an H100; two launches for each of 170 parameters would be 340. The search for what is not finite reads the
// gradients, 144 MB, 43 us. Derived, not measured.
#pragma once
#include "cuda_launch.h"
#include "host_device.h"

const int kManyThreads = 256;
const int kManyPerBlock = 16 * kManyThreads;  // numbers of one array for one block
const int kManyArrays = 64;                   // of one launch: a kernel's arguments are at most 4 KB

struct ManyBlocks {
    int first[kManyArrays];  // block of each array
    int count, blocks;
};

static inline void many_add(ManyBlocks& many, long size) {
    many.first[many.count++] = many.blocks;
    many.blocks += (int)((size + kManyPerBlock - 1) / kManyPerBlock);
}

// The array that the block belongs to: the last one that begins at or before it. Empty arrays have no block.
HOST_DEVICE int many_array(const ManyBlocks& many, int block) {
    int low = 0, high = many.count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (many.first[middle] <= block) low = middle;
        else high = middle - 1;
    }
    return low;
}

// ---- SGD ----

struct SgdArray {
    const float *weight, *gradient, *momentum;
    float *new_weight, *new_momentum;
    long size;
};

struct SgdArrays {
    SgdArray array[kManyArrays];
    ManyBlocks many;
};

// As jt.optim.SGD: v = momentum * v + (decay * w + g), w = w - rate * v.
__global__ void __launch_bounds__(kManyThreads)
    sgd_kernel(SgdArrays arrays, float rate, float momentum, float decay) {
    const int which = many_array(arrays.many, blockIdx.x);
    const SgdArray& array = arrays.array[which];
    const long begin = (long)(blockIdx.x - arrays.many.first[which]) * kManyPerBlock;
    const long end = begin + kManyPerBlock < array.size ? begin + kManyPerBlock : array.size;
    for (long k = begin + threadIdx.x; k < end; k += kManyThreads) {
        const float weight = array.weight[k];
        const float value = momentum * array.momentum[k] + (weight * decay + array.gradient[k]);
        array.new_momentum[k] = value;
        array.new_weight[k] = weight - value * rate;
    }
}

struct Sgd {
    SgdArrays arrays;
    float rate, momentum, decay;
};

static inline Sgd sgd_begin(double rate, double momentum, double decay) {
    Sgd sgd;
    sgd.arrays.many.count = sgd.arrays.many.blocks = 0;
    sgd.rate = (float)rate;
    sgd.momentum = (float)momentum;
    sgd.decay = (float)decay;
    return sgd;
}

static inline void sgd_flush(Sgd& sgd) {
    if (sgd.arrays.many.blocks > 0)
        CUDA_LAUNCH(sgd_kernel, sgd.arrays.many.blocks, kManyThreads, sgd.arrays, sgd.rate, sgd.momentum, sgd.decay);
    sgd.arrays.many.count = sgd.arrays.many.blocks = 0;
}

static inline void sgd_add(Sgd& sgd, const float* weight, const float* gradient, const float* momentum,
                           float* new_weight, float* new_momentum, long size) {
    if (sgd.arrays.many.count == kManyArrays) sgd_flush(sgd);
    sgd.arrays.array[sgd.arrays.many.count] = {weight, gradient, momentum, new_weight, new_momentum, size};
    many_add(sgd.arrays.many, size);
}

// ---- what a training step tells the host ----

struct ReportArrays {
    const float* array[kManyArrays];
    long size[kManyArrays];
    ManyBlocks many;
};

// flags[i] becomes 1 where array i holds NaN or infinity.
__global__ void __launch_bounds__(kManyThreads) report_kernel(ReportArrays arrays, float* __restrict__ flags) {
    const int which = many_array(arrays.many, blockIdx.x);
    const long begin = (long)(blockIdx.x - arrays.many.first[which]) * kManyPerBlock;
    const long end = begin + kManyPerBlock < arrays.size[which] ? begin + kManyPerBlock : arrays.size[which];
    bool broken = false;
    for (long k = begin + threadIdx.x; k < end; k += kManyThreads) broken |= !is_finite_bits(arrays.array[which][k]);
    if (broken) flags[which] = 1.0f;  // whoever writes it writes the same
}

struct ReportNumbers {
    const float* number[kManyArrays];
};

__global__ void __launch_bounds__(kManyThreads)
    report_numbers_kernel(ReportNumbers numbers, int count, int flags, float* __restrict__ report) {
    for (int i = threadIdx.x; i < count + flags; i += kManyThreads) report[i] = i < count ? numbers.number[i][0] : 0.0f;
}

struct Report {
    ReportArrays arrays;
    ReportNumbers numbers;
    float* report;
    int count, done;  // numbers; arrays that have been looked at
};

// report [numbers + arrays]: the numbers, then a flag for each array. All numbers must be given before the first array.
static inline Report report_begin(float* to) {
    Report report;
    report.arrays.many.count = report.arrays.many.blocks = report.count = report.done = 0;
    report.report = to;
    return report;
}

static inline void report_number(Report& report, const float* number) { report.numbers.number[report.count++] = number; }

static inline void report_numbers_end(const Report& report, int arrays) {
    CUDA_LAUNCH(report_numbers_kernel, 1, kManyThreads, report.numbers, report.count, arrays, report.report);
}

static inline void report_flush(Report& report) {
    if (report.arrays.many.blocks > 0)
        CUDA_LAUNCH(report_kernel, report.arrays.many.blocks, kManyThreads, report.arrays,
                    report.report + report.count + report.done);
    report.done += report.arrays.many.count;
    report.arrays.many.count = report.arrays.many.blocks = 0;
}

static inline void report_array(Report& report, const float* array, long size) {
    if (report.arrays.many.count == kManyArrays) report_flush(report);
    report.arrays.array[report.arrays.many.count] = array;
    report.arrays.size[report.arrays.many.count] = size;
    many_add(report.arrays.many, size);
}
