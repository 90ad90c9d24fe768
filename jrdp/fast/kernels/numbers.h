// Numbers that are kept as float32 or as bfloat16 (the upper half of a float32) and computed with in float32.
#pragma once
#include <cstdint>
#include <cstring>

namespace jrdp_fast {

inline float number(const float* p) { return *p; }

inline void put(float* p, float value) { *p = value; }

template <class BFloat16>
inline float number(const BFloat16* p) {
    static_assert(sizeof(BFloat16) == 2, "float32 or bfloat16");
    uint16_t half;
    std::memcpy(&half, p, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To nearest, ties to even; what is not a number stays none.
template <class BFloat16>
inline void put(BFloat16* p, float value) {
    static_assert(sizeof(BFloat16) == 2, "float32 or bfloat16");
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const uint16_t half = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
    std::memcpy(p, &half, sizeof half);
}

}  // namespace jrdp_fast
