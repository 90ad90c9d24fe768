"""`log.jsonl` of a run, and the lines that it prints."""

from __future__ import annotations

import json
from collections import deque
from datetime import timedelta
from pathlib import Path

import numpy as np

from jrdp.engine import distributed
from jrdp.engine.steps import Step
from jrdp.files import parse_json, write_text


class TrainingLog:
    """Appends one JSON object a line, on the main rank; on resuming, drops the lines after iteration `first`."""

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

    def __enter__(self) -> TrainingLog:
        if distributed.is_main():
            self._file = open(self._path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()

    def write(self, step: Step) -> None:
        self._recent.append(step.seconds)
        record = {"iteration": step.iteration, "lr": step.rate, **step.losses, "seconds": round(step.seconds, 4)}
        if self._file:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def progress(self, step: Step, last: int) -> str:
        """A line to print; the time that is left is by the median of the last steps, as Jittor compiles in some."""
        seconds = float(np.median(self._recent))
        parts = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in step.losses.items() if name != "loss")
        return (
            f"{step.iteration:>6}/{last}  eta {timedelta(seconds=round(seconds * (last - step.iteration)))}  "
            f"lr {step.rate:.2e}  loss {step.losses['loss']:.3f} ({parts})  {seconds:.2f} s/it"
        )
