"""What has been found so far in the frames of a video, or the batches of a test set, so that hours of it survive a kill.

`NAME.partial.jsonl` gets a line a frame (or batch): first what the run was asked for, then the COCO results of 0, 1, ...
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Iterator

from jrdp.errors import UserError
from jrdp.files import parse_json, refuse_inputs


class FrameRecord:
    """The results of the first `done` frames. Memory holds a number a frame.

    Args:
        path: the file; made or emptied unless it is continued.
        asked: plain values that a run has to share with the one it continues (video or test set, weights, settings).
        resume: keep what is there. Raises `UserError` when that was asked something else.
    """

    def __init__(self, path: Path, asked: dict, resume: bool):
        self._path = path
        header = json.dumps({"asked": asked}, sort_keys=True).encode() + b"\n"
        self._places: list[int] = []
        refuse_inputs(path)
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.fdopen(os.open(path, flags, 0o666), "r+b")
            end = self._read(header) if resume else 0
            self._file.truncate(end)
            self._file.seek(end)
            if end == 0:
                self._append(header)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    @property
    def done(self) -> int:
        return len(self._places)

    def results(self, frame: int) -> list:
        """The COCO results of a frame that is done."""
        self._file.seek(self._places[frame])
        entries = json.loads(self._file.readline())["results"]
        self._file.seek(0, os.SEEK_END)
        return entries

    def add(self, results: list) -> None:
        """Record the next frame. Raises `UserError` when the disk is full."""
        place = self._file.tell()
        try:
            self._append(json.dumps({"results": results}, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from error
        self._places.append(place)

    def all_results(self) -> Iterator[dict]:
        """The results of every frame, in order."""
        for frame in range(self.done):
            yield from self.results(frame)

    def close(self, remove: bool) -> None:
        """End it; what could not be written out is known already."""
        try:
            self._file.close()
        except OSError:
            pass
        if remove:
            self._path.unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()

    def _read(self, header: bytes) -> int:
        """Where the last whole line ends; 0 for a file without any."""
        first = self._file.readline()
        if not first.endswith(b"\n"):
            return 0
        if first != header:
            raise UserError(
                f"--resume with other inputs, weights, settings or threshold than {self._path}: give the same ones, or leave "
                "--resume out to begin anew"
            )
        end = len(first)
        for line in self._file:
            try:
                whole = line.endswith(b"\n") and isinstance(parse_json(line)["results"], list)
            except (ValueError, KeyError, TypeError):
                break
            if not whole:
                break
            self._places.append(end)
            end += len(line)
        return end
