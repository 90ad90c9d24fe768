"""Native checkpoints of a run: weights as safetensors under the released names, training state beside them.

`last.safetensors` is complete by itself: its header holds the configuration, the preprocessing and the iteration, and
names the file with the momentum buffers. That file is written first and the weights are renamed into place last, so
that a run killed at any moment leaves one checkpoint that is whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jrdp import interchange
from jrdp.config import Config, parse_config
from jrdp.data.shapes import finite_numbers
from jrdp.engine.weights import check_finite
from jrdp.errors import UserError
from jrdp.interchange import WeightFile, native
from jrdp.interchange.training_state import TrainingState


def save_checkpoint(
    path: Path,
    tensors: dict[str, np.ndarray],
    momentum: dict[str, np.ndarray] | None,
    config: Config,
    iteration: int,
    progress: dict | None = None,
) -> None:
    """Write weights and, unless `momentum` is None, the training state that `load_checkpoint` reads.

    progress: small values that a resumed run goes on from, beside the momentum.
    """
    header = native.header(config, iteration)
    if progress:
        header["progress"] = progress
    if momentum is not None:
        header["state"] = native.write_state(path, TrainingState(momentum, iteration))
    interchange.write(path, WeightFile(tensors, iteration=iteration, metadata=header))
    for old in path.parent.glob(f"{path.stem}.state-*.safetensors"):
        if old.name != header.get("state"):
            old.unlink(missing_ok=True)


@dataclass
class Checkpoint:
    """What `--resume` continues from: weights and momentum by name, the configuration, the iterations done, and what
    else a run keeps (`save_checkpoint`'s `progress`)."""

    tensors: dict[str, np.ndarray]
    momentum: dict[str, np.ndarray]
    config: Config
    iteration: int
    progress: dict = field(default_factory=dict)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read `last.safetensors` and its state file.

    Raises:
        UserError: if either is missing or damaged, they do not belong together, or there is no training state.
    """
    if not path.is_file():
        raise UserError(f"nothing to resume: no checkpoint at {path}")
    file = interchange.read(path)
    state = native.read_state(file)
    if state is None or "config" not in file.metadata:
        raise UserError(f"{path} holds weights only, no training state: start from it with --weights {path}")
    config = parse_config(file.metadata["config"], f"in {path}")
    check_finite(file.tensors, path)
    check_finite(state.momentum, path)
    return Checkpoint(file.tensors, state.momentum, config, state.iteration, _progress(file))


_PROGRESS = {"best": {"iteration", "ap"}, "loss_scale": {"value", "steps"}, "data": {"pictures", "fingerprint"}}  # what a run keeps, all of it numbers


def _progress(file: WeightFile) -> dict:
    progress = file.metadata.get("progress", {})
    known = isinstance(progress, dict) and set(progress) <= set(_PROGRESS)
    if not known or not all(
        isinstance(values, dict) and set(values) == _PROGRESS[name] and finite_numbers(list(values.values()))
        for name, values in progress.items()
    ):
        raise UserError(f"{file.path}: its header is damaged: progress is not what a run writes")
    return progress
