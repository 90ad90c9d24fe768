"""Strict matching of a file's tensors to a network's: each filled exactly once, nothing silently left over."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Mapping, Optional

import numpy as np

from jrdp.errors import UserError
from jrdp.interchange.backbones import RELEASED, Row, from_caffe2, from_torchvision
from jrdp.interchange.layout import LAST_SCALE, likeness
from jrdp.interchange.tensors import Tensor, as_float32, dtype_name
from jrdp.interchange.weight_file import WeightFile

_SHOWN = 3
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass
class Matched:
    """A file's tensors that fit a network.

    Attributes:
        tensors: every expected name -> float32 array of the expected shape, in the expected order (bfloat16 and float16
            widened exactly, float64 rounded).
        exact: the same with the file's own element types, for writing to another file.
        used: source name -> expected name.
        ignored: source name -> reason, for each tensor of the file on the written list of exceptions.
        rows: one for each tensor, for `jrdp convert` to print.
    """

    tensors: dict[str, np.ndarray]
    exact: dict[str, Tensor]
    used: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def match(
    expected: Mapping[str, tuple], source: WeightFile | Mapping[str, Tensor], source_kind: Optional[str] = None
) -> Matched:
    """Fit `source` to `expected` (name -> shape), or say why it does not fit.

    `source` is a `WeightFile` or a dictionary whose names are of `source_kind`: "released" (default), "torchvision" or
    "caffe2". The exceptions, all of them: batch norm's `num_batches_tracked`; the ImageNet classifier and the training
    state's blobs in a backbone file; `rpn.head.scales.5.scale`, which the released code stores and never uses, may be
    absent on either side (then it is 1, its initial value, or left out).

    Raises:
        UserError: one line with the number of missing, unexpected and mis-shaped tensors, the first few of each with
            the nearest names, and what the file and the network look like.
    """
    file = source if isinstance(source, WeightFile) else _file_of(dict(source), source_kind or RELEASED)
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    source_of = {row.target: row.source for row in file.rows if row.target is not None}
    matched = Matched({}, {})
    for row in file.rows:
        if row.target is None:
            matched.ignored[row.source] = row.note
            matched.rows.append(row)
    unexpected = []
    for name, tensor in file.tensors.items():
        if name in shapes:
            continue
        reason = _reason_to_ignore(name)
        if reason is None:
            unexpected.append(name)
        else:
            origin = source_of.get(name) or name
            matched.ignored[origin] = reason
            matched.rows.append(Row(origin, None, tuple(tensor.shape), dtype_name(tensor), f"left out: {reason}"))
    missing = [name for name in shapes if name not in file.tensors and name != LAST_SCALE]
    misshaped = [name for name in shapes if name in file.tensors and tuple(file.tensors[name].shape) != shapes[name]]
    not_float = [name for name in shapes if name in file.tensors and dtype_name(file.tensors[name]) not in _FLOATS]
    if missing or unexpected or misshaped or not_float:
        raise UserError(_explain(shapes, file, missing, unexpected, misshaped, not_float))
    notes = {row.target: row.note for row in file.rows}
    for name, shape in shapes.items():
        if name in file.tensors:
            tensor, origin, note = file.tensors[name], source_of.get(name), notes.get(name, "")
        else:
            tensor, origin, note = np.ones(shape, np.float32), None, "1: absent in the file, never used"
        matched.exact[name] = tensor
        matched.tensors[name] = as_float32(tensor)
        if origin is not None:
            matched.used[origin] = name
        matched.rows.append(Row(origin, name, shape, dtype_name(tensor), note))
    return matched


@dataclass
class Part:
    """What `match_part` found: tensors float32 by name, and the names that found no partner."""

    tensors: dict[str, np.ndarray]
    missing: list[str]  # of the network: the file has none of that name
    misshaped: list[str]  # of the network: the file's has another shape, or no floating-point numbers
    unused: list[str]  # of the file


def match_part(expected: Mapping[str, tuple], file: WeightFile) -> Part:
    """The tensors of `file` that have a name and shape of `expected`, whatever else there is on either side.

    Raises:
        UserError: if there is none.
    """
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    fits = {
        name: as_float32(file.tensors[name])
        for name, shape in shapes.items()
        if name in file.tensors and tuple(file.tensors[name].shape) == shape and dtype_name(file.tensors[name]) in _FLOATS
    }
    if not fits:
        raise UserError(f"{file.path or 'the weights'}: no tensor has the name and shape of one of the network's; it looks like {file.likeness}")
    return Part(
        fits,
        missing=[name for name in shapes if name not in file.tensors],
        misshaped=[name for name in shapes if name in file.tensors and name not in fits],
        unused=[name for name in file.tensors if name not in shapes],
    )


def _file_of(tensors: dict[str, Tensor], kind: str) -> WeightFile:
    if kind == "torchvision":
        renamed = from_torchvision(tensors)
        return WeightFile(renamed.tensors, naming=kind, rows=renamed.rows)
    if kind == "caffe2":
        renamed = from_caffe2(tensors)
        return WeightFile(renamed.tensors, naming=kind, rows=renamed.rows)
    rows = [Row(name, name, tuple(tensor.shape), dtype_name(tensor)) for name, tensor in tensors.items()]
    return WeightFile(tensors, naming=kind, rows=rows)


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
    not_float: list[str],
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
    near = difflib.get_close_matches(name, short, n=1, cutoff=0.75)
    return f" [nearest: {near[0]}]" if near else ""

