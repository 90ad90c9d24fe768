"""Where Jittor keeps its cache, and the two ways in which this package puts something there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Callable


# Jittor puts paths of its cache into shell commands without quotes, and looks for an option of nvcc in them (`short`).
_UNQUOTED = re.compile(r"""[\s"'$&();<>|*?`\\!#~\[\]{}]|-dc""")


def jittor_home() -> Path:
    """The folder that holds `.cache/jittor`: JITTOR_HOME (empty counts as unset), else what Jittor itself remembers in
    `~/.cache/jittor/config.json`, else the home folder.

    Where that path has a space, another character of the shell, or "-dc", it is a link without one to the same folder. Raises
    `OSError` when there can be no such link.
    """
    return _plain(chosen_home())


def chosen_home() -> Path:
    """`jittor_home()` as the user named it."""
    if os.environ.get("JITTOR_HOME"):
        return Path(os.environ["JITTOR_HOME"]).absolute()
    try:
        remembered = json.loads((Path.home() / ".cache" / "jittor" / "config.json").read_text())["JITTOR_HOME"]
        if remembered:
            return Path(remembered).absolute()
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Path.home()


def home_for_import(home: Path) -> Path:
    """A folder to be `HOME` while Jittor is imported: its `config.json` says `home` already, so Jittor, which keeps what
    JITTOR_HOME was there and uses it for ever after, has nothing to write."""
    folder = own_folder() / "home"
    replace_file(folder / ".cache" / "jittor" / "config.json", json.dumps({"JITTOR_HOME": str(home)}))
    return folder


def _plain(home: Path) -> Path:
    if not _UNQUOTED.search(str(home)):
        return home
    folder = Path(f"/tmp/jrdp-{os.getuid()}")  # always the same, so that what is compiled is found again
    folder.mkdir(mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"its path has a space or -dc, and {folder}, where a link without belongs, is not ours alone")
    home.mkdir(parents=True, exist_ok=True)
    link = folder / fingerprint(home)
    try:
        link.symlink_to(home)
    except FileExistsError:
        if os.readlink(link) != str(home):
            raise OSError(f"its path has a space or -dc, and {link} leads elsewhere") from None
    return link


def cache_root() -> Path:
    return jittor_home() / ".cache" / "jittor"


def own_folder() -> Path:
    """Everything that jrdp itself puts beside Jittor's cache lies in here, and can be deleted at any time."""
    return cache_root() / "jrdp"


def loaded_kernels() -> set[str]:
    """The kernels that this process has loaded, files of Jittor's cache. Raises `OSError` where the system does not tell."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return {line.split(maxsplit=5)[-1] for line in lines if "/jit/" in line and line.endswith(".so")}


def fingerprint(*parts: object) -> str:
    """Eight letters and digits, for the name of a file, that change when any of `parts` does."""
    return short(hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest())


def short(digest: str) -> str:
    """The first eight of hexadecimal digits, where a first "dc" reads "xc".

    Wherever "-dc" stands in a command for nvcc, also in a path, Jittor takes it for the option and links another way, which
    writes no library.
    """
    return "x" + digest[1:8] if digest.startswith("dc") else digest[:8]


def build_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """`target`, filled by `fill(folder)` when it does not exist yet.

    It appears complete or not at all: it is filled under another name and renamed. When two processes do this at once,
    the first rename stands and the second copy is thrown away.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        os.chmod(work, 0o755)
        fill(work)
        try:
            os.rename(work, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def replace_file(target: Path, text: str, executable: bool = False) -> None:
    """Give `target` this text in one step; leaves it alone when it has it already."""
    try:
        if target.read_text() == text and os.access(target, os.X_OK) >= executable:
            return
    except OSError:
        pass
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".new-", dir=target.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(name, 0o755 if executable else 0o644)
    os.replace(name, target)


def replace_link(link: Path, destination: Path) -> None:
    """Point the symbolic link `link` at `destination` in one step, whatever it pointed at before."""
    link.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=link.parent))
    try:
        os.symlink(destination, work / "link")
        os.replace(work / "link", link)
    finally:
        shutil.rmtree(work, ignore_errors=True)
