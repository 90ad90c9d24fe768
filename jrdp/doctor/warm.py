"""What `jrdp doctor --warm` compiles ahead. Import after `runtime.start`."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Iterator

import jittor as jt
from tqdm import tqdm

import jrdp
from jrdp.machine.cache import loaded_kernels

KERNELS = 145  # about how many the steps below load, for the length of the progress bar


def warm_up(device: str) -> str:
    """Train the default network for two small steps on the sample pictures, evaluate, and predict with each engine.

    No picture size, batch or number of instances compiles anything beyond that, so what follows starts at once.
    """
    before, started = _loaded(), time.time() - 1
    with tempfile.TemporaryDirectory(prefix="jrdp-warm-") as folder, _progress_bar(before):
        with contextlib.redirect_stdout(io.StringIO()):
            _train_and_predict(Path(folder), device)
    needed = _loaded() - before
    compiled = sum(1 for kernel in needed if os.stat(kernel).st_mtime >= started)
    if not compiled:
        return f"nothing to compile: all {len(needed)} kernels are there"
    return f"{compiled} kernels compiled, {len(needed) - compiled} were there"


def _train_and_predict(folder: Path, device: str) -> None:
    from jrdp.config import parse_config
    from jrdp.dataset_tools.sample import write_sample
    from jrdp.engine.train import train

    write_sample(folder / "sample", seed=0)
    sets = {part: [f"sample/imgs:sample/{part}.json"] for part in ("train", "val")}
    values = {
        "input": {"min_size": 96, "max_size": 128},
        "data": {"root": str(folder), "train": sets["train"], "test": sets["val"], "workers": 0},
        "solver": {"max_iterations": 2, "batch_size": 2},
        # An untrained network finds nothing above the usual threshold, and the mask head would not run.
        "model": {"fcos": {"pre_nms_threshold": 0.0, "pre_nms_top_n": 2, "post_nms_top_n": 2}},
    }
    train(parse_config(values, "the warm-up"), folder / "run")
    picture = sorted((folder / "sample" / "imgs").iterdir())[0]
    for engine in ("auto", "plain"):
        model = jrdp.load(folder / "run" / "final.safetensors", device=device, overrides=[f"test.engine={engine}"])
        model.predict(picture)


def _loaded() -> set[str]:
    """The kernels that this process has loaded; where that is not told, all of the cache."""
    try:
        return loaded_kernels()
    except OSError:
        return {str(path) for path in (Path(jt.flags.cache_path) / "jit").glob("*.so")}


@contextlib.contextmanager
def _progress_bar(before: set[str]) -> Iterator[None]:
    """One bar on a terminal in place of Jittor's own, of which it writes one for every graph; elsewhere none."""
    done = threading.Event()
    saved = os.dup(2)
    with os.fdopen(saved, "w") as terminal, tempfile.TemporaryFile() as unseen:
        bar = tqdm(total=KERNELS, unit=" kernels", desc="  compiling", file=terminal, leave=False, disable=None)

        def watch() -> None:
            while not done.wait(0.5):
                bar.n = min(len(_loaded() - before), KERNELS)
                bar.refresh()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        os.dup2(unseen.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            done.set()
            watcher.join()
            bar.close()
