"""What is a picture in a folder that people and their programs have put things into."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Iterable, NamedTuple

from jrdp.data.transforms import PICTURE_SUFFIXES, is_readable
from jrdp.errors import UserError

# What viewers and file managers leave behind. macOS writes `._NAME` beside NAME on foreign disks: no picture, same suffix.
_LITTER = {".ds_store", "thumbs.db", "desktop.ini", ".directory", "ehthumbs.db"}


class Contents(NamedTuple):
    """pictures: sorted. left_out: how many other files there are, by suffix in small letters. folders: how many."""

    pictures: list[Path]
    left_out: Counter[str]
    folders: int

    def note(self, folder: str | Path) -> str | None:
        """One line about what is left out; None where that is nothing."""
        parts = []
        if self.left_out:
            kinds = " ".join(sorted(suffix or "without suffix" for suffix in self.left_out))
            parts.append(f"{sum(self.left_out.values())} files ({kinds})")
        if self.folders:
            parts.append(f"{self.folders} folders")
        return f"{' and '.join(parts)} in {folder} left out" if parts else None


def is_litter(path: Path) -> bool:
    """Whether the file is one that no person has put there."""
    return path.name.startswith("._") or path.name.lower() in _LITTER


def pictures_in(folder: str | Path) -> Contents:
    """The pictures in `folder` that Pillow here can read, by suffix.

    Raises:
        UserError: where it cannot be looked into.
    """
    pictures: list[Path] = []
    left_out: Counter[str] = Counter()
    folders = 0
    for path in _entries(folder):
        if is_litter(path):
            continue
        if path.is_dir():
            folders += 1
        elif path.suffix.lower() in PICTURE_SUFFIXES and is_readable(path.suffix) and (path.is_file() or _leads_nowhere(path)):
            pictures.append(path)
        else:
            left_out[path.suffix.lower()] += 1
    return Contents(pictures, left_out, folders)


def _leads_nowhere(path: Path) -> bool:
    """Whether it is a broken link: a picture that is missed, unlike a pipe or a device of such a name."""
    return path.is_symlink() and not path.exists()


def _entries(folder: str | Path) -> Iterable[Path]:
    try:
        return sorted(Path(folder).iterdir())
    except OSError as error:
        raise UserError(f"cannot look into the folder {folder}: {error.strerror}") from error
