"""Strict matching of a file's tensors to a network's: each filled exactly once, nothing silently left over."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Mapping, Optional

import numpy as np

from jrdp.errors import UserError
from jrdp.interchange.backbones import Row
from jrdp.interchange.layout import LAST_SCALE, likeness
from jrdp.interchange.tensors import FLOATS, Tensor, as_type, dtype_name, fits_type
from jrdp.interchange.weight_file import WeightFile

_SHOWN = 3


@dataclass
class Matched:
    """A file's tensors that fit a network.

    Attributes:
        tensors: every expected name -> array of the expected shape and type, in the expected order (to float32,
            bfloat16 and float16 are widened exactly, float64 is rounded).
        exact: the same with the file's own element types, for writing to another file.
        rows: one for each tensor, for `jrdp convert` to print; first those on the written list of exceptions.
    """

    tensors: dict[str, np.ndarray]
    exact: dict[str, Tensor]
    rows: list[Row]


def match(expected: Mapping[str, tuple], file: WeightFile, dtypes: Mapping[str, str] = MappingProxyType({})) -> Matched:
    """Fit `file` to `expected` (name -> shape), or say why it does not fit.

    dtypes: the element types of those expected tensors that are not float32. A floating-point one takes any floating-point
        type of the file, another only the same.

    The exceptions, all of them: batch norm's `num_batches_tracked`; the ImageNet classifier and the training
    state's blobs in a backbone file; `rpn.head.scales.5.scale`, which the released code stores and never uses, may be
    absent on either side (then it is 1, its initial value, or left out).

    Raises:
        UserError: one line with the number of missing, unexpected and mis-shaped tensors, the first few of each with
            the nearest names, and what the file and the network look like.
    """
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    rows = [row for row in file.rows if row.target is None]
    unexpected = []
    for name, tensor in file.tensors.items():
        if name in shapes:
            continue
        reason = _reason_to_ignore(name)
        if reason is None:
            unexpected.append(name)
        else:
            rows.append(Row(name, None, tuple(tensor.shape), dtype_name(tensor), f"left out: {reason}"))
    missing = [name for name in shapes if name not in file.tensors and name != LAST_SCALE]
    misshaped = [name for name in shapes if name in file.tensors and tuple(file.tensors[name].shape) != shapes[name]]
    wanted = {name: dtypes.get(name, "float32") for name in shapes}
    mistyped = {name: wanted[name] for name in shapes if name in file.tensors and not fits_type(file.tensors[name], wanted[name])}
    if missing or unexpected or misshaped or mistyped:
        raise UserError(_explain(shapes, file, missing, unexpected, misshaped, mistyped))
    exact = {name: file.tensors[name] if name in file.tensors else np.ones(shape, np.float32) for name, shape in shapes.items()}
    told = {row.target: (row.source, row.note) for row in file.rows}
    for name, shape in shapes.items():
        untold = (name, "") if name in file.tensors else (None, "1: absent in the file, never used")
        source, note = told.get(name, untold)
        rows.append(Row(source, name, shape, dtype_name(exact[name]), note))
    return Matched({name: as_type(tensor, wanted[name]) for name, tensor in exact.items()}, exact, rows)


@dataclass
class Part:
    """What `match_part` found: tensors by name, in the network's types, and the names that found no partner."""

    tensors: dict[str, np.ndarray]
    missing: list[str]  # of the network: the file has none of that name
    misshaped: list[str]  # of the network: the file's has another shape or type (`match`)
    unused: list[str]  # of the file


def match_part(expected: Mapping[str, tuple], file: WeightFile, dtypes: Mapping[str, str] = MappingProxyType({})) -> Part:
    """The tensors of `file` that have a name and shape of `expected`, whatever else there is on either side.

    Raises:
        UserError: if there is none.
    """
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    fits = {
        name: as_type(file.tensors[name], dtypes.get(name, "float32"))
        for name, shape in shapes.items()
        if name in file.tensors
        and tuple(file.tensors[name].shape) == shape
        and fits_type(file.tensors[name], dtypes.get(name, "float32"))
    }
    if not fits:
        raise UserError(f"{file.path or 'the weights'}: no tensor has the name and shape of one of the network's; it looks like {file.likeness}")
    return Part(
        fits,
        missing=[name for name in shapes if name not in file.tensors],
        misshaped=[name for name in shapes if name in file.tensors and name not in fits],
        unused=[name for name in file.tensors if name not in shapes],
    )


def _reason_to_ignore(name: str) -> Optional[str]:
    if name.endswith(".num_batches_tracked"):
        return "a counter of batch norm's training"
    if name == LAST_SCALE:
        return "stored by the released code and never used"
    return None


def _explain(
    shapes: dict[str, tuple],
    file: WeightFile,
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
    mistyped: dict[str, str],
) -> str:
    where = str(file.path) if file.path is not None else "the weights"
    found = file.likeness
    wanted = likeness(shapes)
    if found.backbone_only and found.backbone and not wanted.backbone_only and found.backbone == wanted.backbone:
        return (
            f"{where} holds an ImageNet backbone alone ({found}); it can start a training (train.weights), "
            f"but the other {len(missing)} tensors of the network are not in it"
        )
    parts = []
    if missing:
        parts.append(_some("missing", missing, lambda name: _nearest(name, unexpected)))
    if unexpected:
        parts.append(_some("unexpected", unexpected, lambda name: _nearest(name, missing or list(shapes))))
    if misshaped:
        stored = {name: _shape(file.tensors[name].shape) for name in misshaped}
        parts.append(_some("mis-shaped", misshaped, lambda name: f" is {stored[name]}, not {_shape(shapes[name])}"))
    not_float = [name for name, dtype in mistyped.items() if dtype in FLOATS]
    other_type = [name for name in mistyped if name not in not_float]
    if other_type:
        parts.append(_some("of another type", other_type, lambda name: f" is {dtype_name(file.tensors[name])}, not {mistyped[name]}"))
    if not_float:
        parts.append(_some("not floating-point", not_float, lambda name: f" is {dtype_name(file.tensors[name])}"))
    same = str(found) == str(wanted)
    looks = f"both look like {found}" if same else f"the file looks like {found}, the network is {wanted}"
    return f"{where} does not fit the network: {'; '.join(parts)}; {looks}"


def _shape(shape: tuple) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _some(what: str, names: list[str], remark) -> str:
    shown = ", ".join(f"{name}{remark(name)}" for name in [name[:120] for name in names[:_SHOWN]])
    rest = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({shown}{rest})"


def _nearest(name: str, candidates: list[str]) -> str:
    """The most similar candidate; hostile lists and names are cut short."""
    short = [candidate for candidate in candidates[:2000] if len(candidate) <= 200]
    near = difflib.get_close_matches(name, short, cutoff=0.75)
    return f" [nearest: {near[0]}]" if near else ""

