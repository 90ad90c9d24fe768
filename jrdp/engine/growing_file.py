"""A file that grows by a line while a run works, so that what is done survives a kill.

First a line with what the run was asked for, then a JSON object a line. Memory holds none of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import BinaryIO, Iterator

from jrdp.errors import UserError
from jrdp.files import lock, parse_json, refuse_inputs, unlock


def stamp_of(path: str | Path) -> list:
    """What changes when the file does: its path, size and time; the path alone of one that cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return [str(path)]  # whoever reads it says what is wrong
    return [str(path), status.st_size, status.st_mtime_ns]


def weights_asked(weights: Path) -> list:
    """What a run records of the weights that it was asked for; all checkpoints of one network have the same size."""
    return stamp_of(os.path.realpath(weights))


def digest_of(asked: dict) -> str:
    """What a finished run keeps of the plain values that it was asked for, to know the same request again."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def unknown_request(what: Path) -> UserError:
    """For a `--resume` where `what` is finished and does not say what it was asked for."""
    return UserError(
        f"--resume, but {what} is finished and nothing says for which weights and settings (an older version of jrdp did "
        "not): give another --out, or leave out --resume to do it anew"
    )


def other_request(asked: str, what: Path) -> UserError:
    """For a `--resume` where `what` is finished and was asked something else."""
    return UserError(
        f"--resume with other {asked} than those of {what}, which is finished: give the same ones or another --out, or leave out "
        "--resume to do it anew"
    )


class GrowingFile:
    """The file `path` of a run that was `asked` for these plain values; what is in it already is kept by `kept` only."""

    def __init__(self, path: Path, asked: dict):
        self.path = path
        self.digest = digest_of(asked)
        self._header = json.dumps({"asked": asked}, sort_keys=True).encode() + b"\n"
        self._end = 0
        self._file: BinaryIO | None = None
        refuse_inputs(path)

    def kept(self, fields: set[str], asked: str) -> Iterator[tuple[int, dict]]:
        """The place and content of every line of an earlier run, up to the first that is cut off or lacks one of `fields`.

        Raises:
            UserError: when that run was asked something else; `asked` says in words what that may be.
        """
        try:
            with _open(self.path, os.O_RDONLY, "rb") as lines:
                first = lines.readline()
                if not first.endswith(b"\n"):
                    return  # killed before anything was done
                if first != self._header:
                    raise UserError(
                        f"--resume with other {asked} than {self.path}: give the same ones, or remove that file to begin anew"
                    )
                self._end = len(first)
                for line in lines:
                    entry = _whole(line, fields)
                    if entry is None:
                        return
                    place, self._end = self._end, self._end + len(line)
                    yield place, entry
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error

    def open(self) -> None:
        """Go on behind what was kept, alone until `close`. Raises `UserError`, also where another process writes it."""
        try:
            self._file = _open(self.path, os.O_RDWR | os.O_CREAT, "r+b")
            _lock(self._file, self.path)
            self._file.truncate(self._end)
            self._file.seek(self._end)
            if self._end == 0:
                self._write(self._header)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error

    def append(self, entry: dict) -> int:
        """Add a line; returns its place. Raises `UserError` when the disk is full."""
        place = self._file.tell()
        try:
            self._write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        return place

    def read(self, place: int) -> dict:
        """The line at a place."""
        self._file.seek(place)
        entry = json.loads(self._file.readline())
        self._file.seek(0, os.SEEK_END)
        return entry

    def close(self) -> None:
        """Every line was flushed when it was added, so what closing cannot write is known already."""
        try:
            if not self._file.closed:
                unlock(self._file.fileno())  # processes that were forked meanwhile have it open
            self._file.close()
        except OSError:
            pass

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()


def refuse_unfinished(path: Path) -> None:
    """Raise `UserError` where `path` holds what an interrupted run has done, which a run from the start would drop."""
    try:
        with _open(path, os.O_RDONLY, "rb") as lines:
            _lock(lines, path)
            done = sum(line.endswith(b"\n") for line in lines) - 1
            unlock(lines.fileno())
    except OSError:
        return  # none, or none of ours: whoever opens it says so
    if done > 0:
        raise UserError(
            f"{path} keeps what an interrupted run has done ({done} {'entry' if done == 1 else 'entries'}): add --resume to "
            "go on with it, remove that file to begin anew, or give another --out"
        )


def _open(path: Path, flags: int, mode: str) -> BinaryIO:
    """A link that waits at `path` is not followed."""
    return os.fdopen(os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666), mode)


def _lock(file: BinaryIO, path: Path) -> None:
    """Hold `file` until it is closed; raises `UserError` when another process has it, which writes to the same folder."""
    try:
        lock(file.fileno())
    except BlockingIOError as error:
        file.close()
        raise UserError(f"another process is writing into {path.parent} ({path.name}): wait for it, or give another --out") from error


def _whole(line: bytes, fields: set[str]) -> dict | None:
    """The content of a line; None where it was cut off, or is none of ours."""
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    known = isinstance(entry, dict) and fields <= set(entry) and isinstance(entry["results"], list)
    return entry if known and line.endswith(b"\n") else None
