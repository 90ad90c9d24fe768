"""Loading kernels leaves arithmetic as it was: numbers below 1.2e-38 are not taken for zero, by any thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jrdp.machine import subnormals

ROOT = Path(__file__).resolve().parents[2]

# As g++ 11 and 12 have it, shortened; and as g++ 13 has it, where a shared library goes without anyway.
OLD = "*endfile:\n%{!mandroid:%{Ofast|ffast-math:crtfastmath.o%s}    %{mpc32:crtprec32.o%s} crtendS.o%s;:%{Ofast|ffast-math:crtfastmath.o%s}}\n\n*link:\n%{Ofast:x}\n"
OTHER = "*endfile:\n%{shared:;Ofast:crtfastmath.o%s} crtendS.o%s\n\n"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes a pretended compiler of these specs, which links what it is told."""
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "home"))

    def make(specs: str, links: str, code: int = 0) -> str:
        (tmp_path / "specs").write_text(specs)
        script = tmp_path / "g++"
        script.write_text(
            f'#!/bin/sh\ncase "$*" in -dumpspecs) cat {tmp_path}/specs; exit {code};; *) echo "collect2 crtbeginS.o {links} crtn.o" >&2;; esac\n'
        )
        script.chmod(0o755)
        return str(script)

    return make


def test_the_object_is_taken_out_of_the_specs(compiler):
    flag = subnormals.flags(compiler(OLD, "crtfastmath.o"))
    name, file = flag.split("=")
    assert name == "-specs"
    assert Path(file).read_text() == "*endfile:\n%{!mandroid:    %{mpc32:crtprec32.o%s} crtendS.o%s;:}\n\n"


@pytest.mark.parametrize(
    "specs, links, code",
    [
        (OLD, "crtend.o", 0),  # it does not link it
        (OTHER, "crtfastmath.o", 0),  # specs of a form that is not known are left alone
        ("", "crtfastmath.o", 0),
        ("clang: error: unsupported option '-dumpspecs'", "crtfastmath.o", 1),
    ],
)
def test_other_compilers_get_no_flag(compiler, specs, links, code):
    assert subnormals.flags(compiler(specs, links, code)) == ""


def test_without_a_compiler():
    assert subnormals.flags("") == subnormals.flags("/nowhere/g++") == ""


LOAD = """
import ctypes, sys
ctypes.CDLL(sys.argv[1])
print(5e-324 * 1.0 > 0 and float(sys.argv[2]) / 2 > 0)
"""


def test_a_library_that_is_linked_so_leaves_the_thread_alone(tmp_path):
    source = tmp_path / "f.cc"
    source.write_text('extern "C" float twice(float x) { return x + x; }\n')

    def loaded(*flags: str) -> str:
        library = tmp_path / f"f{len(flags)}.so"
        subprocess.run(["g++", "-Ofast", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library), *flags], check=True)
        return subprocess.run([sys.executable, "-c", LOAD, str(library), "1e-310"], capture_output=True, text=True, check=True).stdout

    flag = subnormals.flags("g++")
    assert loaded() == ("False\n" if flag else "True\n")  # with it: what would happen otherwise
    assert loaded(*filter(None, [flag])) == "True\n"


KERNELS = """
from jrdp.machine import runtime
runtime.start("cpu")
import jittor as jt, numpy as np
from jrdp.machine.cache import loaded_kernels
from jrdp.ops import group_norm
small = np.full(1 << 20, 1e-40, np.float32)
for times in range(2):
    half = (jt.array(small) * np.float32(0.5)).numpy()
    assert (half == np.float32(0.5e-40)).all(), (half == 0).mean()  # every thread's share
    x = jt.array(np.random.standard_normal((2, 8, 5, 5)).astype(np.float32))
    jt.grad(group_norm(x, jt.ones([8]), jt.zeros([8]), 4).sum(), x).sync()
    jt.nn.conv2d(x, jt.ones([4, 8, 3, 3])).sync()
assert len(loaded_kernels()) > 3
assert (small / 2 > 0).all() and np.finfo(np.float32).smallest_subnormal > 0  # and the host's
"""


def test_kernels_change_neither_the_hosts_arithmetic_nor_that_of_threads():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KERNELS], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
