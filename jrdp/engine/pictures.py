"""Which pictures `jrdp predict` is to read, and what its output files are called."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import unicodedata
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Iterable

from jrdp import png
from jrdp.data.folders import pictures_in
from jrdp.data.transforms import PICTURE_SUFFIXES
from jrdp.engine.record import ASKED, SIGNS_OF_ASKED
from jrdp.errors import UserError
from jrdp.files import refuse_others, refuse_special

VIDEO_SUFFIXES = {
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".3gp", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".ogv",
}  # fmt: skip
_LONGEST = 220  # bytes of a name; most file systems take 255, with suffix


def list_pictures(paths: list[Path]) -> list[Path]:
    """The pictures that `paths` name; a file is taken whatever its suffix, a folder gives its pictures, sorted.

    What a folder holds besides is counted on standard error. A picture that is named more than once is taken once.

    Raises:
        UserError: for a path that does not exist or is no file (a pipe, a device, an address), or a folder without
            pictures.
    """
    pictures: list[Path] = []
    for path in paths:
        refuse_special(path)
        if path.is_dir():
            inside = pictures_in(path)
            note = inside.note(path)
            if note:
                print(f"jrdp: {note}", file=sys.stderr)
            if not inside.pictures:
                raise UserError(f"no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}) in the folder {path}")
            pictures += inside.pictures
        elif path.exists():
            pictures.append(path)
        else:
            raise UserError(f"no such picture or folder: {path}")
    return once(pictures, "pictures")


def once(paths: list, what: str) -> list:
    """`paths` without those that name a file again, in another spelling or through a folder; said on standard error."""
    first: dict = {}
    for path in paths:
        first.setdefault((os.path.realpath(path.parent), path.name) if isinstance(path, Path) else path, path)
    kept = list(first.values())
    if len(kept) < len(paths):
        print(f"jrdp: {len(paths) - len(kept)} of the {what} are named again: each is taken once", file=sys.stderr)
    return kept


def told_names(pictures: list[Path]) -> list[str]:
    """The name of each picture for results: its file name, with folders before it where others have the same one."""
    names = [picture.name for picture in pictures]
    parts = [Path(os.path.abspath(picture)).parts for picture in pictures]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        counts = Counter(map(_folded, names))
        again = [index for index, name in enumerate(names) if counts[_folded(name)] > 1]
        if not again:
            break
        for index in again:
            names[index] = "/".join(parts[index][-depth:]).replace("//", "/")
    return names


def split_videos(paths: list[Path]) -> tuple[list[Path], list[Path | int]]:
    """`paths` without the videos, and the videos: files by suffix, or a camera's index (a number that is no file)."""
    videos: list[Path | int] = []
    others: list[Path] = []
    for path in paths:
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            videos.append(path)
        elif re.fullmatch("[0-9]{1,4}", str(path)) and not path.exists():
            videos.append(int(str(path)))
        else:
            others.append(path)
    return others, once(videos, "videos")


def output_names(pictures: list[Path], taken: Iterable[str] = ()) -> list[str]:
    """A name for each picture's outputs: its stem where that is unique, else the file name, else numbered.

    Names that differ in case or Unicode form only count as one, as some file systems take them, and those that leave
    no room for a suffix are shortened. `taken`: names that others have.
    """
    stems = Counter(_folded(picture.stem) for picture in pictures)
    used = {_folded(name) for name in taken}
    names = []
    for picture in pictures:
        base = _shortened(picture.stem if stems[_folded(picture.stem)] == 1 else picture.name)
        name, number = base, 2
        while used & {_folded(name), _folded(f"{name}_instances")}:
            name, number = f"{base}_{number}", number + 1
        used.update((_folded(name), _folded(f"{name}_instances")))
        names.append(name)
    return names


def check_output_folder(paths: list[Path], inputs: list[Path], out: Path) -> None:
    """Raise `UserError` where predicting `inputs` into `out` would replace one, or take earlier results for pictures.

    paths: what the user named; a folder among them must not be `out`, for its next run would find the results of this.
    """
    for path in paths:
        if path.is_dir() and out.is_dir() and path.samefile(out):
            raise UserError(f"--out {out} is the folder that the pictures are in: results would mix with them; name another")
    results = {}
    for source in inputs:
        for suffix in (".png", "_instances.png", ".mp4", ".json"):
            results.setdefault(_folded(f"{_shortened(source.stem)}{suffix}"), source)
    for source in inputs:
        if out.is_dir() and source.parent.resolve() == out.resolve() and _folded(source.name) in results:
            other = results[_folded(source.name)]
            raise UserError(f"{source} would be replaced by, or is, a result of {other} in --out {out}: name another folder")


def refuse_replacing(out: Path, pictures: list[str], videos: list[str]) -> None:
    """Raise `UserError` where results by these names would replace in `out` what `jrdp predict` has not written."""
    if pictures and not (out / "predictions.partial.jsonl").exists() and not _is_empty_list(out / "predictions.json"):
        refuse_others(out, "predictions.json", [b'"file_name"', b'"segmentation"'])
    if pictures:
        refuse_others(out, ASKED, SIGNS_OF_ASKED)
    for name in pictures:
        for suffix in (".png", "_instances.png"):
            refuse_others(out, f"{name}{suffix}", [png.MADE_BY], within=4096)  # it stands before the pixels
    for name in videos:
        if not (out / f"{name}.partial.jsonl").exists():
            refuse_others(out, f"{name}.json", [b'"fps"', b'"frames"'], f"{name}.mp4")


def _is_empty_list(path: Path) -> bool:
    with suppress(OSError):
        return path.stat().st_size < 9 and path.read_bytes().strip() == b"[]"
    return False


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _shortened(name: str) -> str:
    """`name`, or its beginning and a digest of it where file systems would not take it with a suffix."""
    data = os.fsencode(name)
    if len(data) <= _LONGEST:
        return name
    digest = hashlib.sha256(data).hexdigest()[:10]
    return f"{data[: _LONGEST - 11].decode('utf-8', 'ignore')}~{digest}"
