"""Files that are either whole or absent: written under another name in the same folder, then renamed."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Iterator

from jrdp.errors import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends well and leaves no trace when it raises.

    Raises `UserError` when the folder is missing or cannot be written to.
    """
    path = Path(path)
    temporary = None
    try:
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            temporary = Path(stream.name)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())  # a temporary file is private; a result is as readable as any other file
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` in one step, creating its folder. Raises `UserError` where that is impossible."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    with atomic_write(path) as stream:
        stream.write(data)


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write `value` as JSON in one step; NaN and infinity are refused, since they are not JSON."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """`json.loads` for text from outside. Raises `ValueError` for all that is wrong with it, deep nesting included.

    Jittor raises Python's recursion limit so far that text of nothing but brackets would overflow the stack.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(min(limit, 2000))
    try:
        return json.loads(text, **hooks)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    finally:
        sys.setrecursionlimit(limit)


def read_json(path: str | Path, what: str) -> Any:
    """The parsed JSON in `path`; `what` names it in the `UserError` for a missing, unreadable or malformed file."""
    try:
        return parse_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the {what} {path} is not valid JSON: {error}") from error


def make_folder(folder: str | Path) -> Path:
    """Create `folder` and the folders above it, and make sure that files can be written there.

    Raises `UserError` when that is impossible.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder}: {error.strerror}") from error
    return folder


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
