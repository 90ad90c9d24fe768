"""The loop that both workers run: read a command, call the backend's method of that name, answer."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any, Callable

from jrdp.errors import UserError

Command = Callable[..., Any]


def serve(commands: dict[str, Command]) -> None:
    """Answer commands from standard input until it ends.

    Whatever the framework prints goes to standard error: standard output carries the answers only.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("command")
        try:
            answer = {"result": commands[name](**request)}
        except UserError as error:
            answer = {"error": str(error)}
        except Exception as error:  # reported to the parent, which ends with one line; the trace is in the log
            traceback.print_exc()
            answer = {"error": f"{name} failed: {type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        try:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        except BrokenPipeError:  # whoever asked is gone
            os._exit(1)


# The released network sends every proposal of a training step through the mask head, this one only the positive RoIs, which
# alone change a loss or a gradient. Both are timed: PyTorch as released, and sending what Jittor sends.
TRAINING_STEPS = ("training step", "training step, positive RoIs")


def peak_memory_mb() -> float:
    """The largest resident set of this process so far, in MiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    raise UserError("this system does not report a process's peak memory in /proc/self/status")
