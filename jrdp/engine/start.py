"""Where a training starts: random initialisation, an ImageNet backbone, or a full checkpoint."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import Callable, Container, Iterator

import jittor as jt

from jrdp import interchange
from jrdp.config import Config
from jrdp.engine.weights import check_backbone, check_finite, check_preprocessing, expected_tensors, is_backbone_only
from jrdp.errors import UserError
from jrdp.interchange import WeightFile
from jrdp.interchange.published import locate
from jrdp.models.layers import FrozenBatchNorm
from jrdp.models.state import assign_state, named_tensors, tensor_dtypes, tensor_info
from jrdp.structures import ImageBatch


def read_start(config: Config) -> WeightFile | None:
    """The weight file that `train.weights` names, checked against the configuration; None when it names none."""
    if config.train.weights is None:
        return None
    file = interchange.read(locate(config.train.weights))
    if not config.train.partial_weights:  # with them, another backbone is filled as far as it goes
        with _advice():
            check_backbone(file, config)
    check_preprocessing(file, config)
    return file


@contextmanager
def _advice() -> Iterator[None]:
    """Add to what refuses weights what takes them anyway."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; train.partial_weights=true takes what fits") from error


def fill_partly(model, file: WeightFile, first_batch: Callable[[], ImageBatch]) -> str:
    """Fill what `file` has of the network (`train.partial_weights`); returns lines that say what, and what not.

    Frozen batch norms of the backbone of which it has nothing are measured as in a start from scratch.

    Raises:
        UserError: if it has nothing that fits.
    """
    tensors = named_tensors(model)
    part = interchange.match_part({name: tuple(value.shape) for name, value in tensors.items()}, file, tensor_dtypes(model))
    check_finite(part.tensors, file.path)
    assign_state(model, {**{name: value.numpy() for name, value in tensors.items()}, **part.tensors})
    lines = [f"starting from {file.path}: {len(part.tensors)} of the network's {len(tensors)} tensors are filled"]
    for what, names in (
        ("not filled, as the file has none of that name", part.missing),
        ("not filled, as the file's is of another type or another shape", part.misshaped),
        ("in the file and not used", part.unused),
    ):
        if names:
            lines.append(f"  {what}: {len(names)} ({_prefixes(names)})")
    filled = {id(tensors[name]) for name in part.tensors}
    norms = [norm for norm in _norms(model) if id(norm.running_var) not in filled]
    if norms:
        _measure(norms, model, first_batch())
        lines.append(f"  batch norm of the backbone measured on one batch: {len(norms)} of {len(_norms(model))} layers")
    left = _left_random(model, part.tensors)
    return "\n".join(lines + ([f"  {left}"] if left else []))


def _prefixes(names: list[str]) -> str:
    """What names begin with, with how many begin so."""
    counts = Counter(".".join(name.split(".")[:3]) for name in names)
    return ", ".join(f"{prefix}: {count}" for prefix, count in counts.items())


def start_from_scratch(model, batch: ImageBatch) -> str:
    """Let the frozen batch norms of a random backbone normalise, by the statistics of one batch of the training set.

    The released code always starts from ImageNet weights (convention 34). Frozen batch norm does nothing without statistics: the
    residual branches of a random network would then add up to activations that no learning rate suits.
    """
    _measure(_norms(model), model, batch)
    note = "starting from random weights (train.weights is not set), batch norm measured on one batch"
    left = _left_random(model)
    return f"{note}; {left}" if left else note


def _left_random(model, filled: Container[str] = ()) -> str:
    """What is frozen though no weights fill it, and how to let it learn; nothing where there is none."""
    frozen = [name for name, info in tensor_info(model).items() if info.kind == "parameter" and not info.trainable]
    names = [name for name in frozen if name not in filled]
    return f"frozen and random: {len(names)} tensors ({_prefixes(names)}); model.backbone.freeze_at=0 lets them learn" if names else ""


def _norms(model) -> list[FrozenBatchNorm]:
    return [module for module in model.backbone.body.modules() if isinstance(module, FrozenBatchNorm)]


def _measure(norms: list[FrozenBatchNorm], model, batch: ImageBatch) -> None:
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
    with _advice():
        matched = interchange.match(expected_tensors(shapes, file), file, tensor_dtypes(model))
    check_finite(matched.tensors, file.path)
    assign_state(model, {**{name: value.numpy() for name, value in tensors.items()}, **matched.tensors})
    what = "the backbone" if is_backbone_only(file) else "all weights"
    prefix = f" ({file.prefix} taken off their names)" if file.prefix else ""
    return f"starting from {file.path}: {what}, {len(matched.tensors)} tensors{prefix}"
