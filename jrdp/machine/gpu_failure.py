"""What a GPU does that no program can prevent, in one line: its memory is full, or it fails in the middle of the work.

Jittor raises `RuntimeError` for everything, with many lines that end in what CUDA or one of its libraries said.
Imports no Jittor but in `keep_errors_short`.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional

from jrdp.errors import UserError

_FULL = re.compile(
    r"Unable to alloc cuda device memory|GPU ?memory is overflow|cudaErrorMemoryAllocation|CUDNN_STATUS_ALLOC_FAILED"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CURAND_STATUS_ALLOCATION_FAILED"
)
_FAILED = re.compile(r"CUDA error at|launch of \w+: |clearing the [\w ]+: |CUDNN_STATUS_\w+|CUBLAS_STATUS_\w+|CURAND_STATUS_\w+")
_WANTED = re.compile(r"Unable to alloc cuda device memory for size ?(\d+)")
_MADE = re.compile(r"\[Output\]: *((?:\w+\[[\d,]*\], *)+)")

# The errors of the machine. Others (an address out of bounds, a wrong launch) are mistakes of the program.
_OF_THE_MACHINE = (
    "cudaErrorDevicesUnavailable", "cudaErrorDeviceUnavailable", "cudaErrorECCUncorrectable", "cudaErrorNvlinkUncorrectable",
    "cudaErrorNoDevice", "cudaErrorUnknown", "cudaErrorSystemNotReady", "cudaErrorStartupFailure", "cudaErrorContained",
)  # fmt: skip

_LESS = (
    "use smaller pictures (input.min_size, input.max_size), fewer at a time (solver.batch_size, test.batch_size, --jobs), "
    "or what nvidia-smi shows to have more room"
)
_GONE = "no work can be done on it any more: `dmesg | grep -i xid` and nvidia-smi tell more; a restart may bring it back"


def reason_of(error: BaseException) -> Optional[str]:
    """One line for a failure of the GPU that Jittor has raised, with what to do; None for any other error."""
    return _reason(error, None)


@contextmanager
def explained(where: Callable[[], str], kept: str = "") -> Iterator[None]:
    """Raise `UserError` for a failure of the GPU in the block.

    `where` says at what ("at iteration 3"), and is called then; kept: what the user has all the same.
    """
    try:
        yield
    except RuntimeError as error:
        reason = _reason(error, where)
        if reason is None:
            raise
        raise UserError(f"{reason}; {kept}" if kept else reason) from error


def _reason(error: BaseException, where: Optional[Callable[[], str]]) -> Optional[str]:
    text = str(error)
    if not isinstance(error, RuntimeError):
        return None
    if _FULL.search(text) and _what_the_runtime_says() not in _OF_THE_MACHINE:  # a lost GPU gives no memory either
        return f"the GPU's memory is full{_at(where)}{_wanted(text)}: {_LESS}"
    if not (_FULL.search(text) or _FAILED.search(text)):
        return None
    name = next((name for name in _OF_THE_MACHINE if name in text), None) or _what_the_runtime_says()
    if name not in _OF_THE_MACHINE:
        return None
    _let_go()
    return f"the GPU has failed{_at(where)} ({name}): {_GONE}"


def _at(where: Optional[Callable[[], str]]) -> str:
    return f" {where()}" if where else ""


def _wanted(text: str) -> str:
    size, made = _WANTED.search(text), _MADE.search(text)
    parts = [f"{int(size[1]) / 2**20:.0f} MB more were wanted"] if size else []
    parts += [f"for {made[1].rstrip(', ').replace(',]', ']')}"] if made else []
    return f" ({' '.join(parts)})" if parts else ""


def _what_the_runtime_says() -> Optional[str]:
    """The name of the error that the CUDA runtime keeps; a library's own status does not tell why it failed."""
    try:
        runtime = ctypes.CDLL(str(Path(os.environ["nvcc_path"]).parent.parent / "lib64" / "libcudart.so"))
        runtime.cudaGetErrorName.restype = ctypes.c_char_p
        return runtime.cudaGetErrorName(runtime.cudaPeekAtLastError()).decode()
    except (KeyError, OSError, AttributeError):
        return None


def _let_go() -> None:
    """Have Jittor leave the GPU alone from now on: freeing its memory would fail, and be reported once more."""
    if "jittor" in sys.modules:
        sys.modules["jittor"].jt_init_subprocess()  # what it calls in a process that has lost its parent's GPU by a fork


def _variable(kind, symbol: str):
    """A variable of Jittor's core that Python cannot reach otherwise; None where it is not found."""
    try:
        return kind.in_dll(ctypes.CDLL(sys.modules["jittor"].core.__file__), symbol)
    except (OSError, ValueError, AttributeError):
        return None


def keep_errors_short() -> None:
    """Keep Jittor from writing to standard error what it raises too, or what hides it.

    Where an operator fails and more than 0.95 of the GPU's memory is in use, it prints a table of its memory and raises
    that instead of the operator's failure. What it believes to be all of the memory is doubled; the other use of that
    number, the share of it that cuDNN's workspaces may take, is halved. And it prints the first error of a call whose
    failure it lets pass, such as the freeing of memory: the next call that matters raises it.
    """
    import jittor as jt

    known = _variable(ctypes.c_int64 * 2, "_ZN6jittor8mem_infoE")  # bytes of the host, of the GPU
    if known is not None and 0 < known[1] < 2**50:
        known[1] *= 2
        jt.cudnn.set_max_workspace_ratio(0.125)
    reported = _variable(ctypes.c_bool, "_ZN6jittor11peek_loggedE")
    if reported is not None:
        reported.value = True
