"""Reading JSON and writing whole files: a failure is one clear line and leaves nothing half-written."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from jrdp.errors import UserError


def read_json(path: str | Path, what: str) -> Any:
    """The parsed JSON in `path`; `what` names it in the `UserError` for a missing, unreadable or malformed file."""
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the {what} {path} is not valid JSON: {error}") from error


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `path` in one step (a temporary file beside it, then a rename), creating its folder.

    Raises `UserError` where the folder cannot be made or written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes a private file; results are ordinary ones
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON in one step; NaN and infinity are refused, since they are not JSON."""
    write_bytes(path, (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
