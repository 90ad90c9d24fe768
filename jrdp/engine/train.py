"""`jrdp train`: the loop around the steps of `jrdp.engine.steps`, with checkpoints that a killed run continues from bit
for bit."""

from __future__ import annotations

from pathlib import Path

import jittor as jt

from jrdp.config import Config, dump_config
from jrdp.data.catalog import load_dataset
from jrdp.data.loader import TrainLoader
from jrdp.data.transforms import batch_images
from jrdp.engine import distributed
from jrdp.engine.checkpoint import Checkpoint, save_checkpoint
from jrdp.engine.curves import plot_curves
from jrdp.engine.evaluate import evaluate_datasets
from jrdp.engine.log import TrainingLog
from jrdp.engine.network import for_prediction, refuse_unfit_engine
from jrdp.engine.run_folder import open_run
from jrdp.engine.run_lock import run_lock
from jrdp.engine.solver import Solver
from jrdp.engine.start import initialise, read_start, start_from_scratch
from jrdp.engine.steps import training_steps
from jrdp.errors import UserError
from jrdp.files import write_text
from jrdp.interchange import WeightFile
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import assign_state, named_tensors, trainable_parameters


def train(config: Config, out: Path, resume: bool = False) -> dict:
    """Train to `config.solver.max_iterations` and leave config, log, curves and checkpoints in `out`.

    Jittor must have been started (`runtime.start`).

    Returns:
        `{"iteration", "losses", "metrics"}`: the last iteration's losses and, per test set, its metrics.

    Raises:
        UserError: for missing data or weights, an occupied or read-only `out`, nothing to resume, or a loss that is
            not finite (the message names the iteration and the pictures).
    """
    _check(config)
    with run_lock(out, resume):
        return _train(config, out, resume)


def _check(config: Config) -> None:
    """Raise `UserError` for what would only fail later, such as the engine of the closing test."""
    if jt.flags.use_cuda == 0 and config.train.amp:
        raise UserError("train.amp needs a GPU: this run is on the CPU; leave out --set train.amp=true")
    if config.test.engine == "fast":
        refuse_unfit_engine(config)


def _train(config: Config, out: Path, resume: bool) -> dict:
    state = open_run(config, out, resume)
    dataset = load_dataset(config.data.train, config, training=True)
    test_sets = [(name, load_dataset([name], config, training=False)) for name in config.data.test]
    start = read_start(config) if state is None else None
    network = RDPNet(config.model)
    first, last = 0 if state is None else state.iteration, config.solver.max_iterations
    loader = _loader(dataset, config, first)
    note = _fill(network, state, start, dataset, loader)
    solver = Solver(trainable_parameters(network), config.solver)
    if state is not None:
        solver.load_momentum(state.momentum)
    if distributed.is_main():
        print(f"training on {len(dataset)} pictures, {last} iterations of {config.solver.batch_size}")
        print(note)
        write_text(out / "config.yaml", dump_config(config))
    losses: dict[str, float] = {}
    with TrainingLog(out / "log.jsonl", first) as log, loader:
        for step in training_steps(network, loader, config, first, solver):
            losses = step.losses
            log.write(step)
            if distributed.is_main() and (step.iteration % config.train.log_period == 0 or step.iteration in (first + 1, last)):
                print(log.progress(step, last), flush=True)
            if step.iteration % config.train.checkpoint_period == 0 or step.iteration == last:
                _checkpoint(out / "last.safetensors", network, solver, config, step.iteration)
    return {"iteration": last, "losses": losses, "metrics": _finish(network, config, out, test_sets)}


def _loader(dataset, config: Config, first: int) -> TrainLoader:
    return TrainLoader(
        dataset,
        batch_size=config.solver.batch_size,
        seed=config.train.seed,
        start_iteration=first,
        workers=config.data.workers,
        flip_probability=config.data.flip_probability,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def _fill(network, state: Checkpoint | None, start: WeightFile | None, dataset, loader: TrainLoader) -> str:
    """Give the network the weights it begins with; returns a line that says which."""
    if state is not None:
        assign_state(network, state.tensors)
        return f"resuming after iteration {state.iteration}"
    if start is not None:
        return initialise(network, start)
    first_batch = next(loader.plan())
    return start_from_scratch(network, batch_images([dataset.example(*task).image for task in first_batch]))


def _finish(network, config: Config, out: Path, test_sets) -> dict:
    if not distributed.is_main():
        return {}
    tensors = {name: value.numpy() for name, value in named_tensors(network).items()}
    save_checkpoint(out / "final.safetensors", tensors, None, config, config.solver.max_iterations)
    plot_curves(out / "log.jsonl", out / "curves.png")
    print(f"weights: {out / 'final.safetensors'}; curves: {out / 'curves.png'}")
    return evaluate_datasets(for_prediction(network, config), config, test_sets, out / "eval") if test_sets else {}


def _checkpoint(path: Path, network, solver: Solver, config: Config, iteration: int) -> None:
    if distributed.is_main():
        tensors = {name: value.numpy() for name, value in named_tensors(network).items()}
        save_checkpoint(path, tensors, solver.momentum(), config, iteration)
