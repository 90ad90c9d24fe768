// Which devices a process sees: SOFTGPU_DEVICES of them, less what CUDA_VISIBLE_DEVICES leaves out. C, for the driver too.
#pragma once
#include <stdlib.h>

enum { SOFTGPU_MOST_DEVICES = 16 };

// Writes the numbers of the devices that are seen, in their order, and returns how many; -1: SOFTGPU_DEVICES is no 1 to 16.
static int softgpu_devices(int *seen) {
    const char *text = getenv("SOFTGPU_DEVICES"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    char *end;
    long there = text && *text ? strtol(text, &end, 10) : 1;
    if (there < 1 || there > SOFTGPU_MOST_DEVICES || (text && *text && *end)) return -1;
    int count = 0;
    if (!visible) {
        for (; count < there; count++) seen[count] = count;
        return count;
    }
    // As the real driver reads it: what comes before the first entry that names no device. Names of cards are not known.
    while (*visible && count < SOFTGPU_MOST_DEVICES) {
        long number = strtol(visible, &end, 10);
        if (end == visible || (*end && *end != ',') || number < 0 || number >= there) break;
        for (int i = 0; i < count; i++)
            if (seen[i] == number) return 0;  // named twice: none is seen
        seen[count++] = (int)number;
        visible = *end ? end + 1 : end;
    }
    return count;
}
