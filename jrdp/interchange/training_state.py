"""Training state both ways: PyTorch's optimizer and scheduler dictionaries <-> momentum by name, and iterations done.

As released (FACTS 37, 38): SGD with one parameter group for each trainable parameter in the order of the checkpoint's
keys; a "bias" has twice the learning rate and no weight decay; `scheduler.last_epoch` equals the iterations done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

import numpy as np

from jrdp.config import SolverConfig
from jrdp.errors import UserError
from jrdp.interchange.layout import LAST_SCALE
from jrdp.interchange.tensors import BFloat16, as_float32
from jrdp.interchange.weight_file import WeightFile
from jrdp.schedule import rate_factor

UNUSED = (LAST_SCALE,)


@dataclass
class TrainingState:
    """What a run continues from, beside the weights.

    Attributes:
        momentum: trainable name -> float32 buffer of the parameter's shape; without `rpn.head.scales.5.scale`, which
            never gets a gradient, and empty when no step was made yet.
        iteration: iterations done.
        solver: the settings that the optimizer and scheduler dictionaries name, as values for `SolverConfig`.
        notes: what the optimizer does and a run here does not.
    """

    momentum: dict[str, np.ndarray]
    iteration: int
    solver: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def from_pytorch(file: WeightFile, trainable: Mapping[str, tuple]) -> TrainingState:
    """The training state in a PyTorch checkpoint. `trainable`: name -> shape, in the released order.

    Raises:
        UserError: if the file has no optimizer state of SGD with momentum, or it is of another network.
    """
    where = file.path or "the checkpoint"
    if file.optimizer is None:
        raise UserError(f"{where} holds no optimizer state")
    states, groups = file.optimizer.get("state"), file.optimizer.get("param_groups")
    if not isinstance(states, dict) or not isinstance(groups, list) or not all(isinstance(g, dict) for g in groups):
        raise UserError(f"{where}: its optimizer state is not one of PyTorch's optimizers")
    # torch 1.1 names a parameter by its address, later versions by its number; the order is the same.
    owners = {identifier: group for group in groups for identifier in _listed(group.get("params"))}
    ids = [identifier for group in groups for identifier in group["params"]]
    if file.tensors and LAST_SCALE not in file.tensors and len(ids) == len(trainable) - 1:  # a network without the scale that nothing uses
        trainable = {name: shape for name, shape in trainable.items() if name != LAST_SCALE}
    if len(ids) != len(trainable) or len(set(ids)) != len(ids):
        raise UserError(
            f"{where}: its optimizer has {len(ids)} parameters, the network has {len(trainable)} trainable ones "
            "(another backbone, or frozen at another stage)"
        )
    strangers = [identifier for identifier in states if identifier not in set(ids)]
    if strangers:
        raise UserError(f"{where}: its optimizer state has {len(strangers)} entries that belong to no parameter group")
    momentum, without = {}, []
    names = _in_order(file, groups, trainable)
    for name, identifier in zip(names, ids):
        shape = trainable[name]
        entry = states.get(identifier)
        buffer = entry.get("momentum_buffer") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and set(entry) - {"momentum_buffer"}:
            raise UserError(f"{where}: its optimizer state is not that of SGD with momentum (it has {_first(entry)})")
        if buffer is None:
            without.append(name)
        elif not isinstance(buffer, (np.ndarray, BFloat16)) or tuple(buffer.shape) != tuple(shape):
            found = tuple(buffer.shape) if isinstance(buffer, (np.ndarray, BFloat16)) else type(buffer).__name__
            raise UserError(f"{where}: the momentum of {name} has shape {found}, the parameter has {tuple(shape)}")
        elif name not in UNUSED:
            momentum[name] = as_float32(buffer)
    lost = [name for name in without if name not in UNUSED]
    if momentum and lost:
        raise UserError(f"{where}: its optimizer state has no momentum for {len(lost)} parameters, first {lost[0]}")
    momentum = {name: momentum[name] for name in trainable if name in momentum}
    solver, notes = _solver_of({name: owners[identifier] for name, identifier in zip(names, ids)}, file.scheduler or {})
    return TrainingState(momentum, _iterations(file), solver, notes)


def to_pytorch(
    state: TrainingState, trainable: Sequence[str], solver: SolverConfig | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(optimizer, scheduler) dictionaries that the released code and current torch load, for `trainable` in key order.

    Raises:
        UserError: if the momentum is not that of these parameters.
    """
    solver = solver or SolverConfig(**state.solver)
    odd = sorted(set(state.momentum) ^ {name for name in trainable if name not in UNUSED})
    if state.momentum and odd:
        raise UserError(f"the momentum does not fit the network: {len(odd)} parameters differ, first {odd[0]}")
    groups, states = [], {}
    for index, name in enumerate(trainable):
        bias = "bias" in name
        initial = solver.base_lr * (solver.bias_lr_factor if bias else 1.0)
        groups.append(
            {
                "lr": initial * rate_factor(solver, state.iteration),
                "initial_lr": initial,
                "momentum": solver.momentum,
                "dampening": 0,
                "weight_decay": solver.bias_weight_decay if bias else solver.weight_decay,
                "nesterov": False,
                "params": [index],
            }
        )
        if name in state.momentum:
            states[index] = {"momentum_buffer": state.momentum[name]}
    scheduler = {"last_epoch": state.iteration, "_step_count": state.iteration + 1}
    return {"state": states, "param_groups": groups}, scheduler


def _iterations(file: WeightFile) -> int:
    if file.iteration is not None:
        return file.iteration
    last = (file.scheduler or {}).get("last_epoch")
    if type(last) is int and last >= 0:
        return last
    raise UserError(f"{file.path or 'the checkpoint'} does not say how many iterations are done")


def _in_order(file: WeightFile, groups: list[dict], trainable: Mapping[str, tuple]) -> list[str]:
    """The names of the optimizer's parameters, in its order.

    torch >= 2.6 stores them where it is told them. Else the optimizer has them in the order of the model's parameters,
    which is that of its state dict, unless some program has sorted the names since: then, as released.
    """
    named = [name for group in groups for name in _names(group, file.prefix)]
    if sorted(named) == sorted(trainable):
        return named
    if list(file.tensors) == sorted(file.tensors) or any(name not in file.tensors for name in trainable if name not in UNUSED):
        return list(trainable)
    return file.in_order(trainable)


def _names(group: dict, prefix: str) -> list[str]:
    names = group.get("param_names")
    return [str(name).removeprefix(prefix) for name in names] if isinstance(names, (list, tuple)) else []


def _solver_of(owners: dict[str, dict], scheduler: dict) -> tuple[dict[str, Any], list[str]]:
    """Solver settings as far as the dictionaries name them, and what of them a run here has no way to go on with.

    owners: name -> the group of the optimizer that the parameter is in. Weights have one rate and decay here, biases
    one; where the optimizer has several, that of most parameters is taken, and a note says so.
    """
    settings: dict[str, Any] = {}
    notes: list[str] = []
    weights = [group for name, group in owners.items() if "bias" not in name]
    biases = [group for name, group in owners.items() if "bias" in name]

    def one(groups: list[dict], what: str, *entries: str) -> float | None:
        values = Counter(value for value in (_first_number(group, entries) for group in groups) if value is not None)
        if not values:
            return None
        (value, count), total = values.most_common(1)[0], sum(values.values())
        if len(values) > 1:
            several = f"{min(values):g} to {max(values):g}"
            notes.append(f"its optimizer has {len(values)} {what} ({several}), a run here has one: {value:g}, that of {count} of {total}")
        return value

    settings["base_lr"] = one(weights, "learning rates for weights", "initial_lr", "lr")
    bias_lr = one(biases, "learning rates for biases", "initial_lr", "lr")
    settings["momentum"] = one([*weights, *biases], "values of momentum", "momentum")
    settings["weight_decay"] = one(weights, "weight decays for weights", "weight_decay")
    settings["bias_weight_decay"] = one(biases, "weight decays for biases", "weight_decay")
    if bias_lr is not None and settings["base_lr"]:
        settings["bias_lr_factor"] = bias_lr / settings["base_lr"]
    settings = {key: value for key, value in settings.items() if value is not None}
    for entry, what in (("nesterov", "Nesterov's momentum"), ("dampening", "dampened momentum"), ("maximize", "steps uphill")):
        if any(group.get(entry) for group in owners.values()):
            notes.append(f"its optimizer has {what} ({entry}), a run here goes on without")
    milestones = scheduler.get("milestones")
    if isinstance(milestones, (list, tuple, dict)) and all(type(n) is int and n > 0 for n in milestones):
        settings["steps"] = sorted(milestones)
    if _is_number(scheduler.get("gamma")):
        settings["gamma"] = float(scheduler["gamma"])
    if scheduler.get("warmup_method") == "constant":
        if type(scheduler.get("warmup_iters")) is int and _is_number(scheduler.get("warmup_factor")):
            settings["warmup_iterations"] = scheduler["warmup_iters"]
            settings["warmup_factor"] = float(scheduler["warmup_factor"])
    return settings, notes


def _first_number(group: dict, entries: Sequence[str]) -> float | None:
    return next((float(group[entry]) for entry in entries if _is_number(group.get(entry))), None)


def _listed(value: Any) -> list:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise UserError("the parameter groups of its optimizer state are damaged")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _first(entry: dict) -> str:
    return str(next(key for key in entry if key != "momentum_buffer"))[:40]
