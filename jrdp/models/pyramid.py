"""Which pyramid a config asks for."""

from __future__ import annotations

from jrdp.config import PyramidConfig
from jrdp.models.dense_pyramid import (
    DensePyramid,
    ProgressivePyramid,
    RegularizedDensePyramid,
    TopDownRegularizedPyramid,
)
from jrdp.models.fpn import FPN
from jrdp.models.pyramid_variants import BiFpn, NasFpn, PathAggregation


def build_pyramid(config: PyramidConfig, in_channels: tuple[int, int, int]) -> FPN:
    """The pyramid that `config.enhancement` names, over maps C3, C4, C5 with `in_channels`.

    Raises `UserError` where an enhancement does not work on the levels that `config.levels` asks for.
    """
    if config.enhancement == "progressive":
        return ProgressivePyramid(config, in_channels)
    if config.enhancement == "dense":
        return DensePyramid(config, in_channels)
    if config.enhancement == "regularized":
        return RegularizedDensePyramid(config, in_channels)
    if config.enhancement == "top_down_regularized":
        return TopDownRegularizedPyramid(config, in_channels)
    if config.enhancement == "pa":
        return PathAggregation(config, in_channels)
    if config.enhancement == "nas_fpn":
        return NasFpn(config, in_channels)
    if config.enhancement == "bifpn":
        return BiFpn(config, in_channels)
    return FPN(config, in_channels)
