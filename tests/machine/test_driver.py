"""Asking the driver, against small libraries that answer like one."""

from __future__ import annotations

import subprocess

import pytest

from jrdp.machine.driver import read_driver

SOURCE = """
extern "C" {
int cuInit(unsigned) { return INIT; }
int cuDriverGetVersion(int* v) { *v = 12080; return 0; }
int cuDeviceGetCount(int* n) { *n = COUNT; return 0; }
int cuDeviceGet(int* d, int i) { *d = i; return 0; }
int cuDeviceGetAttribute(int* v, int a, int d) { *v = a == 75 ? 8 + d : (a == 76 ? 9 * (1 - d) : -1); return 0; }
}
"""


@pytest.fixture
def library(tmp_path):
    def build(init: int, count: int) -> str:
        source = tmp_path / "driver.cc"
        source.write_text(SOURCE)
        target = tmp_path / f"libcuda-{init}-{count}.so"
        flags = ["-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}"]
        subprocess.run(["g++", *flags, str(source), "-o", str(target)], check=True)
        return str(target)

    return build


def test_two_gpus(library):
    driver = read_driver(library(0, 2))
    assert driver.usable and driver.version == (12, 8) and driver.capabilities == (89, 90)


def test_no_gpu_visible(library):
    driver = read_driver(library(0, 0))
    assert not driver.usable and "CUDA_VISIBLE_DEVICES" in driver.problem and driver.version == (12, 8)


@pytest.mark.parametrize("code, word", [(100, "no GPU"), (803, "reboot"), (4321, "4321")])
def test_errors_are_named(library, code, word):
    driver = read_driver(library(code, 1))
    assert not driver.usable and word in driver.problem


def test_no_library():
    driver = read_driver("libcuda-that-is-not-there.so.1")
    assert not driver.usable and driver.version == (0, 0)
