"""Where a training starts: random initialisation, an ImageNet backbone, or a full checkpoint."""

from __future__ import annotations

from collections import Counter
from typing import Callable

import jittor as jt

from jrdp import interchange
from jrdp.config import Config
from jrdp.engine.weights import (
    BACKBONE, check_backbone, check_finite, check_preprocessing, expected_tensors, is_backbone_only,
)
from jrdp.interchange import WeightFile
from jrdp.interchange.published import locate
from jrdp.models.layers import FrozenBatchNorm
from jrdp.models.state import assign_state, named_tensors
from jrdp.structures import ImageBatch


def read_start(config: Config) -> WeightFile | None:
    """The weight file that `train.weights` names, checked against the configuration; None when it names none."""
    if config.train.weights is None:
        return None
    file = interchange.read(locate(config.train.weights))
    check_backbone(file, config)
    check_preprocessing(file, config)
    return file


def fill_partly(model, file: WeightFile, first_batch: Callable[[], ImageBatch]) -> str:
    """Fill what `file` has of the network (`train.partial_weights`); returns lines that say what, and what not.

    Where it has nothing of the backbone's batch norms, they are measured as in a start from scratch.

    Raises:
        UserError: if it has nothing that fits.
    """
    tensors = named_tensors(model)
    part = interchange.match_part({name: tuple(value.shape) for name, value in tensors.items()}, file)
    check_finite(part.tensors, file.path)
    assign_state(model, {**{name: value.numpy() for name, value in tensors.items()}, **part.tensors})
    lines = [f"starting from {file.path}: {len(part.tensors)} of the network's {len(tensors)} tensors are filled"]
    for what, names in (
        ("not filled, as the file has none of that name", part.missing),
        ("not filled, as the file's is of another shape", part.misshaped),
        ("in the file and not used", part.unused),
    ):
        if names:
            lines.append(f"  {what}: {len(names)} ({_prefixes(names)})")
    norms = [name for name in tensors if name.startswith(BACKBONE) and name.endswith("running_var")]
    if norms and not any(name in part.tensors for name in norms):
        _measure_norms(model, first_batch())
        lines.append("  batch norm of the backbone measured on one batch")
    return "\n".join(lines)


def _prefixes(names: list[str]) -> str:
    """What names begin with, with how many begin so."""
    counts = Counter(".".join(name.split(".")[:3]) for name in names)
    return ", ".join(f"{prefix}: {count}" for prefix, count in counts.items())


def start_from_scratch(model, batch: ImageBatch) -> str:
    """Let the frozen batch norms of a random backbone normalise, by the statistics of one batch of the training set.

    The released code always starts from ImageNet weights (convention 34). Frozen batch norm does nothing without statistics: the
    residual branches of a random network would then add up to activations that no learning rate suits.
    """
    _measure_norms(model, batch)
    return "starting from random weights (train.weights is not set), batch norm measured on one batch"


def _measure_norms(model, batch: ImageBatch) -> None:
    norms = [module for module in model.backbone.body.modules() if isinstance(module, FrozenBatchNorm)]
    for norm in norms:
        norm.measuring = True
    with jt.no_grad():
        jt.sync(list(model.backbone.body(jt.array(batch.images))))
    for norm in norms:
        norm.measuring = False


def initialise(model, file: WeightFile) -> str:
    """Fill `model` from `file`, strictly; returns a line that says where training starts.

    A file with backbone tensors alone fills the backbone; any other file must fill the whole network.
    """
    tensors = named_tensors(model)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    matched = interchange.match(expected_tensors(shapes, file), file)
    check_finite(matched.tensors, file.path)
    assign_state(model, {**{name: value.numpy() for name, value in tensors.items()}, **matched.tensors})
    what = "the backbone" if is_backbone_only(file) else "all weights"
    prefix = f" ({file.prefix} taken off their names)" if file.prefix else ""
    return f"starting from {file.path}: {what}, {len(matched.tensors)} tensors{prefix}"
