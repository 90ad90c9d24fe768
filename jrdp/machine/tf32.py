"""TF32 on NVIDIA's cards: off unless it is asked for, chosen once in a process, when Jittor is imported."""

from __future__ import annotations

import json
import os

from jrdp.errors import UserError
from jrdp.machine.prepare import MEMORY, prepare, remember

# NVIDIA's own switch. Its libraries read it when they are loaded; 0 keeps cuBLAS, cuDNN and the others off TF32, and
# without it cuDNN uses TF32 for float32 convolutions on the cards that have it. (Jittor's flag use_tensorcore is no
# substitute: it lets cuDNN round float32 to float16.)
_TF32 = "NVIDIA_TF32_OVERRIDE"

_asked = False  # by start(), before it imports Jittor


def ask(wanted: bool) -> None:
    """Note, before Jittor is imported, whether TF32 is wanted."""
    global _asked
    _asked = wanted


def settle() -> None:
    """Let float32 mean float32 on the GPU, unless TF32 was asked for or the user has set NVIDIA's variable."""
    if not _asked and prepare().cuda.usable and _TF32 not in os.environ:
        remember({_TF32: "0"})


def _is_the_users() -> bool:
    return _TF32 in os.environ and _TF32 not in json.loads(os.environ.get(MEMORY, "{}"))


def check(wanted: bool, device: str) -> None:
    if device == "cpu":
        if wanted:
            raise UserError(
                "train.tf32 and test.tf32 need a GPU: this run is on the CPU; leave them out or set them to false"
            )
        return
    if not _is_the_users() and wanted != _allowed():
        raise UserError(
            f"TF32 cannot be switched {_on(wanted)} any more: Jittor has been imported with TF32 {_on(not wanted)} in "
            f"this process; start a new one, in which jrdp is imported before jittor, or set {_TF32} yourself"
        )


def describe_tf32() -> str:
    """What holds for float32 products on the GPU in this process, and who said so."""
    state = f"float32 convolutions with TF32 {_on(_allowed())}"
    if _is_the_users():
        return f"{state}: the environment has {_TF32}={os.environ[_TF32]}"
    return state if _allowed() else f"{state}; train.tf32 and test.tf32 switch it on"


def _allowed() -> bool:
    """Nothing here changes the variable after Jittor's import, so it also tells what Jittor was imported with."""
    return os.environ.get(_TF32) != "0"


def _on(value: bool) -> str:
    return "on" if value else "off"
