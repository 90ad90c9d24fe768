// Overlap of boxes for non-maximum suppression, with the operations and their order of the released code, so that
// decisions at the threshold agree: widths count pixels (x2 - x1 + 1), everything in float32.
#pragma once
#include "host_device.h"

HOST_DEVICE float nms_side(float low, float high) { return add_exact(add_exact(high, -low), 1.0f); }

HOST_DEVICE float nms_area(const float* box) {
    return multiply_exact(nms_side(box[0], box[2]), nms_side(box[1], box[3]));
}

// box: x1, y1, x2, y2, area
HOST_DEVICE float nms_iou(const float* a, const float* b) {
    const float left = a[0] > b[0] ? a[0] : b[0], right = a[2] < b[2] ? a[2] : b[2];
    const float top = a[1] > b[1] ? a[1] : b[1], bottom = a[3] < b[3] ? a[3] : b[3];
    const float width = nms_side(left, right), height = nms_side(top, bottom);
    const float overlap = multiply_exact(width > 0.0f ? width : 0.0f, height > 0.0f ? height : 0.0f);
    return divide_exact(overlap, add_exact(add_exact(a[4], b[4]), -overlap));
}

// a goes before b: higher score, or the same score and earlier in the list
HOST_DEVICE bool nms_before(float score_a, int a, float score_b, int b) {
    return score_a > score_b || (score_a == score_b && a < b);
}

HOST_DEVICE bool nms_is_usable(const float* box, float score) {
    for (int i = 0; i < 4; i++)
        if (!is_finite_bits(box[i])) return false;
    return is_finite_bits(score);
}
