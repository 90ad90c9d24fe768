// What lets one text be C++ for the host and CUDA for the device.
#pragma once

#if defined(__CUDACC__)
#define HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HOST_DEVICE inline
#endif

// Single operations rounded once to float32, which no compiler flag may fuse, reorder or approximate: discrete
// decisions (is an overlap above the threshold, how many samples has a bin) depend on the last bit. On the host the
// same holds because the kernels are compiled with -fno-fast-math -ffp-contract=off (see compile.py).
HOST_DEVICE float add_exact(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

HOST_DEVICE float multiply_exact(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

HOST_DEVICE float divide_exact(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}

// Neither infinite nor NaN, read from the bits: under fast math the compiler may assume that neither exists.
HOST_DEVICE bool is_finite_bits(float value) {
    union {
        float number;
        unsigned int bits;
    } view;
    view.number = value;
    return (view.bits & 0x7f800000u) != 0x7f800000u;
}
