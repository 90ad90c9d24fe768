"""Training, step by step: a generator that a loop, or a notebook, takes its steps from.

    network = RDPNet(config.model)
    with TrainLoader(dataset, batch_size=4, seed=1) as loader:
        for step in training_steps(network, loader, config):
            print(step.iteration, step.losses["loss"])
"""

from __future__ import annotations

import time
from functools import reduce
from operator import add
from typing import Iterator, NamedTuple, Optional

import jittor as jt
import numpy as np

from jrdp.config import Config
from jrdp.data.loader import TrainLoader
from jrdp.engine import distributed
from jrdp.engine.ahead import BatchesAhead
from jrdp.engine.solver import Solver
from jrdp.errors import UserError
from jrdp.models.layers import use_half_convolutions
from jrdp.models.state import trainable_parameters

HALF_SCALE = 1024.0  # what the loss is scaled by in mixed precision, so that float16 holds the gradients passed back


class Step(NamedTuple):
    """One step of SGD that has been made.

    iteration: counts from 1.
    rate: its learning rate.
    losses: "loss", their sum, and each loss of the network; of the whole batch, over all ranks.
    seconds: from asking for the batch to the end of the step.
    """

    iteration: int
    rate: float
    losses: dict[str, float]
    seconds: float


def training_steps(
    network, loader: TrainLoader, config: Config, first: int = 0, solver: Optional[Solver] = None
) -> Iterator[Step]:
    """Train `network` from iteration `first` + 1 to `config.solver.max_iterations`; yields after every step.

    `network(batch, targets, all_reduce=...)` gives its losses by name. `solver` holds the momentum; by default a new one.

    Raises:
        UserError: for a picture that cannot be read, and for a loss or a gradient that is not finite (naming iteration
            and pictures): the weights are then those of the step before.
    """
    solver = Solver(trainable_parameters(network), config.solver) if solver is None else solver
    last = config.solver.max_iterations
    batches = BatchesAhead(loader)
    use_half_convolutions(network, config.train.amp)
    try:
        for iteration in range(first + 1, last + 1):
            started = time.monotonic()
            batch, targets = batches.take()
            losses = _forward_and_backward(network, solver, batch, targets, HALF_SCALE if config.train.amp else 1.0)
            if jt.flags.use_cuda:
                _launch(losses, solver)
                if iteration < last:
                    batches.prepare()
            values = _values(losses, batch, iteration)
            _check_gradients(solver, batch, iteration)
            rate = solver.step(iteration)
            yield Step(iteration, rate, values, time.monotonic() - started)
    finally:
        use_half_convolutions(network, False)


def _forward_and_backward(network, solver: Solver, batch, targets, scale: float) -> dict[str, jt.Var]:
    """The sum of the losses of a batch ("loss") and the losses, with their gradients in `solver`."""
    losses = network.losses(batch, targets, all_reduce=distributed.all_reduce)
    loss = reduce(add, losses.values())
    solver.backward(loss, scale)
    return {"loss": loss, **losses}


def _launch(losses: dict[str, jt.Var], solver: Solver) -> None:
    """Start the GPU on losses and gradients, which Jittor would put off until they are read, without waiting for it."""
    jt.sync([*losses.values(), *solver.gradients().values()], False)


def _values(losses: dict[str, jt.Var], batch, iteration: int) -> dict[str, float]:
    """The losses as floats, means over the ranks; raises `UserError` when one is not finite."""
    values = distributed.mean_over_ranks({name: value.item() for name, value in losses.items()})
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise UserError(
            f"{', '.join(broken)} not finite at iteration {iteration}, pictures {batch.image_ids}: look at these "
            "annotations, or lower solver.base_lr; last.safetensors is from before this iteration"
        )
    return values


def _check_gradients(solver: Solver, batch, iteration: int) -> None:
    """Raise `UserError` when a gradient is not finite: a step would put it into weights, momentum and checkpoint."""
    broken = solver.broken_gradients()
    if broken:
        raise UserError(
            f"the gradient of {broken[0]} (and {len(broken) - 1} more) is not finite at iteration {iteration}, pictures "
            f"{batch.image_ids}: look at these annotations, or lower solver.base_lr; last.safetensors is from before "
            "this iteration"
        )
