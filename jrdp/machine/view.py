"""A CUDA toolkit as Jittor 1.3.11 expects one: `bin/nvcc`, `include/` and `lib64/` in one folder, made of links.

Jittor takes headers and libraries from the folders beside nvcc, wants unversioned library names, and is written against
CUDA 12.2 and cuDNN 8. The view gathers what may be spread over a toolkit and pip wheels, adds three small headers (see
`include/`) and the library names that cuDNN 9 dropped, and puts a script in nvcc's place that mends four compile flags.
Neither the toolkit nor Jittor is changed.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from jrdp.machine.cache import build_folder, fingerprint
from jrdp.machine.nvcc import Folders, Nvcc

SHIMS = Path(__file__).parent / "include"

# CUDA 13 removed two members of cudaDeviceProp that a header of Jittor reads in functions which nobody calls.
CUDA13_FLAGS = "-DcomputeMode=integrated -DclockRate=multiProcessorCount"

HEADERS = ("cuda_runtime.h", "cublas_v2.h", "cudnn.h", "curand.h", "cufft.h", "cusparse.h")
LIBRARIES = ("cudart", "cublas", "cublasLt", "cudnn", "curand", "cufft", "cusparse")

# cuDNN 9 merged pairs of libraries that Jittor still loads by their old names.
CUDNN_NAMES = {"cudnn_ops": ("cudnn_ops_infer", "cudnn_ops_train"), "cudnn_cnn": ("cudnn_cnn_infer", "cudnn_cnn_train")}

_CUDA_LIBRARY = re.compile(r"lib(cu|nv|npp)\w*\.(so|a)(\.|$)")


@dataclass(frozen=True)
class View:
    folder: Path
    missing: tuple[str, ...]  # headers and libraries that no folder had

    @property
    def nvcc(self) -> Path:
        return self.folder / "bin" / "nvcc"


@dataclass(frozen=True)
class Options:
    """What the nvcc script must do beside calling nvcc."""

    ptx: bool = False  # also embed PTX, for GPUs newer than those Jittor compiles for
    precise: bool = False  # drop --use_fast_math, for comparisons at CPU tolerances


def make_view(parent: Path, nvcc: Nvcc, folders: Folders, options: Options) -> View:
    """The view of `nvcc` with `folders` below `parent`.

    Its name carries a digest of everything it is made of, the three headers and this module included: Jittor does not
    notice when a header changes that it includes as <header>, so a changed view must have another path.
    """
    links = _header_links(folders), _library_links(folders)
    made_of = [nvcc, options, Path(__file__).read_bytes(), *(p.read_bytes() for p in sorted(SHIMS.rglob("*.*")))]
    made_of += [f"{name} {target} {_stamp(target)}" for group in links for name, target in sorted(group.items())]
    major, minor = nvcc.version
    folder = parent / f"cuda{major}.{minor}-{fingerprint(*made_of)}"
    build_folder(folder, lambda new: _fill(new, nvcc, options, *links))
    return View(folder, _missing(folder, folders))


def _stamp(path: Path) -> str:
    status = os.stat(path)
    return f"{status.st_size}.{status.st_mtime_ns}"


def _header_links(folders: Folders) -> dict[str, Path]:
    """Name in the view -> file or folder; the first folder that has a name wins."""
    links: dict[str, Path] = {}
    for folder in folders.headers:
        for entry in sorted(folder.iterdir()):
            links.setdefault(entry.name, entry)
    for folder in folders.headers:  # CUDA 13 may keep <nv/target> here, where only nvcc and not g++ looks
        if (folder / "cccl" / "nv").is_dir():
            links.setdefault("nv", folder / "cccl" / "nv")
    for folder in folders.system_headers:
        for entry in sorted(folder.glob("cudnn*.h")):
            links.setdefault(entry.name, entry)
    return links


def _library_links(folders: Folders) -> dict[str, Path]:
    """Every library under its own name, and as `libX.so` too."""
    links: dict[str, Path] = {}
    own = [p for folder in folders.libraries for p in sorted(folder.iterdir())]
    system = [p for folder in folders.system_libraries for p in sorted(folder.glob("lib*"))]
    for path in own + [p for p in system if _CUDA_LIBRARY.match(p.name)]:
        match = re.match(r"(lib[\w-]+\.so)(\.|$)", path.name)
        if not path.is_file() or not (match or path.suffix == ".a"):
            continue
        links.setdefault(path.name, path)
        if match:
            links.setdefault(match.group(1), path)
    for new, old_names in CUDNN_NAMES.items():
        merged = links.get(f"lib{new}.so")
        for old in old_names if merged else ():
            links.setdefault(f"lib{old}.so", merged)
    return links


def _fill(view: Path, nvcc: Nvcc, options: Options, headers: dict[str, Path], libraries: dict[str, Path]) -> None:
    include, lib64 = view / "include", view / "lib64"
    for folder in (include, lib64, view / "bin"):
        folder.mkdir()
    for name, target in libraries.items():
        os.symlink(target, lib64 / name)
    cudnn = headers.get("cudnn.h")
    (include / "npp.h").write_bytes((SHIMS / "npp.h").read_bytes())
    if cudnn is not None:
        os.symlink(cudnn.parent, include / "cudnn_real")
        (include / "cudnn.h").write_bytes((SHIMS / "cudnn.h").read_bytes())
    if nvcc.version[0] >= 13:
        # The only file in this `cub`: nvcc finds all others, and this one's #include_next, in its own folders.
        (include / "cub").mkdir()
        (include / "cub" / "cub.cuh").write_bytes((SHIMS / "cub" / "cub.cuh").read_bytes())
    for name, target in headers.items():
        if not (include / name).exists():
            os.symlink(target, include / name)
    script = view / "bin" / "nvcc"
    script.write_text(_script(nvcc, libraries, options))
    script.chmod(0o755)


def _script(nvcc: Nvcc, libraries: dict[str, Path], options: Options) -> str:
    """A stand-in for nvcc: Jittor always passes -std=c++14, --use_fast_math and at most sm_90 without PTX."""
    cases = []
    if nvcc.version[0] >= 13:
        cases.append("-std=c++14) argument=-std=c++17 ;;  # the C++ library of CUDA 13 needs it")
    if options.precise:
        cases.append("--use_fast_math) continue ;;")
    if options.ptx:
        cases.append('-code=sm_*) argument="$argument,compute_${argument#-code=sm_}" ;;')
    flags = "" if "libcudadevrt.a" in libraries else " --cudadevrt=none"  # the CUDA 12 wheels lack that file
    body = "\n".join(f"    {case}" for case in cases)
    switch = f'  case "$argument" in\n{body}\n  esac\n' if cases else ""
    return (
        "#!/bin/bash\n"
        "arguments=()\n"
        'for argument in "$@"; do\n'
        f"{switch}"
        '  arguments+=("$argument")\n'
        "done\n"
        f'exec {shlex.quote(str(nvcc.path))}{flags} "${{arguments[@]}}"\n'
    )


def _missing(view: Path, folders: Folders) -> tuple[str, ...]:
    wanted = [(name, [view / "include", *folders.system_headers]) for name in HEADERS]
    wanted += [(f"lib{name}.so", [view / "lib64"]) for name in LIBRARIES]
    return tuple(name for name, places in wanted if not any((place / name).exists() for place in places))
