// Bilinear interpolation between pixel centres (align_corners=False, no antialiasing): where a target pixel reads.
#pragma once
#include <algorithm>

namespace jrdp_fast {

struct Between {
    int low, high;
    float low_weight, high_weight;

    Between(int target, int target_size, int source_size) {
        const float at = std::max(0.f, (target + 0.5f) * ((float)source_size / target_size) - 0.5f);
        low = std::min((int)at, source_size - 1);
        high = std::min(low + 1, source_size - 1);
        high_weight = at - low;
        low_weight = 1.f - high_weight;
    }
};

}  // namespace jrdp_fast
