"""Whether this device multiplies in bfloat16, for `train.precision` and `test.precision`."""

from __future__ import annotations

import jittor as jt

from jrdp.errors import UserError
from jrdp.fast.operators import onednn_home
from jrdp.machine.processor import bfloat16_instructions


def refuse_unfit_precision(key: str, precision: str) -> None:
    """Raise `UserError` where `precision`, the value of the configuration's `key`, cannot be had on the device in use."""
    reason = bfloat16_obstacle() if precision == "bfloat16" else None
    if reason is not None:
        raise UserError(f"{key}=bfloat16 cannot be used here ({reason}); use --set {key}=float32")


def bfloat16_obstacle() -> str | None:
    """Why the device in use has no products of bfloat16; None where it has."""
    if jt.flags.use_cuda:
        return "it is for a CPU, and this run is on a GPU"
    home = onednn_home()
    if home is None:
        return "oneDNN is not installed"
    return None if bfloat16_instructions(home) else "this processor has neither AMX nor AVX512_BF16"
