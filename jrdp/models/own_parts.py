"""Parts of one's own, named in the configuration by their import path: made, and checked before anything runs.

Jittor computes only when a value is asked for, so the checks read shapes and cost nothing.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import contextmanager
from typing import Iterator, Sequence

import jittor as jt
from jittor import nn

from jrdp.errors import UserError
from jrdp.import_path import explained, import_object
from jrdp.interchange.tensors import NUMPY_TYPES
from jrdp.models.shapes import BODY_STRIDES, LEVELS, PYRAMID_CHANNELS, STRIDES
from jrdp.models.state import held_tensors, tensor_dtypes

_SIZE = (64, 96)  # of the picture that the checks think of
_MAPS = ("C3", "C4", "C5")
_STORED = [dtype for dtype in NUMPY_TYPES if dtype != "bfloat16"]  # NumPy, by which tensors are written, has no such type


def own_class(path: str, key: str, base: type) -> type:
    """The class that an import path names, which must be derived from `base`; else a `UserError`."""
    found = import_object(path, key)
    if not isinstance(found, type) or not issubclass(found, base):
        what = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise UserError(f"{key}: {path} is {what}, not a class derived from {base.__module__}.{base.__name__}")
    return found


@contextmanager
def named(key: str, path: str, doing: str) -> Iterator[None]:
    """Turn what code of one's own raises into a `UserError` that says where it came from: file and line, where known."""
    with explained(f"{key}: {path}: {doing}", getattr(sys.modules.get(path.partition(":")[0]), "__file__", None)):
        yield


def takes_stages(method) -> bool:
    """Whether a method has the optional argument `stages`, to record intermediate results in."""
    return "stages" in inspect.signature(method).parameters


def modal_parts(*parts: nn.Module) -> tuple[nn.Module, ...]:
    """The modules (batch norm, dropout, ...) that compute something else in training than in prediction."""
    return tuple(module for part in parts for module in part.modules() if "is_train" in vars(module))


def set_training(modules: Sequence[nn.Module], training: bool) -> None:
    for module in modules:
        module.is_train = training


@contextmanager
def _trial(part: nn.Module) -> Iterator[None]:
    """Running `part` in here leaves no trace in its running statistics."""
    modal = modal_parts(part)
    set_training(modal, False)
    with jt.no_grad():
        yield
    set_training(modal, True)


def refuse_hidden(what: str, part: nn.Module) -> None:
    """Raise `UserError` for what neither Jittor nor we find or can store: it would be neither trained nor saved.

    Jittor looks into modules, `nn.Sequential` and `nn.ParameterList`, not into plain lists and dictionaries; what is in one
    of those too is found where it is an attribute.
    """
    try:
        modules = part.modules()
    except RecursionError as error:
        raise UserError(f"{what}: {type(part).__name__} holds a module that holds it in turn, without end") from error
    found = {id(member) for member in (*modules, *held_tensors(part))}
    for module in modules:
        for name, value in vars(module).items():
            hidden = next((member for member in _within(value) if id(member) not in found), None)
            if hidden is not None:
                raise UserError(f"{what}: {type(module).__name__}.{name} {_hidden(module, value, hidden)}")
    for name, dtype in tensor_dtypes(part).items():
        if dtype not in _STORED:
            raise UserError(f"{what}: its tensor {name} is {dtype}, which weight files do not hold; use one of {', '.join(_STORED)}")


def _within(value: object, depth: int = 4) -> Iterator[object]:
    """The modules and tensors in a value: itself, or those in lists, tuples, sets and dictionaries, also nested."""
    if isinstance(value, (nn.Module, jt.Var)):
        yield value
    elif isinstance(value, (list, tuple, set, frozenset, dict)) and depth:
        for member in value.values() if isinstance(value, dict) else value:
            yield from _within(member, depth - 1)


def _hidden(module: nn.Module, value: object, hidden: object) -> str:
    lost = "which would be neither trained nor saved"
    if isinstance(value, nn.Module):  # only those of an nn.Sequential are not found
        return f"is a module beside the layers of an nn.Sequential, {lost}: derive {type(module).__name__} from nn.Module"
    if isinstance(value, jt.Var):
        return f"is a tensor beside those in an nn.ParameterList, {lost}: derive {type(module).__name__} from nn.Module"
    if isinstance(hidden, nn.Module):
        return f"is a {type(value).__name__} of modules, {lost}: use nn.Sequential"
    return (
        f"is a {type(value).__name__} of tensors, {lost}: use nn.ParameterList, or for a constant an attribute whose name "
        "begins with an underscore"
    )


def make_backbone(path: str, freeze_at: int) -> nn.Module:
    """`Class(freeze_at=...)`: images `[N, 3, H, W]` -> at least C3, C4, C5, with their channels in `out_channels`.

    Raises:
        UserError: when it cannot be imported or made, or its maps are not those.
    """
    key = "model.backbone.name"
    backbone_class = own_class(path, key, nn.Module)
    with named(key, path, f"{backbone_class.__name__}(freeze_at={freeze_at})"):
        body = backbone_class(freeze_at=freeze_at)
    refuse_hidden(f"{key}: {path}", body)
    channels = getattr(body, "out_channels", None)
    if not isinstance(channels, (tuple, list)) or len(channels) < 3 or not all(type(c) is int and c > 0 for c in channels):
        raise UserError(
            f"{key}: {path}: its attribute out_channels must be the channels of its maps, at least C3, C4, C5, not {channels!r}"
        )
    with named(key, path, f"{backbone_class.__name__}()(images [1, 3, {_SIZE[0]}, {_SIZE[1]}])"), _trial(body):
        maps = body(jt.zeros((1, 3, *_SIZE)))
    if not isinstance(maps, (tuple, list)) or len(maps) != len(channels) or not all(isinstance(x, jt.Var) for x in maps):
        got = f"{len(maps)} values" if isinstance(maps, (tuple, list)) else f"a {type(maps).__name__}"
        raise UserError(
            f"{key}: {path}: it gives {got}, but must give a list of {len(channels)} maps, one for each of out_channels"
        )
    _check_shapes(key, path, _MAPS, maps[-3:], channels[-3:], BODY_STRIDES[-3:])
    return body


def make_pyramid(path: str, base: type, in_channels: Sequence[int], **options) -> nn.Module:
    """`Class(in_channels, levels=..., upsample=..., fusion=...)`, derived from `base`, the FPN.

    Raises:
        UserError: when it cannot be imported or made, enhances nothing, or does not give P'3..P'7.
    """
    key = "model.pyramid.enhancement"
    pyramid_class = own_class(path, key, base)
    if pyramid_class.enhance is base.enhance and pyramid_class.execute is base.execute:
        raise UserError(f"{key}: {path} has no method enhance(levels): it would be the plain {base.__name__}, which is called none")
    with named(key, path, f"{pyramid_class.__name__}(...)"):
        pyramid = pyramid_class(in_channels, **options)
    refuse_hidden(f"{key}: {path}", pyramid)
    maps = [jt.zeros((1, c, _SIZE[0] // s, _SIZE[1] // s)) for c, s in zip(in_channels, BODY_STRIDES[-3:])]
    with named(key, path, "enhance"), _trial(pyramid):
        levels = pyramid(*maps)
    if not isinstance(levels, (tuple, list)) or len(levels) != len(LEVELS) or not all(isinstance(x, jt.Var) for x in levels):
        got = f"{len(levels)} values" if isinstance(levels, (tuple, list)) else f"a {type(levels).__name__}"
        raise UserError(f"{key}: {path}: enhance gives {got}, but must give the list of P'3..P'7")
    _check_shapes(key, path, [f"P'{level}" for level in LEVELS], levels, [PYRAMID_CHANNELS] * len(LEVELS), STRIDES)
    return pyramid


def _check_shapes(key: str, path: str, names, maps, channels, strides) -> None:
    for name, x, wide, stride in zip(names, maps, channels, strides):
        wanted = [1, wide, -(-_SIZE[0] // stride), -(-_SIZE[1] // stride)]
        if list(x.shape) != wanted:
            raise UserError(
                f"{key}: {path}: for a picture of {_SIZE[1]}x{_SIZE[0]} its {name} is {list(x.shape)}, not {wanted} "
                f"({wide} channels at stride {stride})"
            )
