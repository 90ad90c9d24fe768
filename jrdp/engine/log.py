"""`log.jsonl` of a run, and the lines that it prints."""

from __future__ import annotations

import json
import os
from collections import deque
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np

from jrdp.engine import distributed
from jrdp.data.shapes import finite_numbers
from jrdp.engine.steps import Step
from jrdp.files import parse_json, refuse_special, write_text


def read_log(path: Path) -> list[dict]:
    """The lines of a `log.jsonl` that hold what a run writes; others were cut by a kill, or written by somebody else."""
    if not path.exists():
        return []
    refuse_special(path)
    return [record for record in map(_parsed, path.read_text(encoding="utf-8", errors="replace").splitlines()) if record]


def _parsed(line: str) -> dict | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("iteration")) is not int or not 0 < record["iteration"] < 1 << 31:
        return None
    values = [record.get(name) for name in ("loss", "lr", "seconds")]
    values += [value for name, value in record.items() if name.startswith("loss_")]
    try:
        values += [kinds["segm"]["AP"] for kinds in record.get("metrics", {}).values()]
    except (AttributeError, KeyError, TypeError):
        return None
    return record if finite_numbers(values) else None


class TrainingLog:
    """Appends one JSON object a line, on the main rank; on resuming, drops the lines after iteration `first`."""

    def __init__(self, path: Path, first: int):
        self._recent: deque[float] = deque(maxlen=30)
        self._path = path
        kept = [record for record in read_log(path) if record["iteration"] <= first] if first else []
        if distributed.is_main():
            write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._last: dict = kept[-1] if kept else {}
        self._file = None

    def __enter__(self) -> TrainingLog:
        if distributed.is_main():
            self._file = open(self._path, "r+b", buffering=0)
            self._file.seek(0, os.SEEK_END)
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()

    def write(self, step: Step) -> None:
        self._recent.append(step.seconds)
        record = {"iteration": step.iteration, "lr": step.rate, **step.losses, "seconds": round(step.seconds, 4)}
        if step.skipped:
            record["skipped"] = True
        if self._file:
            self._append(json.dumps(record) + "\n")
        self._last = record

    def untested(self, iteration: int) -> bool:
        """Whether the last line is that of an iteration, and without metrics."""
        return self._last.get("iteration") == iteration and "metrics" not in self._last

    def add_metrics(self, metrics: dict) -> None:
        """To the last line: the metrics of the test sets by name."""
        self._last["metrics"] = metrics
        if self._file:
            end = "}\n"
            self._file.seek(-len(end), os.SEEK_END)
            self._append(f', "metrics": {json.dumps(metrics)}' + end, instead=end)

    def _append(self, text: str, instead: str = "") -> None:
        """Write `text` at once, or, where that fails, nothing: `instead` is what stands there now."""
        start, data = self._file.tell(), text.encode()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:  # the disk is full, say
            with suppress(OSError):
                self._file.seek(start)
                self._file.truncate(start + self._file.write(instead.encode()))
            raise

    def progress(self, step: Step, last: int) -> str:
        """A line to print; the time that is left is by the median of the last steps, as Jittor compiles in some."""
        seconds = float(np.median(self._recent))
        parts = " ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in step.losses.items() if name != "loss")
        return (
            f"{step.iteration:>6}/{last}  eta {timedelta(seconds=round(seconds * (last - step.iteration)))}  "
            f"lr {step.rate:.2e}{' skipped' if step.skipped else ''}  loss {step.losses['loss']:.3f} ({parts})  {seconds:.2f} s/it"
        )
