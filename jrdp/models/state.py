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
    """What a tensor is. kind: "parameter", or "buffer" for frozen batch norm; only parameters can be trainable."""

    shape: tuple[int, ...]
    kind: str
    trainable: bool


def named_tensors(model: nn.Module) -> dict[str, jt.Var]:
    """Every parameter and buffer of `model`, by name, in the order of the released checkpoints."""
    return {name: tensor for name, tensor, _ in _walk(model, "")}


def tensor_info(model: nn.Module) -> dict[str, TensorInfo]:
    """What every tensor is, in the same order. Trainable includes `UNUSED_PARAMETERS`, as in the released optimizer."""
    info = {}
    for name, tensor, owner in _walk(model, ""):
        kind = "buffer" if isinstance(owner, FrozenBatchNorm) else "parameter"
        info[name] = TensorInfo(tuple(tensor.shape), kind, not tensor.is_stop_grad())
    return info


def trainable_names(model: nn.Module) -> list[str]:
    """The names of the trainable parameters, in order: the optimizer's groups."""
    return [name for name, info in tensor_info(model).items() if info.trainable]


def trainable_parameters(model: nn.Module) -> dict[str, jt.Var]:
    """The parameters that training moves, by name and in order: `trainable_names` without `UNUSED_PARAMETERS`."""
    tensors = named_tensors(model)
    return {name: tensors[name] for name in trainable_names(model) if name not in UNUSED_PARAMETERS}


def assign_state(model: nn.Module, state: dict[str, np.ndarray]) -> None:
    """Copy `state` into the model's tensors; what is frozen stays frozen.

    Strict: the same names and shapes, and numbers; else a `UserError` that names the first few, and nothing is changed.
    """
    tensors = named_tensors(model)
    missing = [name for name in tensors if name not in state]
    unexpected = [name for name in state if name not in tensors]
    mis_shaped = [
        f"{name} {tuple(np.shape(state[name]))} instead of {tuple(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in state and tuple(np.shape(state[name])) != tuple(tensor.shape)
    ]
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mis_shaped))
        if names
    ]
    if problems:
        raise UserError("the weights do not fit the network: " + "; ".join(problems))
    with made_on_host() as made:
        for name, tensor in tensors.items():
            frozen = tensor.is_stop_grad()
            tensor.assign(np.array(state[name], np.float32))
            # Jittor also freezes what is assigned under no_grad.
            tensor.stop_grad() if frozen else tensor.start_grad()
            made.append(tensor)
    to_gpu(made)


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, jt.Var, nn.Module]]:
    """(name, tensor, owner) in the order in which the attributes were set: the order is ours, not Jittor's."""
    members = module.layers if isinstance(module, nn.Sequential) else vars(module)
    for name, member in members.items():
        if isinstance(member, jt.Var):
            yield prefix + name, member, module
        elif isinstance(member, nn.Module):
            yield from _walk(member, f"{prefix}{name}.")


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
