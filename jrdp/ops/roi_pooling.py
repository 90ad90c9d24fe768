"""RoIAlign on one feature map or on several at once, without the half-pixel shift (convention 17)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence

import jittor as jt
import numpy as np

from .compile import Kernels

MAX_LEVELS = 8  # kMaxRoiLevels in kernels/roi_align.h
KERNELS = Kernels(cpu="roi_align_cpu.h", cuda="roi_align.cuh")


def roi_align(
    features, rois, output_size: int, spatial_scale: float, sampling_ratio: int = 2, deterministic: bool = True
):
    """Pool every box from one feature map into `output_size` x `output_size` bins.

    Args:
        features: Var [N, C, H, W] float32.
        rois: Var or array [R, 5] float32: batch index, x1, y1, x2, y2 in network pixels. R may be 0.
        output_size: bins a side, P.
        spatial_scale: feature pixels per network pixel, for example 1/8.
        sampling_ratio: bilinear samples a bin and direction; 0 takes ceil(bin length in feature pixels).
        deterministic: as in `multilevel_roi_align`.

    Returns:
        Var [R, C, P, P] float32, differentiable in `features`.

    Raises:
        ValueError, RuntimeError: as `multilevel_roi_align`.
    """
    return multilevel_roi_align([features], rois, (output_size,), (spatial_scale,), sampling_ratio, deterministic)[0]


def multilevel_roi_align(
    features: Sequence,
    rois,
    output_sizes: Sequence[int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 2,
    deterministic: bool = True,
) -> list:
    """Pool every box from every feature map, in one operator (on CUDA one launch) for all levels.

    RoIAlign of He et al. (Mask R-CNN, 2017) as the released network uses it: boxes are scaled without a shift of half a
    pixel, are at least one feature pixel wide and high, and samples outside [-1, length] of the map count as zero.

    Args:
        features: 1 to 8 Vars [N, C, H_l, W_l] float32, of one N and C.
        rois: Var or array [R, 5] float32: batch index, x1, y1, x2, y2 in network pixels. R may be 0.
        output_sizes: bins a side on each level, P_l.
        spatial_scales: feature pixels per network pixel on each level.
        sampling_ratio: bilinear samples a bin and direction; 0 takes ceil(bin length in feature pixels).
        deterministic: on CUDA, whether the backward pass gathers per feature pixel, always with the same result, or
            scatters with atomic additions, whose order varies from run to run. On a CPU it is always deterministic.

    Returns:
        list of Vars [R, C, P_l, P_l] float32, differentiable in `features`. Sizes, scales and counts of boxes may
        change from call to call without anything being compiled anew; only another number of levels is another kernel.

    Raises:
        ValueError: an argument of the wrong kind, shape or dtype; and, when `rois` is an array, a box (named by its
            index) that is not finite or whose batch index is outside 0..N-1.
        RuntimeError: the same defects of the boxes when `rois` is a Var, raised on a CPU when the result is computed.
            On CUDA looking at the boxes would wait for the device: there such a box pools zeros and passes no gradient.
    """
    features = list(features)
    _check_levels(features, output_sizes, spatial_scales, sampling_ratio)
    rois = _check_rois(rois, images=features[0].shape[0])
    plan = _Plan(tuple(output_sizes), tuple(spatial_scales), sampling_ratio, deterministic, KERNELS)
    return _pool(features, rois, plan)


@dataclass(frozen=True)
class _Plan:
    sizes: tuple
    scales: tuple
    sampling: int
    deterministic: bool
    kernels: Kernels

    def shimmed(self) -> _Plan:
        return replace(self, kernels=self.kernels.shimmed())


def _pool(features: list, rois, plan: _Plan) -> list:
    return list(_RoiAlign.apply(plan, rois, *features))


class _RoiAlign(jt.Function):
    def execute(self, plan, rois, *features):
        images, channels = features[0].shape[:2]
        self.plan, self.rois, self.shapes = plan, rois, [list(feature.shape) for feature in features]
        self.pooled_shapes = [[rois.shape[0], channels, size, size] for size in plan.sizes]
        source = _collect(len(features), feature="in", pooled="out") + "roi_align_forward(levels, in0_p);"
        return plan.kernels.run(source, [rois, *features], self.pooled_shapes, _floats(features), self._data())

    def grad(self, *gradients):
        gradients = [
            jt.zeros(shape, "float32") if gradient is None else gradient
            for gradient, shape in zip(gradients, self.pooled_shapes)
        ]
        source = _collect(len(gradients), feature="out", pooled="in")
        source += 'roi_align_backward(levels, in0_p, data["deterministic"] != 0);'
        data = self._data(deterministic=self.plan.deterministic)
        inputs = [self.rois, *gradients]
        return None, None, *self.plan.kernels.run(source, inputs, self.shapes, _floats(gradients), data)

    def _data(self, **more) -> dict:
        scales = {f"scale{level}": scale for level, scale in enumerate(self.plan.scales)}
        return {"sampling": self.plan.sampling, **scales, **more}


def _collect(count: int, feature: str, pooled: str) -> str:
    """C++ that puts `count` levels into `levels`: inputs follow the boxes (in1, in2...), outputs start at out0."""
    first = {"in": 1, "out": 0}
    sizes = f"{feature}{first[feature]}_shape"
    lines = [f'RoiLevels levels = roi_levels(in0_shape0, {sizes}0, {sizes}1, (int)data["sampling"]);']
    for level in range(count):
        source, target = f"{feature}{first[feature] + level}", f"{pooled}{first[pooled] + level}"
        lines.append(
            f"roi_add_level(levels, {source}_p, {target}_p, {source}_shape2, {source}_shape3, {target}_shape2, "
            f'data["scale{level}"]);'
        )
    return "\n".join(lines) + "\n"


def _floats(variables: Sequence) -> list:
    return ["float32"] * len(variables)


def _check_levels(
    features: list, output_sizes: Sequence[int], spatial_scales: Sequence[float], sampling_ratio: int
) -> None:
    if not 1 <= len(features) <= MAX_LEVELS:
        raise ValueError(f"features: 1 to {MAX_LEVELS} levels are supported, got {len(features)}")
    for level, feature in enumerate(features):
        if not isinstance(feature, jt.Var) or feature.ndim != 4 or feature.dtype != "float32":
            raise ValueError(f"features[{level}]: expected a float32 Var [N, C, H, W], got {_describe(feature)}")
        if feature.shape[:2] != features[0].shape[:2]:
            raise ValueError(f"features[{level}]: [N, C] is {feature.shape[:2]}, level 0 has {features[0].shape[:2]}")
        if min(feature.shape) < 1:
            raise ValueError(f"features[{level}]: empty, shape {feature.shape}")
    for name, values in (("output_sizes", output_sizes), ("spatial_scales", spatial_scales)):
        if len(values) != len(features):
            raise ValueError(f"{name}: {len(values)} values for {len(features)} levels")
        bad = [value for value in values if not 0 < value < float("inf")]
        if bad:
            raise ValueError(f"{name}: must be positive, got {bad[0]}")
    if any(size != int(size) for size in output_sizes):
        raise ValueError(f"output_sizes: must be whole numbers, got {tuple(output_sizes)}")
    if sampling_ratio != int(sampling_ratio) or sampling_ratio < 0:
        raise ValueError(f"sampling_ratio: must be a whole number of at least 0, got {sampling_ratio}")


def _check_rois(rois, images: int):
    if isinstance(rois, jt.Var):
        if rois.ndim != 2 or rois.shape[1] != 5 or rois.dtype != "float32":
            raise ValueError(f"rois: expected float32 [R, 5] (batch index, x1, y1, x2, y2), got {_describe(rois)}")
        return rois
    array = np.asarray(rois, np.float32)
    if array.ndim != 2 or array.shape[1] != 5:
        raise ValueError(f"rois: expected float32 [R, 5] (batch index, x1, y1, x2, y2), got {_describe(array)}")
    broken = np.flatnonzero(~(np.abs(array) <= 2**24).all(axis=1))
    if len(broken):
        raise ValueError(f"rois: box {broken[0]} is not finite or too large: {array[broken[0]].tolist()}")
    foreign = np.flatnonzero((array[:, 0] < 0) | (array[:, 0] >= images))
    if len(foreign):
        index = array[foreign[0], 0]
        raise ValueError(f"rois: box {foreign[0]} has batch index {index:g}, the batch has {images} images")
    return jt.array(array)


def _describe(value) -> str:
    if isinstance(value, (jt.Var, np.ndarray)):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
