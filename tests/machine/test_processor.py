"""What the processor has for bfloat16, as oneDNN says it, against the kernel's list of its instructions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jrdp.machine import runtime
from jrdp.machine.processor import bfloat16_instructions

PROGRAM = """
import sys
from pathlib import Path
from jrdp.machine.processor import bfloat16_instructions
print(bfloat16_instructions(Path(sys.argv[1])))
"""
HOME = runtime.prepare().onednn.home


def under(limit):
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": limit}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HOME)], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_as_the_kernel_lists_them():
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    wanted = "AMX" if {"amx_bf16", "amx_int8"} <= flags else "AVX512_BF16" if "avx512_bf16" in flags else None
    assert bfloat16_instructions(HOME) == wanted


@pytest.mark.parametrize("limit", ["SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_less_than_bfloat16(limit):
    assert under(limit) == "None"


def test_bfloat16_without_amx():
    assert under("AVX512_CORE_BF16") == ("None" if bfloat16_instructions(HOME) is None else "AVX512_BF16")
