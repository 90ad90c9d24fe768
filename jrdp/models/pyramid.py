"""Which pyramid a config asks for."""

from __future__ import annotations

from typing import Sequence

from jrdp.config import PyramidConfig
from jrdp.models.dense_pyramid import (
    DensePyramid,
    ProgressivePyramid,
    RegularizedDensePyramid,
    TopDownRegularizedPyramid,
)
from jrdp.models.fpn import FPN
from jrdp.models.own_parts import make_pyramid
from jrdp.models.pyramid_variants import BiFpn, NasFpn, PathAggregation

PYRAMIDS = {
    "none": FPN,
    "progressive": ProgressivePyramid,
    "dense": DensePyramid,
    "regularized": RegularizedDensePyramid,
    "top_down_regularized": TopDownRegularizedPyramid,
    "pa": PathAggregation,
    "nas_fpn": NasFpn,
    "bifpn": BiFpn,
}


def build_pyramid(config: PyramidConfig, in_channels: Sequence[int]) -> FPN:
    """The pyramid that `config.enhancement` names, or one of one's own, over maps C3, C4, C5 with `in_channels`.

    Raises `UserError` where an enhancement does not work on the levels that `config.levels` asks for, and for one of
    one's own that cannot be imported or does not fit.
    """
    options = {"levels": config.levels, "upsample": config.upsample, "fusion": config.fusion}
    if config.enhancement in PYRAMIDS:
        return PYRAMIDS[config.enhancement](in_channels, **options)
    return make_pyramid(config.enhancement, FPN, in_channels, **options)
