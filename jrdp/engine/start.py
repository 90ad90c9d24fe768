"""Where a training starts: random initialisation, an ImageNet backbone, or a full checkpoint."""

from __future__ import annotations

import jittor as jt

from jrdp import interchange
from jrdp.config import Config
from jrdp.engine.weights import check_finite, check_preprocessing, expected_tensors, is_backbone_only
from jrdp.errors import UserError
from jrdp.interchange import WeightFile
from jrdp.interchange.layout import BACKBONE_NAMES
from jrdp.interchange.published import locate
from jrdp.models.layers import FrozenBatchNorm
from jrdp.models.state import assign_state, named_tensors
from jrdp.structures import ImageBatch


def read_start(config: Config) -> WeightFile | None:
    """The weight file that `train.weights` names, checked against the configuration; None when it names none."""
    if config.train.weights is None:
        return None
    file = interchange.read(locate(config.train.weights))
    _check_backbone(file, config)
    check_preprocessing(file, config)
    return file


def _check_backbone(file: WeightFile, config: Config) -> None:
    """Refuse another backbone before anything is asked of its preprocessing, which would not help then."""
    wanted, look = config.model.backbone.name, file.likeness
    if look.backbone == wanted or wanted not in BACKBONE_NAMES:  # one of somebody's own has tensors of its own
        return
    if not look.backbone:
        what = f"it looks like {look}" if look.backbone is None else "it has no backbone"
        names = ", ".join(name[:80] for name in list(file.tensors)[:3])
        raise UserError(
            f"{file.path} does not fit: {BACKBONE_NAMES[wanted]} is needed (model.backbone.name={wanted}), {what}; its "
            f"tensors are {names}, ..."
        )
    raise UserError(
        f"{file.path} does not fit: its backbone is {BACKBONE_NAMES[look.backbone]}, the configuration has "
        f"{BACKBONE_NAMES[wanted]}; use --set model.backbone.name={look.backbone} or other weights"
    )


def start_from_scratch(model, batch: ImageBatch) -> str:
    """Let the frozen batch norms of a random backbone normalise, by the statistics of one batch of the training set.

    The released code always starts from ImageNet weights. Frozen batch norm does nothing without statistics: the
    residual branches of a random network would then add up to activations that no learning rate suits.
    """
    norms = [module for module in model.backbone.body.modules() if isinstance(module, FrozenBatchNorm)]
    for norm in norms:
        norm.measuring = True
    with jt.no_grad():
        jt.sync(list(model.backbone.body(jt.array(batch.images))))
    for norm in norms:
        norm.measuring = False
    return "starting from random weights (train.weights is not set), batch norm measured on one batch"


def initialise(model, file: WeightFile) -> str:
    """Fill `model` from `file`, strictly; returns a line that says where training starts.

    A file with backbone tensors alone fills the backbone; any other file must fill the whole network.
    """
    tensors = named_tensors(model)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    matched = interchange.match(expected_tensors(shapes, file), file)
    check_finite(matched.tensors, file.path)
    assign_state(model, {**{name: value.numpy() for name, value in tensors.items()}, **matched.tensors})
    what = "the ImageNet backbone" if is_backbone_only(file) else "all weights"
    prefix = f" ({file.prefix} taken off their names)" if file.prefix else ""
    return f"starting from {file.path}: {what}, {len(matched.tensors)} tensors{prefix}"
