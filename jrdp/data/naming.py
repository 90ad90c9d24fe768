"""From the file names of annotations to files, whatever system wrote the names."""

from __future__ import annotations

import os
import unicodedata
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Iterable

from jrdp.data.annotations import ImageEntry
from jrdp.errors import UserError


def find_picture(folder: str | os.PathLike, file_name: str) -> Path:
    """The file `file_name` below `folder`, in whichever Unicode form it is stored there.

    macOS decomposes names (NFD), most others compose them (NFC), and both look the same. Where there is no such file
    in any form, the path as the annotations have it.
    """
    path = Path(folder) / file_name
    if file_name.isascii() or os.path.exists(path):  # which is False, too, for a name that no file can have
        return path
    for form in ("NFC", "NFD"):
        other = Path(folder) / unicodedata.normalize(form, file_name)
        if os.path.exists(other):
            return other
    return path


def other_picture_hint(folder: str | os.PathLike, file_name: str) -> str:
    """Which picture in `folder` the absent `file_name` may mean, in brackets: the same but for folders, case or suffix.

    Annotation programs write names with the folder they worked in, addresses, or the suffix before a conversion.
    """
    last = PurePosixPath(file_name.partition("?")[0].replace("\\", "/")).name
    with suppress(OSError):
        names = sorted(os.listdir(folder))
        for same in (lambda name: name, str.casefold, lambda name: PurePosixPath(name).stem.casefold()):
            for name in names:
                if same(same_name(name)) == same(same_name(last)):
                    return f" (but there is {Path(folder) / name})"
    return ""


def same_name(file_name: str) -> str:
    """Equal for names that differ in their Unicode form only."""
    return unicodedata.normalize("NFC", file_name)


def has_lost_backslashes(folder: str | os.PathLike, image: ImageEntry) -> bool:
    """Whether the name was written with Windows' separators, so that no file has it here."""
    return os.sep != "\\" and "\\" in image.file_name and not os.path.exists(find_picture(folder, image.file_name))


def refuse_backslashes(folder: str | os.PathLike, images: Iterable[ImageEntry], where: str | os.PathLike) -> None:
    """Raises `UserError` where names are written with Windows' separators, naming the first."""
    wrong = [image for image in images if has_lost_backslashes(folder, image)]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{where}: image {wrong[0].id}{more} {backslash_hint(wrong[0])}")


def backslash_hint(image: ImageEntry) -> str:
    right = image.file_name.replace("\\", "/")
    return f"has the file_name {image.file_name!r} with backslashes, as Windows writes paths; write {right!r}"
