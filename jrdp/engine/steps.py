"""Training, step by step: a generator that a loop, or a notebook, takes its steps from.

    network = RDPNet(config.model)
    with TrainLoader(dataset, batch_size=4, seed=1) as loader:
        for step in training_steps(network, loader, config):
            print(step.iteration, step.losses["loss"])
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Iterable, Iterator, NamedTuple, Optional, Tuple

import jittor as jt
import numpy as np

from jrdp.config import Config
from jrdp.data.loader import TrainLoader
from jrdp.engine import distributed
from jrdp.engine.convolutions import convolutions_of_training
from jrdp.engine.inference import described
from jrdp.engine.loss_scale import FIXED, LossScale
from jrdp.engine.solver import Solver
from jrdp.errors import UserError
from jrdp.machine import gpu_failure
from jrdp.models.state import trainable_parameters
from jrdp.structures import ImageBatch, Targets

_Batch = Tuple[ImageBatch, list]  # with list[Targets]
_LAST = "last.safetensors is from before this iteration"
_KEPT = f"{_LAST}, and --resume goes on from it"


class Step(NamedTuple):
    """One step of SGD.

    iteration: counts from 1.
    rate: its learning rate.
    losses: "loss", their sum, and each loss of the network; of the whole batch, over all ranks.
    seconds: from asking for the batch to the end of the step.
    skipped: whether the gradients overflowed in mixed precision, so that the weights are those of the step before.
    """

    iteration: int
    rate: float
    losses: dict[str, float]
    seconds: float
    skipped: bool = False


def training_steps(
    network,
    loader: TrainLoader,
    config: Config,
    first: int = 0,
    solver: Optional[Solver] = None,
    scale: Optional[LossScale] = None,
) -> Iterator[Step]:
    """Train `network` from iteration `first` + 1 to `config.solver.max_iterations`; yields after every step.

    network: `network(batch, targets, all_reduce)` gives its losses by name.
    loader: its next batch is the first of iteration `first` + 1; a step takes `solver.accumulate` batches.
    solver: holds the momentum; by default a new one. scale: of the loss, with `train.dynamic_loss_scale`.

    Raises:
        UserError: for a picture that cannot be read, for a loss or a gradient that is not finite (naming iteration and
            pictures; the weights are then those of the step before), and if the GPU's memory is full or the GPU fails.
    """
    solver = Solver(trainable_parameters(network), config.solver) if solver is None else solver
    if config.train.dynamic_loss_scale and scale is None:
        scale = LossScale()
    factor = FIXED if config.train.amp else 1.0
    last, parts = config.solver.max_iterations, config.solver.accumulate
    batches = BatchesAhead(loader)
    with convolutions_of_training(network, config.train):
        for iteration in range(first + 1, last + 1):
            started = time.monotonic()
            factor = factor if scale is None else scale.value
            found, pictures = [], []
            with gpu_failure.explained(lambda: f"at iteration {iteration} with {described(batch)}", _KEPT):
                solver.clear()
                for part in range(parts):
                    batch, targets = batches.take()
                    _seed(config.train.seed, iteration, part)
                    losses = _forward_and_backward(network, solver, batch, targets, factor / parts)
                    told = _launch(losses, solver) if jt.flags.use_cuda else None
                    if jt.flags.use_cuda and (iteration < last or part < parts - 1):
                        batches.prepare()
                    values, broken = _read(losses, solver, told)
                    found.append(_finite(values, batch.image_ids, iteration))
                    pictures += batch.image_ids
                solver.scale(1 / factor)
                broken = solver.broken_gradients() if broken is None else broken
                skipped = _overflowed(broken, scale, pictures, iteration)
                if config.solver.clip_norm is not None and not skipped:
                    solver.clip(config.solver.clip_norm)
                rate = solver.rate(iteration) if skipped else solver.step(iteration)
                _compute(solver.state())
                jt.sync_all()  # running statistics, say, which no loss needs: they would be put off for ever, in a chain
            yield Step(iteration, rate, _mean(found), time.monotonic() - started, skipped)


class BatchesAhead:
    """Hands out the batches of a `TrainLoader` in its order, of which the next can be uploaded while the GPU computes.

    `prepare()` is for the moment at which the GPU has been given its work and the host would wait for it: it takes the
    next batch from the loader, whose workers have it ready, copies its pictures into pinned memory (`jt.array` does)
    and starts their upload, on a stream of Jittor's own beside the computation. Without it nothing is done ahead.
    """

    def __init__(self, loader: Iterable[tuple[int, ImageBatch, list[Targets]]]):
        self._source = iter(loader)
        self._ready: Optional[_Batch] = None
        self._failure: Optional[Exception] = None

    def prepare(self) -> None:
        """Fetch the next batch and start its upload; what goes wrong is raised by `take()`."""
        try:
            batch, targets = self._next()
        except Exception as failure:  # not now: the caller is in the middle of another batch
            self._failure = failure
            return
        images = jt.array(batch.images)
        jt.sync([images], False)
        self._ready = replace(batch, images=images), targets

    def take(self) -> _Batch:
        """The next batch and its targets, prepared or not.

        Raises what the loader raises (`UserError` for a picture that cannot be read): only here, where the steps before
        it are done.
        """
        if self._failure is not None:
            raise self._failure
        ready, self._ready = self._ready, None
        return self._next() if ready is None else ready

    def _next(self) -> _Batch:
        _, batch, targets = next(self._source)
        return batch, targets


def _seed(seed: int, iteration: int, part: int) -> None:
    """Let Jittor's own generator, of dropout say, begin anew: a resumed step draws what it would have drawn in any case.

    Ranks draw different numbers, as parts of a step do. The generators of Python and NumPy stay as they are.
    """
    mixed = np.random.SeedSequence([seed, iteration, part, distributed.rank()]).generate_state(1)[0]
    jt.set_seed(int(mixed >> 1))  # it takes 31 bits


def _forward_and_backward(network, solver: Solver, batch, targets, factor: float) -> dict[str, jt.Var]:
    """The sum of the losses of a batch ("loss") and the losses; their gradients times `factor` are added in `solver`."""
    losses = network(batch, targets, distributed.all_reduce)
    losses = {"loss": reduce(add, losses.values()), **losses}
    solver.add(losses["loss"], factor)
    _compute(list(losses.values()), list(solver.gradients().values()))
    return losses


def _compute(*stages: list[jt.Var]) -> None:
    """On a CPU, compute the first list of values by itself, then the next.

    Reading a Var also computes what else Jittor has put off and holds, which depends on the steps before; with it
    changes which operators become one kernel, and so the last bits. A resumed run has had other steps before.
    """
    if not jt.flags.use_cuda:
        for values in stages:
            jt.sync(values, False, False)


def _launch(losses: dict[str, jt.Var], solver: Solver) -> jt.Var:
    """Start the GPU on losses and gradients, which Jittor would put off until they are read, without waiting for it.

    Returns:
        The report on them that `_read` reads.
    """
    told = solver.report(list(losses.values()))
    jt.sync([told], False)
    return told


def _read(
    losses: dict[str, jt.Var], solver: Solver, told: Optional[jt.Var]
) -> tuple[dict[str, float], Optional[list[str]]]:
    """The losses as floats; on a GPU also which gradients are not finite, since both come in one piece: one wait."""
    if told is None:
        return {name: value.item() for name, value in losses.items()}, None
    values, broken = solver.read_report(told)
    return dict(zip(losses, values)), broken


def _finite(values: dict[str, float], pictures: list, iteration: int) -> dict[str, float]:
    """The means of the losses over the ranks; raises `UserError` when one is not finite."""
    values = distributed.mean_over_ranks(values)
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise UserError(
            f"{', '.join(broken)} not finite at iteration {iteration}, pictures {pictures}: look at these "
            f"annotations, or lower solver.base_lr; {_LAST}"
        )
    return values


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in values) / len(values) for name in values[0]}


def _overflowed(broken: list[str], scale: Optional[LossScale], pictures: list, iteration: int) -> bool:
    """Whether a step has to be skipped because gradients are not finite, those named; the loss scale follows.

    Raises `UserError` when a gradient is not finite and the scale does not follow: a step would put it into weights,
    momentum and checkpoint.
    """
    if scale is not None:
        scale.overflowed() if broken else scale.went_well()
        return bool(broken)
    if broken:
        raise UserError(
            f"the gradient of {broken[0]} (and {len(broken) - 1} more) is not finite at iteration {iteration}, pictures "
            f"{pictures}: look at these annotations, or lower solver.base_lr; {_LAST}"
        )
    return False
