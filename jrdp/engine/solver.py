"""Stochastic gradient descent: parameter groups (convention 7), momentum by name."""

from __future__ import annotations

import jittor as jt
import numpy as np

from jrdp.config import SolverConfig
from jrdp.errors import UserError
from jrdp.models.transfer import fetch, made_on_host
from jrdp.ops import report, sgd
from jrdp.schedule import learning_rate

AT_ONCE = 32  # parameters that one operator steps: old and new values of so many are held at once


class Solver:
    """SGD with momentum over named parameters: a "bias" learns faster and does not decay (convention 7).

    Everything else decays, including group-norm weights and the FCOS scales.
    """

    def __init__(self, parameters: dict[str, jt.Var], config: SolverConfig):
        self.config = config
        weights = [name for name in parameters if "bias" not in name]
        biases = [name for name in parameters if "bias" in name]
        self._names = [names for names in (weights, biases) if names]
        groups = [
            {
                "params": [parameters[name] for name in names],
                "weight_decay": config.bias_weight_decay if names is biases else config.weight_decay,
                "lr_factor": config.bias_lr_factor if names is biases else 1.0,
            }
            for names in self._names
        ]
        self._sgd = jt.optim.SGD(groups, lr=config.base_lr, momentum=config.momentum)

    def backward(self, loss: jt.Var, scale: float = 1.0) -> None:
        """Compute the gradients of the scalar `loss`; under MPI they are averaged over the ranks.

        scale: a power of two that the loss is multiplied by and the gradients are divided by, so that what float16
            convolutions pass back does not vanish; changes no bit of what does not.
        """
        self.clear()
        self.add(loss, scale)
        self.scale(1.0 / scale)

    def clear(self) -> None:
        """Forget the gradients: the next `add` begins a sum."""
        self._sgd.zero_grad()

    def add(self, loss: jt.Var, factor: float = 1.0) -> None:
        """Add the gradients of `factor` times the scalar `loss` to those there are since `clear`."""
        self._sgd.backward(loss if factor == 1.0 else loss * factor)

    def scale(self, factor: float) -> None:
        """Multiply the gradients."""
        if factor != 1.0:
            for gradient in self.gradients().values():
                gradient.update(gradient * factor)

    def clip(self, largest: float) -> float:
        """Shorten the gradients, all by the same factor, to an L2 norm of `largest` together; returns what it was."""
        squares = [(gradient.float32() * gradient.float32()).sum().reshape(1) for gradient in self.gradients().values()]
        norm = float(np.sqrt(jt.concat(squares).numpy().sum(dtype=np.float64)))
        if norm > largest:
            self.scale(largest / norm)
        return norm

    def rate(self, iteration: int) -> float:
        """The learning rate of `iteration` (from 1)."""
        return learning_rate(self.config, iteration)

    def step(self, iteration: int) -> float:
        """Apply the gradients with the rate of `iteration` (from 1); returns that learning rate."""
        rate = self.rate(iteration)
        for group in self._sgd.param_groups:
            group["lr"] = rate * group["lr_factor"]
        if jt.flags.use_cuda and all(p.dtype == "float32" for group in self._sgd.param_groups for p in group["params"]):
            self._step_together()
        else:
            self._sgd.step()
        return rate

    def _step_together(self) -> None:
        """What `jt.optim.SGD.step` computes, in a few launches for all parameters instead of two for each."""
        self._sgd.pre_step(None)
        for group in self._sgd.param_groups:
            for start in range(0, len(group["params"]), AT_ONCE):
                held = [group[name][start : start + AT_ONCE] for name in ("params", "grads", "values")]
                new = sgd(*held, group["lr"], self._sgd.momentum, group["weight_decay"])
                for values, updates in zip((held[0], held[2]), new):
                    for value, update in zip(values, updates):
                        value.update(update)
        self._sgd.post_step()

    def gradients(self) -> dict[str, jt.Var]:
        """The gradients of the last `backward`, by parameter name."""
        return self._by_name("grads")

    def state(self) -> list[jt.Var]:
        """What `step` changes: the parameters, and the momentum buffers."""
        return [value for group in self._sgd.param_groups for value in (*group["params"], *group["values"])]

    def broken_gradients(self) -> list[str]:
        """Names of the parameters whose gradient holds NaN or infinity; one number is read where all are finite."""
        gradients = self.gradients()
        # NaN and infinity stay in a sum of absolute values, whatever a compiler assumes about numbers being finite.
        sums = {name: value.float32().abs().sum() for name, value in gradients.items()}
        each = jt.concat([value.reshape(1) for value in sums.values()]).numpy()
        return [name for name, value in zip(sums, each) if not np.isfinite(value)]

    def report(self, numbers: list[jt.Var]) -> jt.Var:
        """`numbers` (Vars `[1]`) and what `broken_gradients` finds, not waited for; CUDA only. `read_report` reads it."""
        gradients = [value.float32() for value in self.gradients().values()]
        return report([number.float32().reshape(1) for number in numbers], gradients)

    def read_report(self, told: jt.Var) -> tuple[list[float], list[str]]:
        """The numbers and the names of the gradients that hold NaN or infinity; waits for the GPU."""
        names, values = list(self.gradients()), fetch(told)
        count = len(values) - len(names)
        return values[:count].tolist(), [name for name, flag in zip(names, values[count:]) if flag]

    def momentum(self) -> dict[str, np.ndarray]:
        """The momentum buffers, float32 in the parameters' shapes, by parameter name."""
        return {name: value.numpy() for name, value in self._by_name("values").items()}

    def load_momentum(self, buffers: dict[str, np.ndarray]) -> None:
        """Set the momentum buffers.

        Raises:
            UserError: if a buffer is missing, unknown or of another shape.
        """
        mine = self._by_name("values")
        if set(mine) != set(buffers):
            odd = sorted(set(mine) ^ set(buffers))
            raise UserError(
                f"the optimizer state does not fit this network: {len(odd)} parameters differ, first {odd[0]}"
            )
        for name, value in mine.items():
            if tuple(value.shape) != buffers[name].shape:
                raise UserError(
                    f"the optimizer state of {name} has shape {buffers[name].shape}, not {tuple(value.shape)}"
                )
        with made_on_host() as made:
            for name, value in mine.items():
                value.assign(jt.array(np.ascontiguousarray(buffers[name], dtype=np.float32))).stop_grad()
                made.append(value)

    def _by_name(self, field: str) -> dict[str, jt.Var]:
        return {
            name: value
            for names, group in zip(self._names, self._sgd.param_groups)
            for name, value in zip(names, group[field])
        }
