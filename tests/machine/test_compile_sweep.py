"""Jittor imported with CUDA 13 and cuDNN 9 on a pretend GPU, and every CUDA kernel of the network compiled for sm_90.

Takes 15 to 40 minutes, so it runs when asked for: `JRDP_SWEEP=/folder` names a folder for its cache and logs. It needs an nvcc
of CUDA 13 and the libraries of the cuda13 extra, which may lie in another environment: `JRDP_CUDA_SITE=/path/to/site-packages`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jrdp.machine.nvcc import Nvcc, Places, find_compilers, folders_for
from jrdp.machine.view import Options, make_view

ROOT = Path(__file__).resolve().parent.parent.parent
PRETEND = Path(__file__).resolve().parent / "pretend_gpu"
LIBRARIES = ("cudart", "cublas", "cublasLt", "cudnn", "cudnn_ops", "cudnn_cnn", "curand", "cufft", "cusparse")
OUR_SYMBOLS = re.compile(r"(cu|cublas|cudnn|curand|cufft|cusparse|__cuda)\w*$")


@pytest.fixture(scope="module")
def nvcc_and_view(tmp_path_factory):
    """A real nvcc of CUDA 13 and a complete view of it with the real libraries."""
    here = Places.of_this_machine()
    sites = (*here.sites, *(Path(site) for site in [os.environ.get("JRDP_CUDA_SITE")] if site))
    places = Places(here.environ, sites, here.system)
    compilers = [nvcc for nvcc in find_compilers(places) if nvcc.version[0] == 13]
    if not compilers:
        pytest.skip("needs an nvcc of CUDA 13")
    nvcc = compilers[0]
    view = make_view(tmp_path_factory.mktemp("real"), nvcc, folders_for(nvcc, places), Options())
    if view.missing:
        pytest.skip(f"needs the libraries of the cuda13 extra (JRDP_CUDA_SITE), lacks {', '.join(view.missing)}")
    return nvcc, view


@pytest.fixture(scope="module")
def pretend(nvcc_and_view, tmp_path_factory) -> Path:
    """A toolkit with the real compiler and headers, and libraries that do nothing."""
    nvcc, view = nvcc_and_view
    folder = Path(os.environ["JRDP_SWEEP"]) if os.environ.get("JRDP_SWEEP") else tmp_path_factory.mktemp("pretend")
    top = folder.resolve() / "toolkit"
    if not (top / "lib" / "libcusparse.so").exists():
        _build(top, nvcc, view.folder)
    return top


def _build(top: Path, nvcc: Nvcc, real: Path) -> None:
    for name in ("bin", "include", "lib", "driver"):
        (top / name).mkdir(parents=True, exist_ok=True)
    wrapper = top / "bin" / "nvcc"
    wrapper.write_text(
        f"#!/bin/sh\nif [ \"$1\" = --dryrun ]; then echo '#$ TOP={top}' >&2; exit 0; fi\nexec {nvcc.path} \"$@\"\n"
    )
    wrapper.chmod(0o755)
    shims = {"npp.h", "cub", "cudnn.h", "cudnn_real"}
    for header in [*(real / "include").iterdir(), *(real / "include" / "cudnn_real").iterdir()]:
        link = top / "include" / header.name
        if not link.exists() and (header.name not in shims or header.parent.name == "cudnn_real"):
            link.symlink_to(header.resolve())
    _run("gcc", "-O1", "-fPIC", "-w", f"-I{top / 'include'}", "-c", PRETEND / "runtime.c", "-o", top / "runtime.o")
    written = _symbols(top / "runtime.o")
    exported = {name for library in LIBRARIES for name in _symbols(real / "lib64" / f"lib{library}.so", "-D")}
    rest = sorted(name for name in exported - written if OUR_SYMBOLS.match(name))
    (top / "rest.c").write_text("".join(f"long {name}() {{ return 0; }}\n" for name in rest))
    _run("gcc", "-O1", "-fPIC", "-w", "-fno-builtin", "-shared", top / "rest.c", top / "runtime.o", "-o", top / "lib" / "all.so")
    for library in (*LIBRARIES, "nvJitLink"):
        (top / "lib" / f"lib{library}.so").symlink_to("all.so")
    (top / "lib" / "libcudadevrt.a").symlink_to((real / "lib64" / "libcudadevrt.a").resolve())
    _run("gcc", "-shared", "-fPIC", PRETEND / "driver.c", "-o", top / "driver" / "libcuda.so.1")
    (top / "driver" / "libcuda.so").symlink_to("libcuda.so.1")


def _run(*command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _symbols(library: Path, *flags: str) -> set[str]:
    lines = (line.split() for line in _run("nm", *flags, "--defined-only", library).splitlines())
    return {parts[2].split("@")[0] for parts in lines if len(parts) == 3 and parts[1] in "TWi"}


def _environment(pretend: Path) -> dict:
    ours = ("nvcc_path", "cc_flags", "cache_name", "JRDP_PREPARED", "JITTOR_HOME", "CUDA_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept.update(HOME=str(pretend.parent), CUDA_HOME=str(pretend), LD_LIBRARY_PATH=str(pretend / "driver"), PYTHONPATH=str(ROOT))
    return kept


def test_the_pretend_gpu_is_chosen(pretend):
    code = "from jrdp import runtime; cuda = runtime.prepare().cuda; print(cuda.usable, cuda.reason, *cuda.notes, sep='\\n')"
    told = subprocess.run([sys.executable, "-c", code], env=_environment(pretend), capture_output=True, text=True).stdout
    assert told.startswith("True\nCUDA 13."), told


@pytest.mark.skipif(not os.environ.get("JRDP_SWEEP"), reason="takes 15 to 40 minutes: JRDP_SWEEP=/folder runs it")
def test_every_kernel_compiles(pretend):
    with open(pretend.parent / "sweep.log", "w") as log:
        code = subprocess.run([sys.executable, str(PRETEND / "sweep.py")], env=_environment(pretend), stdout=log, stderr=log)
    told = (pretend.parent / "sweep.log").read_text()
    assert code.returncode == 0 and "FAILED" not in told, told[-3000:]
