"""Files that are either whole or absent: written under another name in the same folder, then renamed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import sys
import tempfile
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, Tuple

from jrdp.errors import UserError

try:
    import fcntl
except ImportError:  # not on every system; there are no locks there
    fcntl = None


_made: list[Path] = []  # folders that this process has made, the outer ones first
# Files that must stay as they are: by device and inode the absolute paths that led there, with what the user called them.
_Inputs = Dict[Tuple[int, int], Dict[str, Path]]
_inputs: _Inputs = {}


def protect(*paths: str | Path) -> None:
    """Name input files: from now on nothing in this process (`atomic_write`) replaces one of them.

    A file is known by its device and number, so other names of it (links, another case, another path) are it as well.
    """
    for path in paths:
        for follow in (True, False):
            with suppress(OSError, ValueError):
                absolute = str(Path(path).absolute())  # with its "..", which may stand behind a link
                _inputs.setdefault(_identity(absolute, follow), {})[absolute] = Path(path)


def protected_there() -> Callable[[], None]:
    """A picklable function that protects this process's inputs in the process that calls it."""
    return partial(_inputs_there, {identity: dict(names) for identity, names in _inputs.items()})


def _inputs_there(inputs: _Inputs) -> None:
    for identity, names in inputs.items():
        _inputs.setdefault(identity, {}).update(names)


def protected(path: str | Path) -> Path | None:
    """The input file that writing to `path` would replace, if there is one."""
    for follow in (True, False):
        with suppress(OSError, ValueError):
            identity = _identity(path, follow)
            for absolute, given in list(_inputs.get(identity, {}).items()):
                if _leads_to(absolute, identity):
                    return given
                # An editor saves by renaming a new file over the old one, whose number then goes to any other file.
                _inputs[identity].pop(absolute, None)
    return None


def _leads_to(path: str, identity: tuple[int, int]) -> bool:
    for follow in (True, False):
        with suppress(OSError, ValueError):
            if _identity(path, follow) == identity:
                return True
    return False


def _identity(path: str | Path, follow: bool) -> tuple[int, int]:
    status = os.stat(path, follow_symlinks=follow)
    return status.st_dev, status.st_ino


def refuse_url(path: str | Path) -> None:
    """Raise `UserError` for the address of something on another machine, which a path would quietly misread."""
    address = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])", str(path))
    if address and not os.path.lexists(path):
        shown = f"{address[1]}://{str(path)[address.end():]}"
        raise UserError(f"{shown} is an address: jrdp reads and writes files of this machine only; download it first")


def refuse_special(path: str | Path) -> None:
    """Raise `UserError` where reading `path` would wait for ever or never end, or it is an address, not a path.

    That is a named pipe, a device or a socket. What the shell makes of `<(command)` stays readable, as does /dev/null.
    """
    refuse_url(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # the reader says why
    name = os.path.abspath(path)
    if name == os.devnull or name.startswith(("/dev/fd/", "/proc/self/fd/")) and stat.S_ISFIFO(mode):
        return
    kind = _special(mode)
    if kind:
        raise UserError(f"cannot read {path}: it is {kind}, not a file")


def _special(mode: int) -> str | None:
    kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
    return next((kind for test, kind in kinds if test(mode)), None)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` when the block ends well and leaves no trace when it raises.

    The folder of `path` is made where it is missing.

    Raises `UserError` when the folder cannot be made or written to, or `path` is a protected input. An error of
    the block that is not one of this file goes through as it is.
    """
    path = Path(path)
    refuse_inputs(path)
    temporary = None
    try:
        stream = None
        try:
            _make(path.parent)
        except OSError as error:
            raise UserError(f"cannot write {path}: {_why_no_folder(path.parent, error)}") from error
        try:
            stream, temporary = _open_temporary(path)
            with _Output(stream) as output:
                yield output
                output.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_umask())  # a temporary file is private; a result is as readable as any other
            os.replace(temporary, path)
            temporary = None
        except OSError as error:
            if stream is not None and not getattr(error, "of_output", False) and error.filename not in _names(
                temporary, path
            ):
                raise
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


class _Output(io.BufferedWriter):
    """Marks the errors that come from writing this file, which a block may raise among those of other files."""

    def __init__(self, stream: io.FileIO):
        super().__init__(_Marked(stream))


class _Marked(io.RawIOBase):
    def __init__(self, stream: io.FileIO):
        self._stream = stream

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def write(self, data) -> int:
        try:
            return self._stream.write(data)
        except OSError as error:
            error.of_output = True
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def truncate(self, size=None) -> int:
        return self._stream.truncate(size)

    def fileno(self) -> int:
        return self._stream.fileno()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._stream.close()


def refuse_inputs(path: str | Path) -> None:
    """Raise `UserError` when writing to `path` would replace a protected input, a folder, a device or a pipe."""
    refuse_url(path)
    if Path(path).is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    with suppress(OSError, ValueError):
        kind = _special(os.stat(path).st_mode)
        if kind:
            raise UserError(f"cannot write {path}: it is {kind}, not a file")
    taken = protected(path)
    if taken is not None:
        raise UserError(f"cannot write {path}: that would replace the input {taken}; write to another place")


def temporary_prefix(name: str) -> str:
    """What the temporary files of a file called `name` begin with; short enough for every file system."""
    return "." + os.fsdecode(os.fsencode(name)[:100]) + "."


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove what killed processes left of unfinished files called `names`; nobody else may be writing them."""
    for name in names:
        pattern = re.compile(re.escape(temporary_prefix(name)) + "[a-z0-9_]{8}")
        for path in folder.iterdir():
            if pattern.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                with suppress(OSError):
                    path.unlink()


def lock_folder(folder: Path) -> int:
    """A handle that holds a lock on `folder` until it is closed or the process ends; no file that could be left.

    Raises `BlockingIOError` when another process holds it. Where there are no locks, there is none.
    """
    handle = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        lock(handle)
    except BlockingIOError:
        os.close(handle)
        raise
    return handle


def lock(handle: int, wait: bool = False) -> None:
    """Hold the open file or folder alone, until `unlock`, or until it is closed here and in all that were forked meanwhile.

    Raises `BlockingIOError` when another process holds it, unless it is to `wait`. Where there are no locks, nothing is held.
    """
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks


def unlock(handle: int) -> None:
    """What `lock` held is free, also where processes that were forked meanwhile have it open."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)


def remove_leftover_folders(folder: Path, name: str, content: str) -> None:
    """Remove the temporary folders for `name` that killed processes left, with the file `content` in them or nothing."""
    pattern = re.compile(re.escape(temporary_prefix(name)) + "[a-z0-9_]{8}")
    for path in folder.iterdir():
        if not pattern.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(OSError):
            handle = lock_folder(path)  # held by a process that is alive and uses it
            try:
                if {inside.name for inside in path.iterdir()} <= {content}:
                    (path / content).unlink(missing_ok=True)
                    path.rmdir()
            finally:
                os.close(handle)


def _open_temporary(path: Path) -> tuple[io.FileIO, Path]:
    """A new private file beside `path`: `mkstemp` creates it exclusively and follows no link."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=temporary_prefix(path.name))
    return open(handle, "wb", buffering=0), Path(name)


def _names(*paths: Path | None) -> set[str]:
    return {str(path) for path in paths if path is not None}


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` in one step, creating its folder. Raises `UserError` where that is impossible."""
    with atomic_write(path) as stream:
        stream.write(data)


def write_text(path: str | Path, text: str) -> None:
    # A name from outside may hold half a character (a lone surrogate), which UTF-8 has no bytes for.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write `value` as JSON in one step; NaN and infinity are refused, since they are not JSON."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """`json.loads` for text from outside. Raises `ValueError` for all that is wrong with it, deep nesting included.

    Jittor raises Python's recursion limit so far that text of nothing but brackets would overflow the stack.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(min(limit, 2000))
    try:
        return json.loads(text, **hooks)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    finally:
        sys.setrecursionlimit(limit)


def read_json(path: str | Path, what: str) -> Any:
    """The parsed JSON in `path`; `what` names it in the `UserError` for a missing, unreadable or malformed file."""
    refuse_special(path)
    data = b""
    try:
        data = Path(path).read_bytes()
        return parse_json(data)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    except MemoryError as error:
        raise UserError(f"not enough memory to read the {what} {path}") from error
    except ValueError as error:
        raise UserError(f"the {what} {path} is not valid JSON: {no_json(data) or error}") from error


# What people take for a file of another kind, by how it begins.
LIKELY_MISTAKES = (
    (b"\x1f\x8b", "it is compressed with gzip: unpack it first"),
    (b"PK\x03\x04", "it is a zip file: unpack it first"),
    (b"version https://git-lfs", "it is a pointer of git-lfs: fetch the file itself with `git lfs pull`"),
    (b"<", "it is a web page or XML"),
)


def no_json(data: bytes) -> str | None:
    """Why `data` is no JSON, where it is one of the likely mistakes; None for anything else."""
    if not data.strip():
        return "it is empty"
    for start, reason in LIKELY_MISTAKES:
        if data.lstrip().startswith(start):
            return reason
    first, _, rest = data.strip().partition(b"\n")
    if first[:1] in b"{[" and rest[:1] in b"{[" and _is_json(first):
        return "it is JSON lines, a value in each line: put them into one list, [..., ...]"
    if data[:4].isascii() and b"\0" not in data[:4] and not _is_utf8(data):
        return "its text is not UTF-8: save it anew in that encoding"
    return None


def _is_json(text: bytes) -> bool:
    with suppress(ValueError):
        parse_json(text)
        return True
    return False


def _is_utf8(text: bytes) -> bool:
    with suppress(ValueError):
        text.decode()
        return True
    return False


def make_folder(folder: str | Path) -> Path:
    """Create `folder` and the folders above it, and make sure that files can be written there.

    Raises `UserError` when that is impossible.
    """
    folder = Path(folder)
    refuse_url(folder)
    try:
        _make(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder}: {_why_no_folder(folder, error)}") from error
    return folder


def check_target(path: str | Path) -> None:
    """Make sure that the file `path` can be written, making its folder, before long work is begun for it.

    Raises `UserError` when that is impossible, or `path` is a protected input.
    """
    refuse_inputs(path)
    make_folder(Path(path).parent)


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def refuse_others(out: Path, main: str, signs: Iterable[bytes], *names: str, within: int = 1 << 20) -> None:
    """Raise `UserError` where writing `main` and `names` to the folder `out` would replace what no earlier run has written.

    They are an earlier run's where the file `main` has all `signs` in its first `within` bytes.
    """
    try:
        with open(out / main, "rb") as stream:
            start = stream.read(within)
        if all(sign in start for sign in signs):
            return
    except (OSError, ValueError):
        pass  # none, or none that could be replaced
    there = [name for name in (main, *names) if os.path.lexists(out / name) and not (out / name).is_dir()]
    for name in there:
        if protected(out / name) is not None:
            refuse_inputs(out / name)  # which says so
    if there:
        raise UserError(
            f"{out} holds {', '.join(there)}, which would be replaced and is not from an earlier run of this command: give "
            "another --out, or take it away"
        )


def remove_empty_folders() -> None:
    """Remove the folders that this process has made and that hold nothing: a refused command leaves no trace."""
    while _made:
        with suppress(OSError):  # not empty, or gone
            _made.pop().rmdir()


def _make(folder: Path) -> None:
    missing = []
    for part in (folder, *folder.parents):
        if os.path.lexists(part):
            break
        missing.append(part)
    folder.mkdir(parents=True, exist_ok=True)
    _made.extend(part.absolute() for part in reversed(missing))


def _why_no_folder(folder: Path, error: OSError) -> str:
    """In words: "File exists" and "Not a directory" do not say that a file lies where a folder is to be."""
    for part in (folder, *folder.parents):
        if os.path.lexists(part) and not part.is_dir():
            return f"{part} is a {'link that leads nowhere' if part.is_symlink() and not part.exists() else 'file'}, not a folder"
    return error.strerror or str(error)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
