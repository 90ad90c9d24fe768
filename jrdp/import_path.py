"""Code of one's own by its import path, `package.module:Name`, as a configuration names a backbone or a pyramid."""

from __future__ import annotations

import importlib
import os
import re
import sys

from jrdp.errors import UserError

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


def _line(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
