"""The computations that `jrdp doctor` tries: each against plain NumPy, each small. Import after `runtime.start`."""

from __future__ import annotations

import math

import jittor as jt
import numpy as np
from jittor import nn

# float32 on a CPU; on a GPU cuDNN and cuBLAS may use TF32 (10 bits) for products, and kernels fast approximations.
TOLERANCES = {"cpu": 1e-4, "cuda": 1e-2}


def check_elementwise(device: str) -> str:
    x = _random(0, 4, 5)
    return _compare(device, jt.exp(jt.array(x)) * 2 - 1, np.exp(x) * 2 - 1)


def check_matmul(device: str) -> str:
    a, b = _random(1, 6, 7), _random(2, 7, 5)
    return _compare(device, jt.matmul(jt.array(a), jt.array(b)), a @ b)


def check_convolution(device: str) -> str:
    x, w, g = _random(3, 2, 3, 9, 9), _random(4, 4, 3, 3, 3), _random(5, 2, 4, 5, 5)
    x_var, w_var = jt.array(x), jt.array(w)
    y = nn.conv2d(x_var, w_var, stride=2, padding=1)
    dx, dw = jt.grad((y * jt.array(g)).sum(), [x_var, w_var])
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    expected_dx = np.zeros_like(padded)
    for i in range(3):
        for j in range(3):
            expected_dx[:, :, i : i + 10 : 2, j : j + 10 : 2] += np.einsum("nohw,oc->nchw", g, w[:, :, i, j])
    _compare(device, y, np.einsum("nchwij,ocij->nohw", windows, w))
    _compare(device, dx, expected_dx[:, :, 1:-1, 1:-1])
    _compare(device, dw, np.einsum("nchwij,nohw->ocij", windows, g))
    return "forward and both gradients equal NumPy"


def check_selection(device: str) -> str:
    x = _random(6, 3, 8)
    expected = np.exp(x - x.max(1, keepdims=True))
    _compare(device, nn.softmax(jt.array(x), dim=1), expected / expected.sum(1, keepdims=True))
    rows, columns = jt.where(jt.array(x) > 0)
    if not np.array_equal(np.stack([rows.numpy(), columns.numpy()]), np.stack(np.nonzero(x > 0))):
        raise ArithmeticError("jt.where differs from NumPy")
    return "softmax and where equal NumPy"


def check_roi_align(device: str) -> str:
    from jrdp.ops import roi_align

    features, gradient = _random(7, 2, 3, 8, 10), _random(8, 3, 3, 4, 4)
    variable = jt.array(features)
    pooled = roi_align(variable, _ROIS, 4, 0.25, 2)
    (back,) = jt.grad((pooled * jt.array(gradient)).sum(), [variable])
    expected = _roi_align(features, 4, 0.25)
    _compare(device, pooled, expected)
    # RoIAlign is linear in the features, so the gradient's product with them is known.
    wanted = float((expected * gradient).sum())
    found = float((back.numpy().astype(np.float64) * features).sum())
    if not math.isclose(found, wanted, rel_tol=TOLERANCES[device], abs_tol=TOLERANCES[device]):
        raise ArithmeticError(f"the gradient is wrong: {found:.5f} instead of {wanted:.5f}")
    return "forward and gradient equal NumPy"


def check_multilevel_roi_align(device: str) -> str:
    from jrdp.ops import multilevel_roi_align

    sizes, scales = (6, 3), (0.25, 0.125)
    levels = [_random(9, 2, 3, 8, 10), _random(10, 2, 3, 4, 5)]
    found = multilevel_roi_align([jt.array(level) for level in levels], jt.array(_ROIS), sizes, scales)
    for level, size, scale, pooled in zip(levels, sizes, scales, found):
        _compare(device, pooled, _roi_align(level, size, scale))
    return "two levels equal NumPy"


def check_nms(device: str) -> str:
    from jrdp.ops import nms

    random = np.random.default_rng(11)
    corners = random.uniform(0, 40, (60, 2))
    boxes = np.concatenate([corners, corners + random.uniform(5, 30, (60, 2))], 1).astype(np.float32)
    scores = random.permutation(60).astype(np.float32)
    kept = nms(boxes, scores, 0.5)
    expected = _nms(boxes, scores, 0.5)
    if kept.tolist() != expected:
        raise ArithmeticError(f"kept {kept.tolist()} instead of {expected}")
    return f"keeps the same {len(expected)} of 60 boxes as NumPy"


def check_group_norm(device: str) -> str:
    from jrdp.ops import group_norm

    x, weight, bias, g = _random(13, 2, 6, 4, 5) + 10, _random(14, 6), _random(15, 6), _random(16, 2, 6, 4, 5)
    variable = jt.array(x)
    y = group_norm(variable, jt.array(weight), jt.array(bias), 3)
    (dx,) = jt.grad((y * jt.array(g)).sum(), [variable])
    groups = x.astype(np.float64).reshape(2, 3, -1)
    scale = 1 / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    normal = (groups - groups.mean(2, keepdims=True)) * scale
    _compare(device, y, normal.reshape(x.shape) * weight[:, None, None] + bias[:, None, None])
    given = (g * weight[:, None, None]).reshape(2, 3, -1)
    along = normal * (given * normal).mean(2, keepdims=True)
    _compare(device, dx, (scale * (given - given.mean(2, keepdims=True) - along)).reshape(x.shape))
    return "forward and gradient equal NumPy"


def check_join(device: str) -> str:
    from jrdp.ops import join

    parts = [_random(17, 2, 3, 4), _random(18, 2, 1, 4)]
    return _compare(device, join([jt.array(part) for part in parts], dim=1), np.concatenate(parts, axis=1))


def check_decoding(device: str) -> str:
    from jrdp.config import FcosConfig
    from jrdp.models.fcos_decode import decode, decode_vars

    sizes = [(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)]
    answers = [[_random(k, 1, channels, *size) for k, size in enumerate(sizes)] for channels in (1, 4, 1)]
    answers[1] = [np.exp(3 + level) for level in answers[1]]
    (found,) = decode_vars(*[[jt.array(level) for level in part] for part in answers], [(96, 128)], FcosConfig())
    (expected,) = decode(*answers, [(96, 128)], FcosConfig())
    if not np.array_equal(found.boxes, expected.boxes) or abs(found.scores - expected.scores).max() > 1e-6:
        raise ArithmeticError(f"{len(found.boxes)} boxes that differ from NumPy's {len(expected.boxes)}")
    return f"the same {len(found.boxes)} boxes as NumPy" if device == "cuda" else f"{len(found.boxes)} boxes, by NumPy"


def check_paste_masks(device: str) -> str:
    from jrdp.ops import paste_masks

    probabilities = np.random.default_rng(12).uniform(0, 1, (2, 6, 6)).astype(np.float32)
    boxes = np.array([[3.2, 4.7, 20.1, 17.9], [-4.5, 10, 8, 40]], np.float32)
    found = paste_masks(probabilities, boxes, 24, 30)
    values = np.stack([_paste(p, b, 24, 30) for p, b in zip(probabilities, boxes)])
    differing = (found != (values > 0.5)) & (abs(values - 0.5) > 1e-5)
    if found.shape != values.shape or differing.any():
        raise ArithmeticError(f"{int(differing.sum())} pixels differ from NumPy")
    return f"the same {int(found.sum())} pixels as NumPy"


def small_numbers_are_kept(device: str) -> bool:
    """Whether this thread, and on a CPU those that compute beside it, still have numbers below 1.2e-38, now that kernels
    are loaded (`jrdp.machine.subnormals`)."""
    small = np.full(1 << 16, 1e-40, np.float32)
    here = (small / 2 > 0).all()
    return bool(here and (device == "cuda" or ((jt.array(small) * np.float32(0.5)).numpy() > 0).all()))


CHECKS = (
    ("elementwise", check_elementwise),
    ("matrix product", check_matmul),
    ("convolution", check_convolution),
    ("softmax, where", check_selection),
    ("roi_align", check_roi_align),
    ("multilevel_roi_align", check_multilevel_roi_align),
    ("group_norm", check_group_norm),
    ("join", check_join),
    ("nms", check_nms),
    ("decoding", check_decoding),
    ("paste_masks", check_paste_masks),
)

# batch index, x1, y1, x2, y2: inside, over the border, smaller than a feature pixel
_ROIS = np.array([[0, 3.1, 4.2, 25.7, 30.3], [1, -6, 10, 60, 21.5], [1, 12, 13, 13, 13.5]], np.float32)


def _random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _compare(device: str, found, expected: np.ndarray) -> str:
    found = found.numpy()
    if found.shape != expected.shape:
        raise ArithmeticError(f"shape {found.shape} instead of {expected.shape}")
    error = float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    if not error <= TOLERANCES[device]:
        raise ArithmeticError(f"off by {error:.1e} of the largest value (at most {TOLERANCES[device]:g} is right)")
    return f"error {error:.0e}"


def _roi_align(features: np.ndarray, size: int, scale: float) -> np.ndarray:
    """As released, in loops: no half-pixel shift, at least one feature pixel a side, 2 x 2 samples a bin."""
    pooled = np.zeros((len(_ROIS), features.shape[1], size, size))
    for r, (image, x1, y1, x2, y2) in enumerate(_ROIS.astype(np.float64)):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, x2 * scale, y2 * scale
        height, width = max(y2 - y1, 1.0) / size, max(x2 - x1, 1.0) / size
        for i in range(2 * size):
            for j in range(2 * size):
                value = _bilinear(features[int(image)], y1 + (i + 0.5) * height / 2, x1 + (j + 0.5) * width / 2)
                pooled[r, :, i // 2, j // 2] += value / 4
    return pooled


def _bilinear(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(feature))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    upper = feature[:, top, left] * (1 - u) + feature[:, top, right] * u
    lower = feature[:, bottom, left] * (1 - u) + feature[:, bottom, right] * u
    return upper * (1 - v) + lower * v


def _nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(int(i))
    return sorted(kept)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """With the released convention that both corners are inside a box."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area_a, area_b = ((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
    return width * height / (area_a + area_b - width * height)


def _paste(probability: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Values (before the threshold) of one mask in the picture; -1 outside its box."""
    size = len(probability) + 2
    padded = np.pad(probability, 1)[None].astype(np.float64)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * size / len(probability)
    x1, y1, x2, y2 = (int(v) for v in np.concatenate([centre - half, centre + half]))
    h, w = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    canvas = np.full((height, width), -1.0)
    for row in range(max(y1, 0), min(y1 + h, height)):
        for column in range(max(x1, 0), min(x1 + w, width)):
            y, x = (row - y1 + 0.5) * size / h - 0.5, (column - x1 + 0.5) * size / w - 0.5
            canvas[row, column] = _bilinear(padded, max(y, 0.0), max(x, 0.0))[0]
    return canvas
