// Where a mask resized to its box takes its values from, and how they are blended; `ops/pasting.py` says how it is called.
#pragma once
#include "host_device.h"

const int kPasteNumbers = 9;  // a mask: low, length, first, count of the rows; the same of the columns; first word

// Where a pixel of the picture lies between the lines of the mask, with its border of zeros.
struct PasteTap {
    int near_line, far_line;
    float share;
};

HOST_DEVICE PasteTap paste_tap(int pixel, int low, int length, int size) {
    const float scale = (float)((double)size / (double)length);
    float position = add_exact(multiply_exact(scale, add_exact((float)(pixel - low), 0.5f)), -0.5f);
    position = position > 0.0f ? position : 0.0f;
    PasteTap tap;
    tap.near_line = (int)position < size - 1 ? (int)position : size - 1;
    tap.far_line = tap.near_line + 1 < size - 1 ? tap.near_line + 1 : size - 1;
    tap.share = add_exact(position, -(float)tap.near_line);
    return tap;
}

HOST_DEVICE float paste_blend(float near_value, float far_value, float share) {
    return add_exact(multiply_exact(near_value, add_exact(1.0f, -share)), multiply_exact(far_value, share));
}

// A column has room for one bit more than it has rows, so that the last bit of its last word is always zero.
HOST_DEVICE int paste_words(int rows) { return rows / 32 + 1; }
