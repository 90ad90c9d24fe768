"""Choosing a CUDA toolkit, on pretend machines laid out on disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from jrdp.machine.cuda import choose_cuda
from jrdp.machine.driver import Driver
from jrdp.machine.nvcc import Places, find_compilers

HEADERS = ("cuda_runtime.h", "cublas_v2.h", "curand.h", "cufft.h", "cusparse.h")
LIBRARIES = {"cudart": 13, "cublas": 13, "cublasLt": 13, "curand": 10, "cufft": 12, "cusparse": 12}
H100 = Driver((13, 0), (90,))


class Machine:
    """A pretend file system below `folder`, with the environment and driver of a process on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.site = folder / "venv" / "site-packages"
        (self.site / "nvidia").mkdir(parents=True)
        self.environ = {"PATH": ""}
        self.gxx = self._program("bin/g++", "echo 12")

    def toolkit(self, root: str, version: str, libraries: bool = True) -> Path:
        """A toolkit with nvcc, and with CUDA's headers and libraries but no cuDNN."""
        top = self.folder / root
        self._program(
            f"{root}/bin/nvcc",
            f'case "$1" in --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;\n'
            f"--dryrun) echo '#$ TOP={top}/bin/..' >&2 ;;\n"
            'CRASH) exit 3 ;; *) printf "%s\\n" "$@" ;; esac',
        )
        if libraries:
            self.wheel(top)
        return top

    def wheel(self, folder: Path) -> None:
        """CUDA's headers and versioned libraries, as pip wheels have them."""
        for name in HEADERS:
            _write(folder / "include" / name)
        for name, number in LIBRARIES.items():
            _write(folder / "lib" / f"lib{name}.so.{number}")

    def cudnn(self, folder: Path, major: int = 9) -> None:
        _write(folder / "include" / "cudnn.h", f"#define CUDNN_MAJOR {major}\n")
        parts = ("cudnn", "cudnn_ops", "cudnn_cnn") if major >= 9 else (
            "cudnn", "cudnn_ops_infer", "cudnn_ops_train", "cudnn_cnn_infer", "cudnn_cnn_train"
        )
        for part in parts:
            _write(folder / "lib" / f"lib{part}.so.{major}", f"{part} {major}")

    def choose(self, driver: Driver = H100):
        return choose_cuda(str(self.gxx), self.places(), driver)

    def places(self) -> Places:
        return Places(self.environ, (self.site,), self.folder)

    def _program(self, path: str, body: str) -> Path:
        file = self.folder / path
        _write(file, f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
        return file


def _write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "home"))
    return Machine(tmp_path / "machine")


def _view(choice) -> Path:
    return Path(choice.environment["nvcc_path"]).parent.parent


def test_the_cards_are_counted(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "13.0"))
    assert machine.choose(Driver((13, 0), (90, 80))).cards == 2 and machine.choose().cards == 1
    assert machine.choose(Driver((0, 0), (), "no NVIDIA driver is installed")).cards == 0


def test_no_driver_is_cpu_although_a_toolkit_is_there(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "13.0"))
    choice = machine.choose(Driver((0, 0), (), "no NVIDIA driver is installed"))
    assert not choice.usable and "no NVIDIA driver" in choice.reason and choice.fix
    assert choice.environment == {"nvcc_path": ""}


def test_an_empty_nvcc_path_switches_cuda_off(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "13.0"))
    machine.environ["nvcc_path"] = ""
    choice = machine.choose()
    assert not choice.usable and "nvcc_path" in choice.reason and choice.fix == "unset nvcc_path"


def test_no_compiler(machine):
    choice = machine.choose(Driver((12, 8), (89,)))
    assert not choice.usable and "no nvcc" in choice.reason and "12.8" in choice.reason and "jrdp[cuda13]" in choice.fix


def test_a_system_toolkit_with_cudnn(machine):
    top = machine.toolkit("usr/local/cuda-12.4", "12.4")
    machine.cudnn(top, 8)
    choice = machine.choose()
    view = _view(choice)
    assert choice.usable and "12.4" in choice.reason and "cc_flags" not in choice.environment
    assert (view / "lib64" / "libcublas.so").resolve() == (top / "lib" / "libcublas.so.13").resolve()
    assert (view / "lib64" / "libcudnn_ops_infer.so").resolve().read_text() == "cudnn_ops_infer 8"
    assert (view / "include" / "cudnn_real" / "cudnn.h").read_text() == "#define CUDNN_MAJOR 8\n"
    assert not (view / "include" / "cub").exists()


def test_cudnn9_gets_the_names_of_cudnn8(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "12.4"), 9)
    view = _view(machine.choose())
    for old, new in (("ops_infer", "ops"), ("ops_train", "ops"), ("cnn_infer", "cnn"), ("cnn_train", "cnn")):
        assert (view / "lib64" / f"libcudnn_{old}.so").read_text() == f"cudnn_{new} 9"


def test_cuda13_from_pip_alone(machine):
    wheels = machine.toolkit("venv/site-packages/nvidia/cu13", "13.0")
    machine.cudnn(machine.site / "nvidia" / "cudnn")
    _write(machine.site / "nvidia_cudnn_cu13-9.1.dist-info" / "METADATA")
    choice = machine.choose()
    assert choice.usable and "pip" in choice.reason
    assert "-DcomputeMode=integrated" in choice.environment["cc_flags"]
    view = _view(choice)
    assert (view / "lib64" / "libcudart.so").resolve() == (wheels / "lib" / "libcudart.so.13").resolve()
    assert "cub.cuh" in os.listdir(view / "include" / "cub")


def test_cuda13_keeps_the_flags_of_the_user(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "13.0"))
    machine.environ["cc_flags"] = "-O1"
    assert machine.choose().environment["cc_flags"].startswith("-O1 -D")


def test_cuda12_wheels_without_nvcc_are_no_toolkit(machine):
    machine.wheel(machine.site / "nvidia" / "cuda_runtime")
    machine.cudnn(machine.site / "nvidia" / "cudnn")
    choice = machine.choose()
    assert not choice.usable and "no nvcc" in choice.reason


def test_wheels_of_another_major_version_are_not_mixed_in(machine):
    machine.toolkit("usr/local/cuda", "12.4", libraries=True)
    machine.cudnn(machine.site / "nvidia" / "cudnn")
    _write(machine.site / "nvidia_cudnn_cu13-9.1.dist-info" / "METADATA")
    choice = machine.choose()
    assert not choice.usable and "cuDNN is missing" in choice.reason and "nvidia-cudnn-cu12" in choice.fix
    _write(machine.site / "nvidia_cudnn_cu12-9.1.dist-info" / "METADATA")
    assert machine.choose().usable


def test_cudnn_missing_then_named_by_the_environment(machine):
    machine.toolkit("usr/local/cuda", "12.4")
    choice = machine.choose()
    assert not choice.usable and "cuDNN is missing" in choice.reason and "nvidia-cudnn-cu12" in choice.fix
    machine.cudnn(machine.folder / "opt" / "cudnn")
    machine.environ["CUDNN_HOME"] = str(machine.folder / "opt" / "cudnn")
    assert machine.choose().usable


def test_cudnn_of_the_distribution(machine):
    machine.toolkit("usr/local/cuda", "12.4")
    _write(machine.folder / "usr/include/x86_64-linux-gnu/cudnn.h")
    _write(machine.folder / "usr/include/stdio.h")
    for part in ("cudnn", "cudnn_ops", "cudnn_cnn"):
        _write(machine.folder / f"usr/lib/x86_64-linux-gnu/lib{part}.so.9")
    _write(machine.folder / "usr/lib/x86_64-linux-gnu/libc.so.6")
    choice = machine.choose()
    view = _view(choice)
    assert choice.usable and (view / "lib64" / "libcudnn.so").exists()
    assert not (view / "include" / "stdio.h").exists() and not (view / "lib64" / "libc.so.6").exists()


def test_incomplete_toolkit_names_what_is_missing(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "13.0", libraries=False))
    choice = machine.choose()
    assert not choice.usable and "libcublas.so" in choice.reason and "cuda_runtime.h" in choice.reason
    assert "jrdp[cuda13]" in choice.fix


def test_driver_too_old(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "13.0"))
    choice = machine.choose(Driver((12, 4), (80,)))
    assert not choice.usable and "driver is too old" in choice.reason and "12.4" in choice.reason and "580" in choice.fix


def test_an_older_toolkit_serves_an_older_driver(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "13.0"))
    machine.cudnn(machine.toolkit("usr/local/cuda-12.4", "12.4"))
    choice = machine.choose(Driver((12, 8), (80,)))
    assert choice.usable and "CUDA 12.4" in choice.reason
    assert len(choice.notes) == 1 and "CUDA 13.0" in choice.notes[0] and "too old" in choice.notes[0]


def test_several_toolkits_the_most_explicit_wins(machine):
    for root, version in (("usr/local/cuda-12.4", "12.4"), ("usr/local/cuda-12.10", "12.10"), ("opt/mine", "12.6")):
        machine.cudnn(machine.toolkit(root, version))
    machine.environ["CUDA_HOME"] = str(machine.folder / "opt/mine")
    choice = machine.choose()
    assert "CUDA 12.6" in choice.reason and [note.split(" (")[0] for note in choice.notes] == ["CUDA 12.10", "CUDA 12.4"]
    assert all("not needed" in note for note in choice.notes)
    machine.environ["nvcc_path"] = str(machine.folder / "usr/local/cuda-12.4/bin/nvcc")
    assert "CUDA 12.4" in machine.choose().reason


def test_a_toolkit_found_twice_is_listed_once_and_wrappers_are_seen_through(machine):
    top = machine.toolkit("usr/local/cuda-12.4", "12.4")
    (machine.folder / "usr/local/cuda").symlink_to(top)
    wrapper = machine._program("usr/bin/nvcc", f'exec {top}/bin/nvcc "$@"')
    machine.environ["PATH"] = str(wrapper.parent)
    assert [str(nvcc.path) for nvcc in find_compilers(machine.places())] == [str(top / "bin" / "nvcc")]


def test_what_is_no_compiler_is_passed_by(machine):
    machine._program("usr/local/cuda/bin/nvcc", "exit 1")
    _write(machine.folder / "opt/cuda/bin/nvcc", "not executable")
    assert find_compilers(machine.places()) == []


@pytest.mark.parametrize("version, driver, words", [("10.2", (12, 0), "only CUDA 11"), ("14.0", (14, 0), "only CUDA 11")])
def test_unknown_versions_are_refused(machine, version, driver, words):
    machine.cudnn(machine.toolkit("usr/local/cuda", version))
    choice = machine.choose(Driver(driver, (80,)))
    assert not choice.usable and words in choice.reason


def test_gxx_too_new_for_the_toolkit(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "12.4"))
    machine.gxx = machine._program("bin/g++", "echo 14")
    choice = machine.choose()
    assert not choice.usable and "g++ up to 13" in choice.reason and "cc_path=/usr/bin/g++-13" in choice.fix


def test_a_gpu_that_cuda13_no_longer_knows(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "13.0"))
    choice = machine.choose(Driver((13, 0), (70,)))
    assert not choice.usable and "7.0" in choice.reason and "CUDA 12" in choice.fix


def _arguments(choice, *arguments: str) -> list[str]:
    return subprocess.run([choice.environment["nvcc_path"], *arguments], capture_output=True, text=True).stdout.splitlines()


def test_the_script_in_place_of_nvcc(machine):
    machine.cudnn(machine.toolkit("usr/local/cuda", "13.0"))
    machine.cudnn(machine.toolkit("usr/local/cuda-12.4", "12.4"))
    _write(machine.folder / "usr/local/cuda/lib/libcudadevrt.a")
    given = ("-std=c++14", "--use_fast_math", "-code=sm_90", 'a "b" c.cu')
    modern = machine.choose()
    assert _arguments(modern, *given) == ["-std=c++17", "--use_fast_math", "-code=sm_90", 'a "b" c.cu']
    blackwell = machine.choose(Driver((13, 0), (120,)))
    assert "-code=sm_90,compute_90" in _arguments(blackwell, *given)
    older = machine.choose(Driver((12, 4), (80,)))
    assert _arguments(older, *given) == ["--cudadevrt=none", *given]
    machine.environ["JRDP_PRECISE"] = "1"
    precise = machine.choose()
    assert "--use_fast_math" not in _arguments(precise, *given)
    assert len({_view(choice) for choice in (modern, blackwell, older, precise)}) == 4
    assert subprocess.run([modern.environment["nvcc_path"], "CRASH"]).returncode == 3


def test_the_view_is_reused_and_moves_when_anything_in_it_changes(machine):
    top = machine.toolkit("usr/local/cuda", "12.4")
    machine.cudnn(top)
    first = _view(machine.choose())
    inode = os.stat(first).st_ino
    assert _view(machine.choose()) == first and os.stat(first).st_ino == inode
    _write(top / "include" / "cublas_v2.h", "// another release\n")
    assert _view(machine.choose()) != first
    assert [p.name for p in first.parent.iterdir() if p.name.startswith(".new-")] == []
