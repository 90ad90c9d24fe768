"""The same figures as in `log.jsonl` for TensorBoard (`train.tensorboard`), in the folder `tensorboard` of the run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from jrdp.engine.steps import Step
from jrdp.errors import UserError

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


def need_tensorboard() -> None:
    """Raise `UserError` where the package that writes TensorBoard's files is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise UserError("train.tensorboard needs tensorboardX: pip install 'jrdp[tensorboard]', or leave it out")


class Board:
    """Writes losses, learning rate and metrics; what an interrupted run wrote after iteration `first` is hidden.

    The folder is made with the first of them: a run that ends before it leaves none.
    """

    def __init__(self, run: Path, first: int):
        self._folder, self._first = run / "tensorboard", first
        self._opened: Optional[SummaryWriter] = None

    def write(self, step: Step) -> None:
        for name, value in step.losses.items():
            self._writer().add_scalar(f"train/{name}", value, step.iteration)
        self._writer().add_scalar("train/lr", step.rate, step.iteration)
        self._writer().flush()

    def write_metrics(self, iteration: int, metrics: dict) -> None:
        for test_set, kinds in metrics.items():
            for kind, values in kinds.items():
                self._writer().add_scalar(f"{test_set}/{kind} AP", values["AP"], iteration)
        self._writer().flush()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _writer(self) -> SummaryWriter:
        if self._opened is None:
            from tensorboardX import SummaryWriter

            self._opened = SummaryWriter(logdir=str(self._folder), purge_step=self._first + 1 if self._first else None)
        return self._opened
