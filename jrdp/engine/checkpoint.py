"""Native checkpoints: weights as safetensors under the released names, training state beside them.

`last.safetensors` is complete by itself: its header holds the configuration, the preprocessing and the iteration, and
names the file with the momentum buffers. The state file is written first and the weights are renamed into place last,
so that a run killed at any moment leaves one checkpoint that is whole.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

import jrdp
from jrdp.config import Config, parse_config
from jrdp.errors import UserError
from jrdp.files import write_bytes

FORMAT_VERSION = 1


def header(config: Config, iteration: int) -> dict:
    """What travels with the weights: configuration, preprocessing, stride convention, iteration and versions."""
    return {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(mode="json"),
        "preprocessing": {
            **config.input.model_dump(mode="json"),
            "stride_in_1x1": config.model.backbone.strides_in_1x1,
        },
        "iteration": iteration,
        "versions": {"jrdp": jrdp.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict) -> None:
    """Write `tensors` with `metadata` as the JSON header entry "jrdp"; atomic."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_bytes(path, save(contiguous, metadata={"format": "pt", "jrdp": json.dumps(metadata)}))


def save_checkpoint(
    path: Path, tensors: dict[str, np.ndarray], momentum: dict[str, np.ndarray] | None, config: Config, iteration: int
) -> None:
    """Write weights and, unless `momentum` is None, the training state that `load_training_state` reads."""
    metadata = header(config, iteration)
    if momentum is not None:
        state = path.with_name(f"{path.stem}.state-{iteration}.safetensors")
        metadata["state"] = state.name
        write_safetensors(state, momentum, {"format_version": FORMAT_VERSION, "iteration": iteration})
    write_safetensors(path, tensors, metadata)
    for old in path.parent.glob(f"{path.stem}.state-*.safetensors"):
        if old.name != metadata.get("state"):
            old.unlink(missing_ok=True)


@dataclass
class TrainingState:
    """What `--resume` continues from."""

    tensors: dict[str, np.ndarray]
    momentum: dict[str, np.ndarray]
    config: Config
    iteration: int


def load_training_state(path: Path) -> TrainingState:
    """Read `last.safetensors` and its state file.

    Raises:
        UserError: if either is missing, truncated, or not a checkpoint of jrdp.
    """
    metadata = read_metadata(path)
    if "state" not in metadata:
        raise UserError(f"{path} holds weights only, no training state: start from it with --set train.weights={path}")
    state_path = path.with_name(Path(metadata["state"]).name)
    if read_metadata(state_path).get("iteration") != metadata["iteration"]:
        raise UserError(f"{state_path} belongs to another iteration than {path}: the checkpoint is not usable")
    return TrainingState(
        _load(path), _load(state_path), parse_config(metadata["config"], f"in {path}"), int(metadata["iteration"])
    )


def read_metadata(path: Path) -> dict:
    """The "jrdp" header of a native safetensors file."""
    from safetensors import safe_open

    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        with safe_open(str(path), framework="np") as file:
            return json.loads((file.metadata() or {})["jrdp"])
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file (truncated?): {error}") from error
    except KeyError as error:
        raise UserError(f"{path} was not written by jrdp: it has no jrdp header") from error


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file (truncated?): {error}") from error
