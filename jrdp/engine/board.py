"""The same figures as in `log.jsonl` for TensorBoard (`train.tensorboard`), in the folder `tensorboard` of the run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from jrdp.engine.steps import Step
from jrdp.errors import UserError


def need_tensorboard() -> None:
    """Raise `UserError` where the package that writes TensorBoard's files is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("train.tensorboard needs tensorboardX: pip install 'jrdp[tensorboard]', or leave it out")


class Board:
    """Writes losses, learning rate and metrics; what an interrupted run wrote after iteration `first` is hidden."""

    def __init__(self, run: Path, first: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(logdir=str(run / "tensorboard"), purge_step=first + 1 if first else None)

    def write(self, step: Step, metrics: dict | None) -> None:
        for name, value in step.losses.items():
            self._writer.add_scalar(f"train/{name}", value, step.iteration)
        self._writer.add_scalar("train/lr", step.rate, step.iteration)
        for test_set, kinds in (metrics or {}).items():
            for kind, values in kinds.items():
                self._writer.add_scalar(f"{test_set}/{kind} AP", values["AP"], step.iteration)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
