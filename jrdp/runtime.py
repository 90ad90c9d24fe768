"""Makes stock Jittor 1.3.11 importable on this machine, before anything imports it."""

from __future__ import annotations

import os
import signal
import sys
from importlib import metadata
from pathlib import Path


def prepare() -> None:
    """Set the environment that Jittor reads when it is imported; does nothing once Jittor has been imported."""
    if "jittor" in sys.modules or "jittor_utils" in sys.modules:
        return
    os.environ.setdefault("nvcc_path", "")
    os.environ.setdefault("FIX_TORCH_ERROR", "0")
    home = Path(os.environ.get("JITTOR_HOME", str(Path.home())))
    root = home / ".cache" / "jittor" / "mkl" / "dnnl_lnx_2.2.0_cpu_gomp"
    if (root / "lib" / "libmkldnn.so").exists():
        return
    library = next(Path(f.locate()).resolve() for f in metadata.files("onednn-cpu-gomp") if f.name == "libdnnl.so")
    header = next(
        Path(f.locate()).resolve()
        for f in metadata.files("onednn-devel-cpu-gomp")
        if f.name == "dnnl.hpp" and f.parent.name == "include"
    )
    (root / "lib").mkdir(parents=True, exist_ok=True)
    (root / "include").symlink_to(header.parent)
    for name in ("libdnnl.so", "libmkldnn.so"):
        (root / "lib" / name).symlink_to(library)
    for path in library.parent.glob("libdnnl.so.*"):
        (root / "lib" / path.name).symlink_to(path)


def start(device: str = "auto", seed: int | None = None) -> str:
    """Import Jittor, choose the device ("auto", "cpu", "cuda") and seed it; returns "cpu" or "cuda".

    Also gives Ctrl-C and the end of child processes back to Python: Jittor ends the process on either.
    """
    import jittor as jt

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if seed is not None:
        jt.set_global_seed(seed)
    return "cpu"
