"""Starts Jittor: the one thing to call before anything of `models`, `ops`, `fast` or `engine` computes."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import sys
import warnings
from typing import Optional

from jrdp.errors import UserError
from jrdp.machine import gpu_failure, plain_progress
from jrdp.machine import tf32 as tf32_choice
from jrdp.machine.importing import cores, quiet
from jrdp.machine.prepare import Setup, prepare
from jrdp.machine.tf32 import describe_tf32

__all__ = ["Setup", "cores", "describe_tf32", "own_process", "prepare", "start"]

# Shapes of each kind of convolution for which cuDNN's fastest algorithm is kept. Jittor's 100 are full after two or three
# sizes of pictures; from then on every call, of a known size or not, asks cuDNN's heuristics anew. A key takes a hundred
# bytes, and there are some sixty convolutions for each size of pictures and five for each number of RoIs.
_CUDNN_ALGORITHMS = 16384

# What a prediction of one small picture takes of the address space: libraries, weights, and a stack and a heap a thread.
_ADDRESSES, _ADDRESSES_PER_CORE = 1400 << 20, 150 << 20

_process_is_ours = False


def own_process() -> None:
    """Say that this process belongs to the command line, which may do what a guest may not.

    Jittor's import is muted and its progress reported, a crash in native code shows the Python stack, and Pillow's
    warnings of large pictures, which are refused with an error anyway, are left out.
    """
    global _process_is_ours
    _process_is_ours = True
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__, all_threads=False)
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about damaged pictures, which get a line of ours or are read


def check_device(device: str) -> None:
    """Raise `UserError` for a word that is no choice of device."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"unknown device {device!r}: choose auto, cpu or cuda")


def start(device: str = "auto", seed: Optional[int] = None, tf32: bool = False) -> str:
    """Import Jittor, choose the device ("auto", "cpu", "cuda") and seed it; returns "cpu" or "cuda".

    tf32: let NVIDIA's libraries multiply float32 in TF32, which is chosen once in a process, when Jittor is imported.
    A user's own NVIDIA_TF32_OVERRIDE wins, whatever is asked for here.

    Jittor's messages are kept quiet unless JRDP_VERBOSE is set. Raises `UserError` when Jittor cannot run here,
    `device` or `tf32` cannot be had, or Jittor has been imported with the other choice.
    """
    check_device(device)
    setup = prepare()
    if setup.problems:
        raise UserError(setup.problems[0])
    import numpy

    if device == "cuda" and not setup.cuda.usable:
        raise UserError(f"--device cuda cannot be used: {_sentence(setup.cuda.reason, setup.cuda.fix)}")
    verbose = bool(os.environ.get("JRDP_VERBOSE"))
    _check_address_space()
    if _process_is_ours and not verbose:
        plain_progress.begin()
    if "jittor" not in sys.modules:
        _check_working_folder()
        tf32_choice.ask(tf32)
        # NumPy works these out once; with a compiler whose kernels lose them (`subnormals.py`: not g++) it would warn later.
        for kind in (numpy.float16, numpy.float32, numpy.float64):
            numpy.finfo(kind).smallest_subnormal
        with contextlib.nullcontext() if verbose else quiet(_process_is_ours):
            import jittor  # noqa: F401
    import jittor as jt

    if not verbose:
        jt.flags.log_silent = 1
    if device == "cuda" and not jt.has_cuda:
        raise UserError("--device cuda cannot be used: Jittor found no GPU; `jrdp doctor` says what it tried")
    chosen = "cuda" if jt.has_cuda and device != "cpu" else "cpu"
    tf32_choice.check(tf32, chosen)
    jt.flags.use_cuda = int(chosen == "cuda")
    if chosen == "cuda" and jt.cudnn is not None:
        jt.cudnn.set_algorithm_cache_size(_CUDNN_ALGORITHMS)
        if not verbose:
            gpu_failure.keep_errors_short()
    if seed is not None:
        jt.set_global_seed(seed, different_seed_for_mpi=False)  # every rank starts from the same weights
    return chosen


def _check_working_folder() -> None:
    """Raise `UserError` where the working folder was removed, which Jittor's import does not survive."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the folder that this was started in is not there any more: change to another one") from error


def _check_address_space() -> None:
    """Raise `UserError` for a limit on memory (`ulimit -v`) that Jittor does not fit in: it would end in a segmentation fault.

    Under a higher limit a process of ours says so once, as Jittor ends without a word where that is reached.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or "jittor" in sys.modules:
        return
    needed = _ADDRESSES + _ADDRESSES_PER_CORE * cores()
    if limit < needed:
        raise UserError(
            f"this process may use {limit / 2**30:.1f} GiB of memory addresses (ulimit -v), and Jittor needs "
            f"{needed / 2**30:.1f} to start on {cores()} cores: raise the limit (ulimit -v unlimited)"
        )
    if _process_is_ours:
        print(
            f"jrdp: memory addresses are limited to {limit / 2**30:.1f} GiB (ulimit -v): where that is too little, Jittor "
            "ends with a segmentation fault",
            file=sys.stderr,
        )


def _sentence(reason: str, fix: str) -> str:
    return f"{reason}; {fix}" if fix else reason
