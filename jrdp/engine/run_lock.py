"""One training to a folder: a lock that ends with its process, and the temporary files that killed ones left."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from jrdp.engine import distributed
from jrdp.errors import UserError
from jrdp.files import lock_folder, make_folder, remove_leftovers, unlock


@contextmanager
def run_lock(out: Path, resume: bool) -> Iterator[None]:
    """Hold the folder `out` (created unless resuming) while a training writes there.

    The system gives the lock back however the process ends. Raises `UserError` when another process has it.
    """
    if resume and not out.is_dir():
        raise UserError(f"nothing to resume: no checkpoint at {out / 'last.safetensors'}")
    if not distributed.is_main():
        yield
        return
    make_folder(out)
    try:
        handle = lock_folder(out)
    except BlockingIOError as error:
        raise UserError(f"another process is training into {out}: wait for it, or give another --out") from error
    try:
        _clear(out)
        yield
        _clear(out)
    finally:
        unlock(handle)  # processes that were forked meanwhile, by `on_step` say, have it open
        os.close(handle)


def _clear(out: Path) -> None:
    names = {"last.safetensors", "final.safetensors", "best.safetensors", "log.jsonl", "config.yaml", "curves.png"}
    for path in out.iterdir():
        if path.name.startswith(".last.state-"):  # .last.state-N.safetensors.XXXXXXXX
            names.add(path.name[1:].rpartition(".")[0])
    remove_leftovers(out, *names)
