"""What the processor multiplies in bfloat16 with, as the oneDNN in use sees it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Optional

# Bits of `dnnl_cpu_isa_t` (oneDNN's dnnl_types.h): each set of instructions has those of the ones that it contains.
_AVX512_BF16, _AMX = 0xE7, 0x3E7


def bfloat16_instructions(onednn: Path) -> Optional[str]:
    """"AMX", "AVX512_BF16", or None where products of bfloat16 would be put together from others, slowly.

    onednn: the folder with `lib/libmkldnn.so`. ONEDNN_MAX_CPU_ISA, oneDNN's own variable, limits what it uses.
    """
    isa = ctypes.CDLL(str(onednn / "lib" / "libmkldnn.so")).dnnl_get_effective_cpu_isa()
    for name, bits in (("AMX", _AMX), ("AVX512_BF16", _AVX512_BF16)):
        if isa & bits == bits:
            return name
    return None
