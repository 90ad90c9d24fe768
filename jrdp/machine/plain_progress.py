"""Progress that survives a pipe: where standard error is no terminal, only the last state of a line is written.

Jittor reports the compiling of its operators from C++, one state over the other with carriage returns, which in a file
or another program's log are one endless line. A small process between it and standard error keeps what stands after
the last carriage return. It is another process because Jittor holds Python's lock meanwhile, and because what a crash
says must still come through.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from typing import Optional, Tuple

_STDERR = 2
_END = b"\x04"  # the last line that the process reads: others, as Jittor's compile pool, hold the pipe for as long as we live
_LAST_STATE = ["-e", "s/[ \r]*$//", "-e", "s/.*\r//"]
_UNTIL_END = ["-e", "/\x04$/!b usual", "-e", "s/\x04$//", *_LAST_STATE, "-e", "/./p", "-e", "q", "-e", ":usual", *_LAST_STATE, "-e", "p"]
# The true standard error, the process before it, and which pipe leads there (device, inode).
_between: Optional[Tuple[int, subprocess.Popen, Tuple[int, int]]] = None


def begin() -> None:
    """Put the process in between; once, and not for a terminal or where there is no `sed`."""
    global _between
    with suppress(OSError):
        if _between is not None or os.isatty(_STDERR) or shutil.which("sed") is None:
            return
        process = subprocess.Popen(
            ["sed", "-n", "-u", *_UNTIL_END],
            stdin=subprocess.PIPE, stdout=_STDERR, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which still has something to say
        )
        saved = os.dup(_STDERR)
        _flush()
        os.dup2(process.stdin.fileno(), _STDERR)
        process.stdin.close()
        _between = saved, process, _identity()


def end() -> None:
    """Give standard error back, after all that was written to it has arrived.

    Where somebody has put something else in its place meanwhile, that stays, and gets nothing of ours.
    """
    global _between
    if _between is None:
        return
    (saved, process, pipe), _between = _between, None
    _flush()
    if _identity() != pipe:
        os.close(saved)
        return
    with suppress(OSError):  # somebody has ended it
        os.write(_STDERR, _END + b"\n")
    os.dup2(saved, _STDERR)
    os.close(saved)
    with suppress(subprocess.TimeoutExpired):  # what reads our standard error may not go on
        process.wait(timeout=2)


def _identity() -> Optional[Tuple[int, int]]:
    """What standard error is; None where it is closed."""
    with suppress(OSError):
        status = os.fstat(_STDERR)
        return status.st_dev, status.st_ino
    return None


def _flush() -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()
