"""Non-maximum suppression (conventions 20 and 35)."""

from __future__ import annotations

import jittor as jt
import numpy as np

from .compile import Kernels

KERNELS = Kernels(cpu="nms_cpu.h", cuda="nms.cuh")

_SOURCE = (
    'nms_run(in0_p, in1_p, in0_shape0, (float)data["threshold"], '
    "out0_p, out1_p, out2_p, out3_p, out4_p, out5_p);"
)


def nms(boxes, scores, iou_threshold: float) -> np.ndarray:
    """Indices of the boxes that survive greedy suppression, ascending.

    As the released CUDA code: boxes are taken by descending score, equal scores in the order given; a box falls when
    its IoU with a kept one is above the threshold. Widths are x2 - x1 + 1, IoU and threshold are float32.

    Args:
        boxes: Var or array [n, 4], x1, y1, x2, y2 in pixels; float32 (arrays are converted).
        scores: Var or array [n], float32.
        iou_threshold: suppress above this.

    Returns:
        int64 array [k]. Fetching it is the one synchronization with the device.

    Raises:
        ValueError: wrong shape or dtype, or a box or score that is not finite, named by its index.
    """
    keep, status = nms_on_device(boxes, scores, iou_threshold)
    count, broken = status.numpy()
    if broken >= 0:
        raise ValueError(f"boxes: box {broken} or its score is not finite")
    return keep.numpy()[:count].astype(np.int64)


def nms_on_device(boxes, scores, iou_threshold: float, kernels: Kernels = KERNELS) -> tuple:
    """As `nms`, without leaving the device and without waiting for it.

    Returns:
        keep: Var [n] int32, kept indices ascending, then -1.
        status: Var [2] int32: how many are kept, and the index of the first box that is not finite or -1 (then none is
            kept).
    """
    boxes, scores = _floats("boxes", boxes), _floats("scores", scores)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes: expected [n, 4], got {list(boxes.shape)}")
    n = boxes.shape[0]
    if list(scores.shape) != [n]:
        raise ValueError(f"scores: expected [{n}] to go with {n} boxes, got {list(scores.shape)}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: expected 0 to 1, got {iou_threshold}")
    if n == 0:
        return jt.array(np.zeros(0, np.int32)), jt.array(np.array([0, -1], np.int32))
    words = (n + 63) // 64
    scratch = [[n, 5], [n], [(n + 1) * words * 2], [n]] if kernels.need_cuda_scratch else [[1]] * 4
    keep, status, *_ = kernels.run(
        _SOURCE,
        [boxes, scores],
        [[n], [2], *scratch],
        ["int32", "int32", "float32", "int32", "int32", "int32"],
        {"threshold": iou_threshold},
    )
    return keep, status


def _floats(name: str, value):
    if isinstance(value, jt.Var):
        if value.dtype != "float32":
            raise ValueError(f"{name}: expected float32, got {value.dtype}")
        return value
    return jt.array(np.ascontiguousarray(value, np.float32))
