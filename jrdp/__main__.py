"""The first lines of the `jrdp` command, and of `python -m jrdp`.

What it is made of takes a second to import, and may be interrupted then, too.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def main() -> None:
    """Entry point of the `jrdp` command: `jrdp.cli.main`, imported without a traceback for Ctrl-C."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    usual = [number for number in numbers if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)]
    before = {number: signal.signal(number, _end) for number in usual}
    from jrdp import cli

    for number, handler in before.items():
        signal.signal(number, handler)
    cli.main()


def _end(number: int, _frame) -> NoReturn:
    os._exit(128 + number)  # as `jrdp.endings` does later; nothing has been begun yet


if __name__ == "__main__":
    main()
