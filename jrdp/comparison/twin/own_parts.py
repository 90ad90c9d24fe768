"""Parts of one's own in PyTorch: the twins of a backbone and a pyramid that a configuration names."""

from __future__ import annotations

from torch import Tensor, nn

from jrdp.comparison.twin.model import FPN, LEVELS, Body, Twin
from jrdp.config import ModelConfig
from jrdp.errors import UserError
from jrdp.import_path import import_object

COUNTER = "num_batches_tracked"  # of torch's batch norm; nothing is computed with it, and Jittor's has none


def make(config: ModelConfig, paths: dict[str, str]) -> tuple[nn.Module | None, FPN | None]:
    """(backbone, pyramid), each None where `paths` has no import path for its key.

    A backbone is made as `Class(freeze_at=...)`, says its channels in `out_channels` and gives maps of which the last
    three are C3, C4, C5; a pyramid is derived from `model.FPN`.
    """
    body = fpn = None
    backbone, pyramid = config.backbone, config.pyramid
    if "model.backbone.name" in paths:
        body = _made(paths["model.backbone.name"], "--twin-backbone", nn.Module, freeze_at=backbone.freeze_at)
        if len(getattr(body, "out_channels", ())) < 3:
            raise UserError(f"--twin-backbone: {paths['model.backbone.name']}: out_channels must be the channels of its maps")
    if "model.pyramid.enhancement" in paths:
        if pyramid.upsample != "nearest":
            raise UserError("the PyTorch twin has only model.pyramid.upsample = nearest")
        channels = (body or Body(backbone.name, backbone.strides_in_1x1, backbone.freeze_at)).out_channels[-3:]
        covered = LEVELS if pyramid.levels == "p3-p7" else LEVELS[:3]
        path = paths["model.pyramid.enhancement"]
        fpn = _made(path, "--twin-pyramid", FPN, in_channels=channels, covered=covered, fusion=pyramid.fusion)
    return body, fpn


def tensors(model: Twin) -> dict[str, Tensor]:
    """The twin's tensors by name, as the Jittor network has them."""
    return {name: value for name, value in model.state_dict().items() if not name.endswith(COUNTER)}


def _made(path: str, option: str, base: type, **arguments) -> nn.Module:
    found = import_object(path, option)
    if not isinstance(found, type) or not issubclass(found, base):
        raise UserError(f"{option}: {path} is no class derived from {base.__module__}.{base.__name__}")
    try:
        return found(**arguments)
    except Exception as error:
        raise UserError(f"{option}: {path}: making it raised {type(error).__name__}: {error}") from error
