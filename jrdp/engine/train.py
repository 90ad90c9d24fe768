"""The training loop, as released: SGD over four losses, checkpoints that a killed run continues from bit for bit."""

from __future__ import annotations

import json
import time
from collections import deque
from datetime import timedelta
from pathlib import Path

import jittor as jt
import numpy as np

from jrdp.config import Config, dump_config
from jrdp.data.catalog import load_dataset
from jrdp.data.loader import TrainLoader
from jrdp.data.transforms import batch_images
from jrdp.engine import distributed
from jrdp.engine.ahead import BatchesAhead
from jrdp.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from jrdp.engine.curves import plot_curves
from jrdp.engine.evaluate import evaluate_datasets
from jrdp.engine.network import for_prediction, refuse_unfit_engine
from jrdp.engine.run_lock import run_lock
from jrdp.engine.solver import Solver
from jrdp.engine.start import initialise, read_start, start_from_scratch
from jrdp.errors import UserError
from jrdp.files import make_folder, parse_json, write_text
from jrdp.interchange import WeightFile
from jrdp.models.layers import use_half_convolutions
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import assign_state, named_tensors, trainable_parameters

HALF_SCALE = 1024.0  # what the loss is scaled by in mixed precision, so that float16 holds the gradients passed back
LOSSES = ("loss_cls", "loss_reg", "loss_centerness", "loss_mask")


def train(config: Config, out: Path, resume: bool = False) -> dict:
    """Train to `config.solver.max_iterations` and leave config, log, curves and checkpoints in `out`.

    Jittor must have been started (`runtime.start`).

    Returns:
        `{"iteration", "losses", "metrics"}`: the last iteration's losses and, per test set, its metrics.

    Raises:
        UserError: for missing data or weights, an occupied or read-only `out`, nothing to resume, or a loss that is
            not finite (the message names the iteration and the pictures).
    """
    _check_end(config)
    with run_lock(out, resume):
        return _train(config, out, resume)


def _train(config: Config, out: Path, resume: bool) -> dict:
    state = _open_run(config, out, resume)
    dataset = load_dataset(config.data.train, config, training=True)
    test_sets = [(name, load_dataset([name], config, training=False)) for name in config.data.test]
    start = read_start(config) if state is None else None
    model = RDPNet(config.model)
    first = 0 if state is None else state.iteration
    loader = TrainLoader(
        dataset,
        batch_size=config.solver.batch_size,
        seed=config.train.seed,
        start_iteration=first,
        workers=config.data.workers,
        flip_probability=config.data.flip_probability,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    note = _fill(model, state, start, dataset, loader)
    solver = Solver(trainable_parameters(model), config.solver)
    if state is not None:
        solver.load_momentum(state.momentum)
    if distributed.is_main():
        length = f"{config.solver.max_iterations} iterations of {config.solver.batch_size}"
        print(f"training on {len(dataset)} pictures, {length}")
        print(note)
        write_text(out / "config.yaml", dump_config(config))
    last = config.solver.max_iterations
    use_half_convolutions(model, config.train.amp)
    values: dict[str, float] = {}
    with _Log(out / "log.jsonl", first) as log, loader:
        clock = time.monotonic()
        batches = BatchesAhead(loader)
        for iteration in range(first + 1, last + 1):
            batch, targets = batches.take()
            losses = _forward_and_backward(model, solver, batch, targets, HALF_SCALE if config.train.amp else 1.0)
            if jt.flags.use_cuda:
                _launch(losses, solver)
                if iteration < last:
                    batches.prepare()
            values = _values(losses, batch, iteration)
            _check_gradients(solver, batch, iteration)
            rate = solver.step(iteration)
            now = time.monotonic()
            log.write({"iteration": iteration, "lr": rate, **values, "seconds": round(now - clock, 4)})
            clock = now
            if distributed.is_main() and (iteration % config.train.log_period == 0 or iteration in (first + 1, last)):
                print(_progress(iteration, last, log.seconds_per_iteration(), rate, values), flush=True)
            if iteration % config.train.checkpoint_period == 0 or iteration == last:
                _checkpoint(out / "last.safetensors", model, solver, config, iteration)
    use_half_convolutions(model, False)
    return {"iteration": last, "losses": values, "metrics": _finish(model, config, out, test_sets)}


def _fill(model, state: Checkpoint | None, start: WeightFile | None, dataset, loader: TrainLoader) -> str:
    """Give the network the weights it begins with; returns a line that says which."""
    if state is not None:
        assign_state(model, state.tensors)
        return f"resuming after iteration {state.iteration}"
    if start is not None:
        return initialise(model, start)
    first_batch = next(loader.plan())
    return start_from_scratch(model, batch_images([dataset.example(*task).image for task in first_batch]))


def _forward_and_backward(model, solver: Solver, batch, targets, scale: float) -> dict[str, jt.Var]:
    """The sum of the four losses of a batch ("loss") and the losses, with their gradients in `solver`."""
    losses = model.losses(batch, targets, all_reduce=distributed.all_reduce)
    total = losses["loss_cls"] + losses["loss_reg"] + losses["loss_centerness"] + losses["loss_mask"]
    solver.backward(total, scale)
    return {"loss": total, **losses}


def _launch(losses: dict[str, jt.Var], solver: Solver) -> None:
    """Start the GPU on losses and gradients, which Jittor would put off until they are read, without waiting for it."""
    jt.sync([*losses.values(), *solver.gradients().values()], False)


def _values(losses: dict[str, jt.Var], batch, iteration: int) -> dict[str, float]:
    """The losses as floats, means over the ranks; raises `UserError` when one is not finite."""
    values = distributed.mean_over_ranks({name: losses[name].item() for name in ("loss", *LOSSES)})
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


def _finish(model, config: Config, out: Path, test_sets) -> dict:
    if not distributed.is_main():
        return {}
    tensors = {name: value.numpy() for name, value in named_tensors(model).items()}
    save_checkpoint(out / "final.safetensors", tensors, None, config, config.solver.max_iterations)
    plot_curves(out / "log.jsonl", out / "curves.png")
    print(f"weights: {out / 'final.safetensors'}; curves: {out / 'curves.png'}")
    return evaluate_datasets(for_prediction(model, config), config, test_sets, out / "eval") if test_sets else {}


def _checkpoint(path: Path, model, solver: Solver, config: Config, iteration: int) -> None:
    if distributed.is_main():
        tensors = {name: value.numpy() for name, value in named_tensors(model).items()}
        save_checkpoint(path, tensors, solver.momentum(), config, iteration)


def _open_run(config: Config, out: Path, resume: bool):
    """Check and create the run folder; the training state when resuming, else None."""
    if jt.flags.use_cuda == 0 and config.train.amp:
        raise UserError("train.amp needs a GPU: this run is on the CPU; leave out --set train.amp=true")
    if resume:
        state = load_checkpoint(out / "last.safetensors")
        differing = _differences(config, state.config)
        if differing:
            raise UserError(
                f"--resume with another configuration than {out / 'last.safetensors'}: {', '.join(differing)} differ; "
                "give the same --config and --set, or train into another folder"
            )
        return state
    held = [name for name in ("last.safetensors", "final.safetensors", "log.jsonl", "config.yaml") if (out / name).exists()]
    if held:
        there = "add --resume to continue it, or" if held[0] == "last.safetensors" else "it has no checkpoint to continue;"
        raise UserError(f"{out} already holds a run ({', '.join(held)}): {there} give another --out")
    make_folder(out)
    return None


def _check_end(config: Config) -> None:
    """Raise `UserError` for what would only fail after the last iteration: the engine of the closing test."""
    if config.test.engine == "fast":
        refuse_unfit_engine(config)


def _differences(config: Config, saved: Config) -> list[str]:
    """Dotted keys that change what a run computes and differ; how it is logged or where data lies may change."""
    free = {"data.root", "data.workers", "data.test", "train.weights", "train.log_period", "train.checkpoint_period"}
    mine, theirs = _flatten(config.model_dump(mode="json")), _flatten(saved.model_dump(mode="json"))
    return sorted(
        key
        for key in mine
        if mine[key] != theirs.get(key)
        and not (key == "solver.max_iterations" and mine[key] > theirs[key])  # a longer run goes on from the shorter
        and key not in free and not key.startswith("test.")
    )


def _flatten(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _progress(iteration: int, total: int, seconds: float, rate: float, values: dict) -> str:
    parts = " ".join(f"{name[len('loss_'):]} {values[name]:.3f}" for name in LOSSES)
    return (
        f"{iteration:>6}/{total}  eta {timedelta(seconds=round(seconds * (total - iteration)))}  lr {rate:.2e}  "
        f"loss {values['loss']:.3f} ({parts})  {seconds:.2f} s/it"
    )


class _Log:
    """Appends one JSON object a line; on resuming, drops the lines after the checkpoint's iteration."""

    def __init__(self, path: Path, first: int):
        self._recent: deque[float] = deque(maxlen=30)
        self._path = path
        kept = []
        if first and path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if int(parse_json(line)["iteration"]) <= first:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError, OverflowError):
                    continue  # cut by a kill, or written by somebody else
        if distributed.is_main():
            write_text(path, "".join(kept))
        self._file = None

    def __enter__(self):
        if distributed.is_main():
            self._file = open(self._path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_):
        if self._file:
            self._file.close()

    def seconds_per_iteration(self) -> float:
        """The median of the last iterations, so that those in which Jittor compiles do not count."""
        return float(np.median(self._recent))

    def write(self, record: dict) -> None:
        self._recent.append(record["seconds"])
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
