"""oneDNN for Jittor's CPU convolutions, from the two wheels instead of Jittor's download.

Jittor looks for it in one place only, `.cache/jittor/mkl/dnnl_lnx_2.2.0_cpu_gomp`, and downloads it when that is not
there. The environment variables that should name another place do not work in Jittor 1.3.11. The name is Jittor's; what
lies there is the release that the wheels bring, copied: deleting the environment that they came from breaks no other.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Optional

from jrdp.machine.cache import build_folder, cache_root, fingerprint, own_folder, replace_link

LIBRARY_WHEEL = "onednn-cpu-gomp"
HEADER_WHEEL = "onednn-devel-cpu-gomp"


@dataclass(frozen=True)
class OneDnn:
    """`home` has `include/` and `lib/libmkldnn.so`; None when there is none, and then `problem` or `note` says why."""

    home: Optional[Path]
    version: str  # of the wheel; "downloaded by Jittor" for a folder that Jittor or a person put there
    note: str
    problem: str = ""  # what must be mended before Jittor can be imported

    @property
    def identity(self) -> str:
        """Changes when the compiled oneDNN operators of Jittor would no longer fit."""
        return self.version


def expected_home() -> Path:
    return cache_root() / "mkl" / "dnnl_lnx_2.2.0_cpu_gomp"


def prepare_onednn() -> OneDnn:
    """Put oneDNN where Jittor looks for it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        machine = f"{platform.system()} {platform.machine()}"
        return OneDnn(None, "", f"there is no oneDNN wheel for {machine}: CPU convolutions run without it, slowly")
    home = expected_home()
    if home.is_dir() and not home.is_symlink() and _is_foreign(home):
        return OneDnn(home, "downloaded by Jittor", f"a oneDNN of Jittor's own lies in {home}; it is used as it is")
    wheels = _wheels()
    if wheels is None:
        fix = f"pip install {LIBRARY_WHEEL}==2022.2.1 {HEADER_WHEEL}==2022.2.1"
        return OneDnn(None, "", "", f"oneDNN is not installed and Jittor cannot compile without it: {fix}")
    version, headers, libraries = wheels
    if _version_of(home) != version or not _is_copied(home):
        folder = own_folder() / f"onednn-copy-{version}"
        build_folder(folder, lambda new: _copy_all(new, headers, libraries))
        if home.is_dir() and not home.is_symlink():
            _move_away(home)
        replace_link(home, folder)
    return OneDnn(home, version, f"{version} from {Path(os.path.realpath(home / 'lib' / 'libmkldnn.so')).parent}")


def _is_foreign(home: Path) -> bool:
    """A real oneDNN folder, that is one whose library is a file and not a link into some virtual environment."""
    library = home / "lib" / "libmkldnn.so"
    return library.is_file() and not library.is_symlink()


def _is_copied(home: Path) -> bool:
    """Whether the library lies in our folder, and is no link into a virtual environment that may be deleted."""
    library = (home / "lib" / "libmkldnn.so").resolve()
    return library.is_file() and own_folder().resolve() in library.parents


def _version_of(home: Path) -> Optional[str]:
    try:
        return (home / "VERSION").read_text()
    except OSError:
        return None


def _wheels() -> Optional[tuple[str, list[Path], list[Path]]]:
    """(version with a digest of the contents, header files and folders, libraries), or None when one is missing."""
    try:
        files = list(metadata.files(LIBRARY_WHEEL) or []) + list(metadata.files(HEADER_WHEEL) or [])
        release = metadata.version(LIBRARY_WHEEL)
    except metadata.PackageNotFoundError:
        return None
    libraries, headers, contents = [], {}, []
    for file in files:
        is_library = file.name.startswith("libdnnl.so")
        parts = file.parts
        is_header = file.name.endswith((".h", ".hpp")) and "include" in parts
        if not is_library and not is_header:
            continue
        path = Path(os.path.normpath(file.locate()))
        contents.append(f"{file.name}:{file.hash.value if file.hash else file.size}")
        if is_library:
            libraries.append(path)
        else:
            include = Path(*path.parts[: len(path.parts) - (len(parts) - parts.index("include")) + 1])
            top = include / parts[parts.index("include") + 1]
            headers[top] = None
    complete = any(p.name == "libdnnl.so" for p in libraries) and any(p.name == "dnnl.hpp" for p in headers)
    if not complete or not all(p.exists() for p in [*libraries, *headers]):
        return None
    return f"{release}-{fingerprint(*sorted(contents))}", list(headers), libraries


def _copy_all(folder: Path, headers: list[Path], libraries: list[Path]) -> None:
    (folder / "include").mkdir()
    (folder / "lib").mkdir()
    for header in headers:
        copy = shutil.copytree if header.is_dir() else shutil.copyfile
        copy(header, folder / "include" / header.name)
    _copy_libraries(folder / "lib", libraries)
    (folder / "VERSION").write_text(_wheels()[0])


def _copy_libraries(folder: Path, libraries: list[Path]) -> None:
    """Files of equal contents (a wheel has no links) are copied once, 40 MB each, and linked under their other names."""
    copies: dict[str, str] = {}
    for library in sorted(libraries):
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        if digest in copies:
            os.symlink(copies[digest], folder / library.name)
        else:
            copies[digest] = library.name
            shutil.copyfile(library, folder / library.name)
    os.symlink("libdnnl.so", folder / "libmkldnn.so")


def _move_away(home: Path) -> None:
    """Remove a folder of (dangling or outdated) links that stands where the link must go."""
    grave = Path(tempfile.mkdtemp(prefix=".old-", dir=home.parent))
    try:
        os.rename(home, grave / "folder")
    except FileNotFoundError:
        pass  # another process was quicker
    shutil.rmtree(grave, ignore_errors=True)
