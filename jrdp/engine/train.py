"""`jrdp train`: the loop around the steps of `jrdp.engine.steps`, with checkpoints that a killed run continues from bit
for bit."""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Optional

from jittor import nn

from jrdp.config import Config, dump_config, own_parts
from jrdp.data.augmentation import Augmentation
from jrdp.data.catalog import load_dataset
from jrdp.data.loader import TrainLoader
from jrdp.data.own import GIVEN, OwnDataset
from jrdp.data.transforms import batch_images
from jrdp.data.workers import need_picklable
from jrdp.engine import distributed
from jrdp.engine.board import Board, need_tensorboard
from jrdp.engine.checkpoint import Checkpoint, save_checkpoint
from jrdp.engine.convolutions import convolutions_of_training, refuse_unfit_arithmetic
from jrdp.engine.curves import plot_curves
from jrdp.engine.log import TrainingLog
from jrdp.engine.loss_scale import LossScale
from jrdp.engine.network import asks_for_fast, refuse_unfit_engine
from jrdp.engine.run_folder import differences, forget_unbegun, open_run
from jrdp.engine.run_lock import run_lock
from jrdp.engine.solver import Solver
from jrdp.engine.start import fill_partly, initialise, read_start, start_from_scratch
from jrdp.engine.steps import Step, training_steps
from jrdp.engine.validation import Best, better, validate
from jrdp.errors import UserError
from jrdp.files import write_text
from jrdp.interchange import WeightFile
from jrdp.models.own_parts import refuse_hidden
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import assign_state, named_tensors, trainable_parameters
from jrdp.structures import ImageBatch


OnStep = Callable[[Step], object]


def train(
    config: Config,
    out: Path,
    resume: bool = False,
    dataset: Any = None,
    model: Optional[nn.Module] = None,
    on_step: Optional[OnStep] = None,
) -> dict:
    """Train to `config.solver.max_iterations` and leave config, log, curves and checkpoints in `out`.

    Jittor must have been started (`runtime.start`).

    dataset: in place of `data.train`, a `CocoDataset` or an object with two methods (`jrdp.data.own`).
    model: in place of a new `RDPNet`, the network to train; without `train.weights` it starts as it is. An `RDPNet` must
        have been made with `config.model`.
    on_step: called with each `Step` when its checkpoint is written; what it raises ends the training.

    Returns:
        `{"iteration", "losses", "metrics"}`: the last iteration's losses and, per test set, its metrics.

    Raises:
        UserError: for missing data or weights, an occupied or read-only `out`, nothing to resume, or a loss that is
            not finite (the message names the iteration and the pictures).
    """
    _check(config)
    if dataset is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"train": [GIVEN]})})
        dataset = dataset if hasattr(dataset, "example") else _own_dataset(dataset, config)
    if isinstance(model, nn.Module):
        refuse_hidden("the network given", model)
    if isinstance(model, RDPNet):
        refuse_another_network(model, config)
    with run_lock(out, resume):
        run = _Run(config, out, resume, dataset, model)
        try:
            return run.train(on_step)
        except BaseException:
            if distributed.is_main():
                forget_unbegun(out)
            raise


def _check(config: Config) -> None:
    """Raise `UserError` for what would only fail later, such as the engine of the closing test."""
    refuse_unfit_arithmetic(config.train)
    if asks_for_fast(config.test):
        refuse_unfit_engine(config)
    if config.train.eval_period is not None and not config.data.test:
        raise UserError("train.eval_period has no effect without a test set: name one in data.test, or leave it out")
    if config.train.partial_weights and config.train.weights is None:
        raise UserError("train.partial_weights has no effect without weights: give --weights, or leave it out")
    if config.train.tensorboard:
        need_tensorboard()


def _own_dataset(items: Any, config: Config) -> OwnDataset:
    if config.data.workers:
        advice = "open files and locks where an item is asked for, or use data.workers=0"
        need_picklable(items, f"the dataset {type(items).__name__}", advice)
    return OwnDataset(items, config.input)


def refuse_another_network(model: RDPNet, config: Config) -> None:
    """The configuration is saved with the weights and says how to build the network that they belong to.

    Raises:
        UserError: naming the keys by which `config.model` is not what the network was made of.
    """
    differing = differences(config, config.model_copy(update={"model": model.config}))
    if differing:
        raise UserError(
            f"the network given was made with another configuration: {', '.join(differing)} differ; give the one it was "
            "made with, such as jrdp.load(...).config"
        )


class _Run:
    """One training into one folder: what it goes on with, and what it leaves."""

    def __init__(self, config: Config, out: Path, resume: bool, dataset: Any, model: Optional[nn.Module]):
        self.config, self.out = config, out
        state = open_run(config, out, resume)
        dataset = load_dataset(config.data.train, config, training=True) if dataset is None else dataset
        self.test_sets = [(name, load_dataset([name], config, training=False)) for name in config.data.test]
        start = read_start(config) if state is None else None
        self.network = RDPNet(config.model) if model is None else model
        self.first = 0 if state is None else state.iteration
        self.last = config.solver.max_iterations
        self.loader = _loader(dataset, config, self.first)
        if model is not None and state is None and start is None:
            note = "starting from the network given"
        else:
            note = _fill(self.network, state, start, dataset, self.loader, config.train.partial_weights)
        self.solver = Solver(trainable_parameters(self.network), config.solver)
        progress = {} if state is None else state.progress
        self.best = Best(**progress.get("best", {}))
        self.scale = LossScale(**progress.get("loss_scale", {})) if config.train.dynamic_loss_scale else None
        self.data = {"pictures": len(dataset), "fingerprint": dataset.fingerprint}
        if state is not None:
            self.solver.load_momentum(state.momentum)
            note += _other_data(progress.get("data", self.data), self.data)
        if distributed.is_main():
            print(f"training on {len(dataset)} pictures, {self.last} iterations of {config.solver.batch_size * config.solver.accumulate}")
            left_out = getattr(dataset, "note", None)
            if left_out:
                print(left_out)
            print(note)
            if state is not None and config != state.config:  # else a run stopped before its next checkpoint forgets it
                save_checkpoint(
                    out / "last.safetensors", state.tensors, state.momentum, config, state.iteration, state.progress
                )
            write_text(out / "config.yaml", dump_config(config))

    def train(self, on_step: Optional[OnStep]) -> dict:
        config, main = self.config.train, distributed.is_main()
        losses: dict[str, float] = {}
        board = Board(self.out, self.first) if config.tensorboard and main else None
        steps = training_steps(self.network, self.loader, self.config, self.first, self.solver, self.scale)
        with TrainingLog(self.out / "log.jsonl", self.first) as log:
            with self.loader, closing(steps):
                if main:
                    self._test_on_the_way(self.first, log, board)  # which the run before may not have come to
                for step in steps:
                    losses = step.losses
                    log.write(step)
                    if board:
                        board.write(step)
                    if main and (step.iteration % config.log_period == 0 or step.iteration in (self.first + 1, self.last)):
                        print(log.progress(step, self.last), flush=True)
                    due = step.iteration % config.checkpoint_period == 0 or step.iteration == self.last
                    if main and (due or self._is_tested(step.iteration)):  # a test may fail
                        self._save("last", self.solver.momentum(), step.iteration)
                    if main:
                        self._test_on_the_way(step.iteration, log, board)
                    if on_step is not None:
                        on_step(step)
            metrics = self._finish(log, board) if main else {}
        if board:
            board.close()
        return {"iteration": self.last, "losses": losses, "metrics": metrics}

    def _is_tested(self, iteration: int) -> bool:
        """Whether the metrics of an iteration are to be logged."""
        period = self.config.train.eval_period
        return period is not None and iteration > 0 and (iteration % period == 0 or iteration == self.last)

    def _test_on_the_way(self, iteration: int, log: TrainingLog, board: Optional[Board]) -> None:
        """Test an iteration that is to be tested and has not been; the last one is tested when its weights are written."""
        if self._is_tested(iteration) and iteration < self.last and log.untested(iteration):
            self._test(iteration, log, board, self.out / "validation")

    def _test(self, iteration: int, log: TrainingLog, board: Optional[Board], folder: Path) -> dict:
        """The metrics of an iteration that is logged and in `last.safetensors`; keeps the best weights.

        The log comes last: a run that ends before it repeats the test when it is resumed, and so loses nothing.
        """
        metrics = validate(self.network, self.config, self.test_sets, folder)
        if self._is_tested(iteration) and log.untested(iteration):
            if better(self.best, metrics, iteration):
                self._save("best", None, iteration)
                self._save("last", self.solver.momentum(), iteration)
            if board:
                board.write_metrics(iteration, metrics)
            log.add_metrics(metrics)
        return metrics

    def _save(self, name: str, momentum: dict | None, iteration: int) -> None:
        progress: dict = {} if momentum is None else {"data": self.data}
        if self.best.iteration:
            progress["best"] = asdict(self.best)
        if self.scale is not None and momentum is not None:
            progress["loss_scale"] = asdict(self.scale)
        tensors = {name: value.numpy() for name, value in named_tensors(self.network).items()}
        save_checkpoint(self.out / f"{name}.safetensors", tensors, momentum, self.config, iteration, progress)

    def _finish(self, log: TrainingLog, board: Optional[Board]) -> dict:
        """Write what a finished run leaves, its weights before the closing test, which may fail; returns its metrics."""
        weights, curves = self.out / "final.safetensors", self.out / "curves.png"
        self._save("final", None, self.last)
        plot_curves(self.out / "log.jsonl", curves)
        print(f"weights: {weights}; curves: {curves}", flush=True)
        metrics: dict = {}
        if self.test_sets:
            try:
                with convolutions_of_training(self.network, self.config.train):  # which a test puts back when it ends
                    metrics = self._test(self.last, log, board, self.out / "eval")
            except UserError as error:
                raise UserError(
                    f"{error}; the training itself is done, its weights are {weights}: --resume repeats the closing test alone"
                ) from error
            if self._is_tested(self.last):
                plot_curves(self.out / "log.jsonl", curves)
        if self.best.iteration:
            print(f"best masks (AP {100 * self.best.ap:.1f}) at iteration {self.best.iteration}: {self.out / 'best.safetensors'}")
        print(next_commands(self.out, self.config))
        return metrics


def next_commands(out: Path, config: Config) -> str:
    """The command that tests what was trained, and the one that predicts with it."""
    weights = shlex.quote(str(out / "final.safetensors"))
    own = "".join(f" --set {key}={path}" for key, path in own_parts(config.model).items())
    sets = "" if config.data.test else " --set 'data.test=[IMAGES:ANNOTATIONS.json]'"
    return (
        f"test:    jrdp test --weights {weights} --out {shlex.quote(str(out / 'test'))}{own}{sets}\n"
        f"predict: jrdp predict --weights {weights} --out {shlex.quote(str(out / 'pictures'))}{own} PHOTO_OR_FOLDER"
    )


def _other_data(before: dict, now: dict) -> str:
    """What to say about a run that goes on with other pictures or annotations than it began with."""
    if before == now:
        return ""
    return (
        f"; not as if it had never stopped: its pictures or annotations are others than before, or in another order "
        f"({before['pictures']} then, {now['pictures']} now)"
    )


def _loader(dataset, config: Config, first: int) -> TrainLoader:
    return TrainLoader(
        dataset,
        batch_size=config.solver.batch_size,
        seed=config.train.seed,
        start_iteration=first * config.solver.accumulate,
        workers=config.data.workers,
        flip_probability=config.data.flip_probability,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        augmentation=Augmentation.of(config.data),
    )


def _fill(
    network, state: Checkpoint | None, start: WeightFile | None, dataset, loader: TrainLoader, partial: bool
) -> str:
    """Give the network the weights it begins with; returns what to say about them."""
    if state is not None:
        assign_state(network, state.tensors)
        return f"resuming after iteration {state.iteration}"

    def first_batch() -> ImageBatch:
        return batch_images([dataset.example(*task).image for task in next(loader.plan())])

    if start is not None:
        return fill_partly(network, start, first_batch) if partial else initialise(network, start)
    return start_from_scratch(network, first_batch())
