"""The operators once more, in plain loops and float64, to test the kernels against: to be read, not to be fast."""

from __future__ import annotations

import math

import numpy as np

# The network's own levels.
SIZES = (32, 16, 8, 4, 4)
SCALES = (1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128)
MAPS = ((40, 60), (20, 30), (10, 15), (5, 8), (3, 4))  # of a 320 x 480 picture


def axis_weights(low, high, length: int, size: int, scale: float, sampling: int, aligned: bool) -> np.ndarray:
    """[size, length]: how much each pixel of a row counts in each bin; averaged over the samples of the bin.

    Positions are float32, operation by operation as released: some goldens have a sample at -1 exactly or just beyond,
    which is the difference between the border's value and nothing. The weights are float64.
    """
    f32 = np.float32
    shift = f32(0.5 if aligned else 0.0)
    start = f32(low) * f32(scale) - shift
    extent = f32(high) * f32(scale) - shift - start
    if not aligned:
        extent = max(extent, f32(1))
    bin_length = extent / f32(size)
    samples = sampling if sampling > 0 else max(math.ceil(bin_length), 1)
    weights = np.zeros((size, length))
    for i in range(size):
        for s in range(samples):
            position = float(start + f32(i) * bin_length + f32(s + 0.5) * bin_length / f32(samples))
            if position < -1 or position > length:
                continue
            position = min(max(position, 0.0), length - 1.0)
            near = min(int(position), length - 1)
            far = min(near + 1, length - 1)
            weights[i, near] += (1 - (position - near)) / samples
            weights[i, far] += (position - near) / samples
    return weights


def roi_weights(roi, shape, size: int, scale: float, sampling: int, aligned: bool) -> tuple:
    """The bins' weights on rows [size, H] and on columns [size, W] of the map of one box."""
    _, x1, y1, x2, y2 = roi
    height, width = shape
    rows = axis_weights(y1, y2, height, size, scale, sampling, aligned)
    columns = axis_weights(x1, x2, width, size, scale, sampling, aligned)
    return rows, columns


def roi_align_forward(features, rois, size, scale, sampling, aligned=False) -> np.ndarray:
    pooled = np.zeros((len(rois), features.shape[1], size, size))
    for r, roi in enumerate(rois):
        rows, columns = roi_weights(roi, features.shape[2:], size, scale, sampling, aligned)
        for c in range(features.shape[1]):
            pooled[r, c] = rows @ features[int(roi[0]), c].astype(np.float64) @ columns.T
    return pooled


def roi_align_backward(gradient, shape, rois, size, scale, sampling, aligned=False) -> np.ndarray:
    result = np.zeros(shape)
    for r, roi in enumerate(rois):
        rows, columns = roi_weights(roi, shape[2:], size, scale, sampling, aligned)
        for c in range(shape[1]):
            result[int(roi[0]), c] += rows.T @ gradient[r, c].astype(np.float64) @ columns
    return result


def nms(boxes, scores, threshold: float, plus: int = 1) -> np.ndarray:
    """Kept indices, ascending. Every operation is rounded to float32, in the released order."""
    boxes, plus, threshold = np.asarray(boxes, np.float32), np.float32(plus), np.float32(threshold)
    order = sorted(range(len(boxes)), key=lambda i: -float(scores[i]))  # sorted() is stable
    kept = []
    for i in order:
        if all(not iou(boxes[i], boxes[j], plus) > threshold for j in kept):
            kept.append(i)
    return np.array(sorted(kept), np.int64)


def iou(a, b, plus: np.float32) -> np.float32:
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + plus, np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + plus, np.float32(0))
    overlap = width * height
    area_a = (a[2] - a[0] + plus) * (a[3] - a[1] + plus)
    area_b = (b[2] - b[0] + plus) * (b[3] - b[1] + plus)
    return overlap / (area_a + area_b - overlap)


def paste_probability(probability, box, height: int, width: int, border: int = 1) -> np.ndarray:
    """[height, width] float64: the probability of each pixel of the picture, zero outside the box.

    border: zero pixels around the mask, for which the box grows; 1 as released.
    """
    size = len(probability) + 2 * border
    padded = np.pad(np.asarray(probability, np.float64), border)
    scale = size / len(probability)
    x1, y1, x2, y2 = (float(value) for value in box)
    half_w, half_h, centre_x, centre_y = (x2 - x1) / 2 * scale, (y2 - y1) / 2 * scale, (x1 + x2) / 2, (y1 + y2) / 2
    left, right = int(centre_x - half_w), int(centre_x + half_w)  # int() truncates towards zero
    top, bottom = int(centre_y - half_h), int(centre_y + half_h)
    box_w, box_h = max(right - left + 1, 1), max(bottom - top + 1, 1)
    canvas = np.zeros((height, width))
    for y in range(max(top, 0), min(bottom + 1, height)):
        for x in range(max(left, 0), min(right + 1, width)):
            v = max((y - top + 0.5) * size / box_h - 0.5, 0.0)
            u = max((x - left + 0.5) * size / box_w - 0.5, 0.0)
            v0, u0 = min(int(v), size - 1), min(int(u), size - 1)
            v1, u1 = min(v0 + 1, size - 1), min(u0 + 1, size - 1)
            canvas[y, x] = (1 - (v - v0)) * ((1 - (u - u0)) * padded[v0, u0] + (u - u0) * padded[v0, u1]) + (v - v0) * (
                (1 - (u - u0)) * padded[v1, u0] + (u - u0) * padded[v1, u1]
            )
    return canvas


def random_rois(random, count: int, images: int, width: float = 480, height: float = 320) -> np.ndarray:
    """Boxes as detections are: mostly inside the picture, of all sizes."""
    corner = random.uniform([0, 0], [width, height], (count, 2))
    extent = random.uniform(0, 1, (count, 2)) ** 2 * [width, height]
    far = np.minimum(corner + extent, [width - 1, height - 1])
    batch = random.integers(0, images, (count, 1))
    return np.concatenate([batch, np.minimum(corner, far), far], axis=1).astype(np.float32)


# Boxes at and over every edge of a 480 x 320 picture; points, lines, inverted and huge boxes.
EDGE_ROIS = np.array(
    [
        [0, 0, 0, 479, 319],
        [1, 0, 0, 480, 320],
        [0, 100, 50, 100, 50],
        [1, 100, 50, 100, 200],
        [0, 200, 60, 100, 30],
        [1, -64, -64, 96, 80],
        [0, 400, 250, 700, 500],
        [0, -900, -900, -500, -500],
        [1, 900, 700, 1300, 1100],
        [1, -3000, -2000, 4000, 3000],
        [0, -8, -8, -8, -8],
        [1, 479, 319, 479, 319],
        [0, 3.3, 301.7, 476.1, 318.9],
    ],
    np.float32,
)
