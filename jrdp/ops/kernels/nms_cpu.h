// Greedy non-maximum suppression on the CPU. Boxes are sorted once and kept as columns, so that the test of one box
// against all later ones is a loop that the compiler vectorises.
#pragma once
#include <algorithm>
#include <numeric>
#include <vector>
#include "nms.h"

// keep [n]: kept indices ascending, then -1; status [2]: how many, and the first box that is not finite or -1.
// The scratch pointers are CUDA's.
static inline void nms_run(const float* boxes, const float* scores, int n, float threshold, int* keep, int* status,
                           float* /*sorted*/, int* /*order*/, int* /*mask*/, int* /*flags*/) {
    std::fill(keep, keep + n, -1);
    status[0] = 0;
    status[1] = -1;
    for (int i = 0; i < n; i++)
        if (!nms_is_usable(boxes + (size_t)i * 4, scores[i])) {
            status[1] = i;
            return;
        }
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return nms_before(scores[a], a, scores[b], b); });
    std::vector<float> columns((size_t)5 * n);
    float *x1 = columns.data(), *y1 = x1 + n, *x2 = y1 + n, *y2 = x2 + n, *area = y2 + n;
    for (int i = 0; i < n; i++) {
        const float* box = boxes + (size_t)order[i] * 4;
        x1[i] = box[0];
        y1[i] = box[1];
        x2[i] = box[2];
        y2[i] = box[3];
        area[i] = nms_area(box);
    }
    std::vector<unsigned char> suppressed(n, 0), kept(n, 0);
    for (int i = 0; i < n; i++) {
        if (suppressed[i]) continue;
        kept[order[i]] = 1;
        const float a[5] = {x1[i], y1[i], x2[i], y2[i], area[i]};
        for (int j = i + 1; j < n; j++) {
            const float b[5] = {x1[j], y1[j], x2[j], y2[j], area[j]};
            suppressed[j] |= nms_iou(a, b) > threshold;
        }
    }
    for (int i = 0; i < n; i++)
        if (kept[i]) keep[status[0]++] = i;
}
