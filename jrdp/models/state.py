"""The network's tensors by their released names, in the released order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import jittor as jt
import numpy as np
from jittor import nn

from jrdp.errors import UserError
from jrdp.models.layers import FrozenBatchNorm
from jrdp.models.transfer import made_on_host, to_gpu

# In every released checkpoint and in the optimizer's groups, but used by no level: it never gets a gradient, and so no
# weight decay either, and stays at what it was.
UNUSED_PARAMETERS = ("rpn.head.scales.5.scale",)


@dataclass(frozen=True)
class TensorInfo:
    """What a tensor is.

    kind: "parameter", or "buffer" for frozen batch norm, what `register_buffer` was given and whole numbers; only
        parameters can be trainable.
    dtype: its element type, by NumPy's name.
    """

    shape: tuple[int, ...]
    kind: str
    trainable: bool
    dtype: str = "float32"


def named_tensors(model: nn.Module) -> dict[str, jt.Var]:
    """Every parameter and buffer of `model`, by name, in the order of the released checkpoints.

    They are those that Jittor names (`Module.named_parameters`): a tensor of several names has its first alone, and what
    begins with an underscore or was registered as not persistent is a constant, which the constructor makes anew.
    """
    named: dict[str, jt.Var] = {}
    seen = set()
    for name, tensor, _ in _walk(model, ""):
        if not _is_constant(name, tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def held_tensors(model: nn.Module) -> list[jt.Var]:
    """Every tensor that `model` holds, constants included."""
    return [tensor for _, tensor, _ in _walk(model, "")]


def tensor_info(model: nn.Module) -> dict[str, TensorInfo]:
    """What every tensor is, in the same order. Trainable includes `UNUSED_PARAMETERS`, as in the released optimizer."""
    owners = {name: owner for name, _, owner in _walk(model, "")}
    info = {}
    for name, tensor in named_tensors(model).items():
        # Only `register_buffer` gives a tensor the attribute `persistent`.
        buffer = isinstance(owners[name], FrozenBatchNorm) or not tensor.dtype.is_float() or hasattr(tensor, "persistent")
        kind = "buffer" if buffer else "parameter"
        info[name] = TensorInfo(tuple(tensor.shape), kind, not buffer and not tensor.is_stop_grad(), str(tensor.dtype))
    return info


def tensor_dtypes(model: nn.Module) -> dict[str, str]:
    """The element type of every tensor, for `interchange.match`."""
    return {name: str(tensor.dtype) for name, tensor in named_tensors(model).items()}


def trainable_names(model: nn.Module) -> list[str]:
    """The names of the trainable parameters, in order: the optimizer's groups."""
    return [name for name, info in tensor_info(model).items() if info.trainable]


def trainable_parameters(model: nn.Module) -> dict[str, jt.Var]:
    """The parameters that training moves, by name and in order: `trainable_names` without `UNUSED_PARAMETERS`."""
    tensors = named_tensors(model)
    return {name: tensors[name] for name in trainable_names(model) if name not in UNUSED_PARAMETERS}


def assign_state(model: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Copy `state` into the model's tensors; what is frozen stays frozen.

    Strict: the same names and shapes, floating-point numbers where the model has such, else the same type; if not, a
    `UserError` that names the first few, and nothing is changed. Every tensor keeps its type.
    """
    tensors = named_tensors(model)
    missing = [name for name in tensors if name not in state]
    unexpected = [name for name in state if name not in tensors]
    mis_shaped = [
        f"{name} {tuple(np.shape(state[name]))} instead of {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in state and tuple(np.shape(state[name])) != tuple(tensor.shape)
    ]
    mis_typed = [
        f"{name} {np.asarray(state[name]).dtype} instead of {tensor.dtype}"
        for name, tensor in tensors.items()
        if name in state and not _same_kind(np.asarray(state[name]).dtype, str(tensor.dtype))
    ]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", mis_shaped),
            ("of another type", mis_typed),
        )
        if names
    ]
    if problems:
        raise UserError("the weights do not fit the network: " + "; ".join(problems))
    # Jittor would make 32 bits of 64.
    with made_on_host() as made, jt.flag_scope(auto_convert_64_to_32=0):
        for name, tensor in tensors.items():
            frozen = tensor.is_stop_grad()
            tensor.assign(np.array(state[name], str(tensor.dtype)))
            # Jittor also freezes what is assigned under no_grad.
            tensor.stop_grad() if frozen else tensor.start_grad()
            made.append(tensor)
    to_gpu(made)


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, jt.Var, nn.Module]]:
    """(name, tensor, owner) in the order in which the attributes were set: the order is ours, not Jittor's."""
    for name, member in _members(module):
        if isinstance(member, jt.Var):
            yield f"{prefix}{name}", member, module
        elif isinstance(member, nn.Module):
            yield from _walk(member, f"{prefix}{name}.")


def _members(module: nn.Module) -> Iterator[tuple[str, object]]:
    """The attributes of `module`, where those two of Jittor's classes that are containers have what they hold."""
    held = "layers" if isinstance(module, nn.Sequential) else "params" if isinstance(module, nn.ParameterList) else None
    for name, member in vars(module).items():
        if name == held:
            yield from member.items()
        elif isinstance(member, jt.Var) and isinstance(module, nn.ParameterList):
            continue  # Jittor names the parameters in the list alone
        elif isinstance(member, nn.Module) and isinstance(module, nn.Sequential):
            continue  # nor does Jittor find modules beside the layers: they would always compute as in training
        else:
            yield name, member


def _is_constant(name: str, tensor: jt.Var) -> bool:
    return name.rpartition(".")[2].startswith("_") or not getattr(tensor, "persistent", True)


def _same_kind(given: np.dtype, wanted: str) -> bool:
    return given == np.dtype(wanted) or (given.kind == "f" and np.dtype(wanted).kind == "f")


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
