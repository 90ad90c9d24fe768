"""The native checkpoint: the header that travels with the weights, and the file beside them with the momentum."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from jrdp.config import Config
from jrdp.errors import UserError
from jrdp.interchange import weight_file
from jrdp.interchange.tensors import as_float32
from jrdp.interchange.training_state import TrainingState
from jrdp.interchange.weight_file import WeightFile
from jrdp.version import __version__

FORMAT_VERSION = 1


def header(config: Config, iteration: int) -> dict[str, Any]:
    """What travels with the weights: configuration, preprocessing with stride convention, iteration and versions."""
    return {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(mode="json"),
        "preprocessing": {
            **config.input.model_dump(mode="json"),
            "stride_in_1x1": config.model.backbone.strides_in_1x1,
        },
        "iteration": iteration,
        "versions": {"jrdp": __version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def state_path(weights: Path, iteration: int) -> Path:
    return weights.with_name(f"{weights.stem}.state-{iteration}.safetensors")


def write_state(weights: Path, state: TrainingState) -> str:
    """Write the momentum buffers beside `weights`; returns the file's name, which the header of the weights holds."""
    path = state_path(weights, state.iteration)
    metadata = {"format_version": FORMAT_VERSION}
    weight_file.write(path, WeightFile(dict(state.momentum), iteration=state.iteration, metadata=metadata))
    return path.name


def read_state(file: WeightFile) -> TrainingState | None:
    """The training state that the header of a native checkpoint names; None where it names none.

    Raises:
        UserError: if the state file is missing or of another iteration.
    """
    name = file.metadata.get("state")
    if not isinstance(name, str) or file.path is None:
        return None
    if not Path(name).name or "\0" in name:
        raise UserError(f"{file.path}: its header names the training state {name!r:.60}: the header is damaged")
    path = file.path.with_name(Path(name).name)
    if not path.is_file():
        raise UserError(f"{file.path} belongs to the training state {path}, which is missing")
    state = weight_file.read(path)
    if state.iteration is None or state.iteration != file.iteration:
        raise UserError(f"{path} belongs to another iteration than {file.path}: the checkpoint is not usable")
    config = file.metadata.get("config")
    solver = config.get("solver") if isinstance(config, dict) else None
    momentum = {name: as_float32(buffer) for name, buffer in state.tensors.items()}
    return TrainingState(momentum, state.iteration, solver or {})
