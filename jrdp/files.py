"""Output files that are either whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

from jrdp.errors import UserError


def make_folder(folder: Path) -> None:
    """Create `folder` and make sure that files can be written there.

    Raises:
        UserError: if it cannot be created or written to, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".jrdp.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the output folder {folder}: {error.strerror}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name and rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value))
