"""Python's headers, told to Jittor through a small script.

Jittor asks `python3.X-config` beside the interpreter or in /usr/bin. A virtual environment has none, and the one in
/usr/bin belongs to the distribution's Python, not to the one that runs. The script answers for the running interpreter.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from jrdp.machine.cache import fingerprint, own_folder, replace_file


def include_folders() -> list[str]:
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["include"], paths["platinclude"]]))


def missing_headers() -> str:
    """A sentence with the fix when Python.h is not there, else an empty string."""
    if any((Path(folder) / "Python.h").is_file() for folder in include_folders()):
        return ""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"Python.h is not in {include_folders()[0]} and Jittor compiles against it: install Python's headers "
        f"(Debian, Ubuntu: apt install {name}-dev)"
    )


def config_script() -> Path:
    """An executable that answers as python3-config would for the running interpreter."""
    answers = {
        "--includes": " ".join(f"-I{folder}" for folder in include_folders()),
        "--extension-suffix": sysconfig.get_config_var("EXT_SUFFIX"),
        "--ldflags": f"-L{sysconfig.get_config_var('LIBDIR') or '.'}",
    }
    cases = "".join(f"  {flag}) echo '{answer}' ;;\n" for flag, answer in answers.items())
    text = f'#!/bin/sh\ncase "$1" in\n{cases}  *) exit 1 ;;\nesac\n'
    script = own_folder() / f"python-config-{fingerprint(text)}"
    replace_file(script, text, executable=True)
    return script
