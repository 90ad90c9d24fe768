"""Code of one's own: by its import path, `package.module:Name`, as a configuration names a backbone or a pyramid; and
what it raised, in one line."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from contextlib import contextmanager
from typing import Iterator, Optional

from jrdp.errors import UserError

_HERE = os.path.dirname(os.path.abspath(__file__))
_homes: set[str] = set()  # the folders of the modules that were imported by a path
_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_import_path(text: str) -> bool:
    """Whether `text` is of the form `package.module:Name`."""
    return _PATTERN.fullmatch(text) is not None


def is_imported(path: str) -> bool:
    """Whether the module of an import path has been imported in this process already."""
    return path.partition(":")[0] in sys.modules


def import_object(path: str, key: str) -> object:
    """What an import path names. Modules are also looked for in the working directory, after everything else.

    Raises:
        UserError: naming the configuration's `key` and what is missing, or what the module raised.
    """
    module_name, _, name = path.partition(":")
    try:
        module = _import(module_name)
    except (Exception, SystemExit) as error:  # a script that is no module ends by sys.exit
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == module_name.partition(".")[0]
        what = f"there is no module {error.name}" if missing else f"importing {module_name} raised {_line(error)}"
        advice = f"; it is looked for on Python's path and in {os.getcwd()}" if missing else ""
        raise UserError(f"{key}: {path}: {what}{advice}") from error
    if getattr(module, "__file__", None):
        _homes.add(os.path.dirname(os.path.abspath(module.__file__)))
    if not hasattr(module, name):
        raise UserError(f"{key}: {path}: {getattr(module, '__file__', None) or module_name} has no {name}")
    return getattr(module, name)


def _import(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if here in sys.path or not f"{name}.".startswith(f"{error.name}."):
            raise
        sys.path.append(here)
        importlib.invalidate_caches()
        return importlib.import_module(name)


@contextmanager
def explained(doing: str, file: Optional[str]) -> Iterator[None]:
    """Turn what code of one's own raises into a `UserError`: who was `doing` what, and where in `file`, or beside it, it failed."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        homes = {os.path.dirname(os.path.abspath(file))} if file else set()
        raise UserError(f"{doing} raised {_line(error, homes)}") from error


def reason_of(error: BaseException) -> Optional[str]:
    """One line for what a module that was imported by a path raised while it was used; None for any other error."""
    frames = [os.path.dirname(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [place for place in frames if place in _homes or f"{place}/".startswith(f"{_HERE}/")]
    return f"your own code raised {_line(error, _homes)}" if ours and ours[-1] in _homes else None


def _line(error: BaseException, homes: set[str] = frozenset()) -> str:
    """An exception in one line, with the last place in these folders that it came from: "KeyError in mine.py, line 12: ...".

    Of Jittor's messages, which begin with how its functions are called, what follows that.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if os.path.dirname(frame.filename) in homes]
    where = f" in {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""
    text = str(error).rpartition("Failed reason:")[2]
    text = re.sub(r"\x1b\[[0-9;]*m|\[f \d+ [^\]]*\]", " ", text)  # colours; time and place in Jittor's source
    text = " ".join(text.split())[:300]
    return f"{type(error).__name__}{where}: {text}" if text else f"{type(error).__name__}{where}"
