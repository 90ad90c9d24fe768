"""Files that are either whole or absent: written under another name in the same folder, then renamed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from jrdp.errors import UserError


def make_folder(folder: str | os.PathLike) -> Path:
    """Create `folder` and the folders above it. Raises `UserError` when that is impossible."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {folder}: {error.strerror}") from error
    return Path(folder)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Raises `UserError` when `path` cannot be written; then there is no half-written file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def write_json(path: str | os.PathLike, value) -> None:
    write_bytes(path, json.dumps(value, separators=(",", ":")).encode("utf-8"))


def write_png(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """`pixels`: uint8 `[H, W, 3]` RGB, or `[H, W]`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=2)
    write_bytes(path, buffer.getvalue())
