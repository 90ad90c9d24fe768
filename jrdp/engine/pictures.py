"""Which pictures `jrdp predict` is to read, and what its output files are called."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jrdp.errors import UserError

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def list_pictures(paths: list[Path]) -> list[Path]:
    """The pictures that `paths` name; a file is taken whatever its suffix, a folder gives its pictures, sorted.

    Raises:
        UserError: for a path that does not exist, or a folder without pictures.
    """
    pictures: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise UserError(f"no pictures ({', '.join(sorted(SUFFIXES))}) in the folder {path}")
            pictures += inside
        elif path.exists():
            pictures.append(path)
        else:
            raise UserError(f"no such picture or folder: {path}")
    return pictures


def split_videos(paths: list[Path]) -> tuple[list[Path], list[Path | int]]:
    """`paths` without the videos, and the videos: files by suffix, or a camera's index (a number that is no file)."""
    videos: list[Path | int] = []
    others: list[Path] = []
    for path in paths:
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            videos.append(path)
        elif str(path).isdigit() and not path.exists():
            videos.append(int(str(path)))
        else:
            others.append(path)
    return others, videos


def output_names(pictures: list[Path]) -> list[str]:
    """A name for each picture's outputs: its stem where that is unique, else the file name, else numbered."""
    stems = Counter(picture.stem for picture in pictures)
    taken: set[str] = set()
    names = []
    for picture in pictures:
        name = base = picture.stem if stems[picture.stem] == 1 else picture.name
        number = 2
        while name in taken or f"{name}_instances" in taken:
            name, number = f"{base}_{number}", number + 1
        taken.update((name, f"{name}_instances"))
        names.append(name)
    return names
