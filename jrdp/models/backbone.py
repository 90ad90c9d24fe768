"""Which backbone a config asks for: a ResNet, or one of one's own by its import path."""

from __future__ import annotations

from jittor import nn

from jrdp.config import BackboneConfig
from jrdp.models.own_parts import make_backbone
from jrdp.models.resnet import ResNet
from jrdp.models.shapes import RESNETS


def build_body(config: BackboneConfig) -> nn.Module:
    """Images -> maps of which the last three are C3, C4, C5; `out_channels` holds the channels of each.

    Raises `UserError` for a backbone of one's own that cannot be imported or does not fit.
    """
    if config.name in RESNETS:
        return ResNet(*RESNETS[config.name], stride_in_1x1=config.strides_in_1x1, freeze_at=config.freeze_at)
    return make_backbone(config.name, config.freeze_at)
