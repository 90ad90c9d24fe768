"""Pictures that Pillow alone does not read: HEIC through pillow-heif, and a reason for everything else."""

from __future__ import annotations

import importlib.util
import os
from typing import Optional

from PIL import Image, UnidentifiedImageError

from jrdp.errors import UserError
from jrdp.files import LIKELY_MISTAKES

HEIC_SUFFIXES = (".heic", ".heif")
# What follows "ftyp" in the first box of a file of ISO's base media format.
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_VIDEO_BRANDS = (b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"M4V ", b"qt  ", b"3gp4", b"3gp5")
_NO_PICTURES = (
    *LIKELY_MISTAKES,
    (b"%PDF", "it is a PDF: save its page as PNG"),
    (b"II*\x00", "it is a TIFF, or a camera's raw file, with pixels of a kind that Pillow does not read: save it with 8 bits"),
    (b"MM\x00*", "it is a TIFF, or a camera's raw file, with pixels of a kind that Pillow does not read: save it with 8 bits"),
    (b"\x00\x00\x00\x0cJXL ", "it is JPEG XL, which Pillow does not read: save it as JPEG or PNG"),
    (b"\xff\x0a", "it is JPEG XL, which Pillow does not read: save it as JPEG or PNG"),
    (b"\x1aE\xdf\xa3", "it is a video (Matroska, WebM): give it with a suffix of videos"),
    (b"\x93NUMPY", "it is a NumPy array: save it as PNG"),
)


def can_read_heic() -> bool:
    """Whether pillow-heif is installed (`pip install 'jrdp[heic]'`)."""
    return importlib.util.find_spec("pillow_heif") is not None


def open_picture(path: str | os.PathLike) -> Image.Image:
    """`PIL.Image.open`, for HEIC too; Pillow's own table of formats, which is the host's, stays as it is.

    A telephone's HEIC is turned upright by its decoder, as that format demands, and has no EXIF rotation then.

    Raises:
        UnidentifiedImageError: with the reason as its words, where the file is something else.
        UserError: for HEIC of more pixels than Pillow's limit; other formats are opened without their pixels.
    """
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        with open(path, "rb") as stream:
            start = stream.read(64)
        if not _is_heic(start):
            raise UnidentifiedImageError(_reason(start)) from error
    if not can_read_heic():
        raise UnidentifiedImageError("it is HEIC: `pip install 'jrdp[heic]'` reads it, or save it as JPEG")
    import pillow_heif

    picture = pillow_heif.open_heif(path, convert_hdr_to_8bit=True)
    refuse_large(path, *picture.size)
    picture = picture.to_pillow()
    picture.filename = os.fspath(path)
    return picture


def refuse_large(path: str | os.PathLike, width: int, height: int) -> None:
    """Raise `UserError` for a picture beyond Pillow's limit, before memory is asked for its pixels."""
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise UserError(
            f"cannot read image {path}: {width}x{height} pixels are more than the limit of {Image.MAX_IMAGE_PIXELS}; "
            "shrink the picture first"
        )


def _is_heic(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS


def _reason(start: bytes) -> str:
    if not start.strip():
        return "it is empty" if not start else "it is not an image that Pillow knows"
    if start[4:8] == b"ftyp" and start[8:12] in _VIDEO_BRANDS:
        return "it is a video: give it with a suffix of videos, such as .mp4"
    return _by_beginning(start.lstrip()) or _by_beginning(start) or "it is not an image that Pillow knows"


def _by_beginning(start: bytes) -> Optional[str]:
    return next((reason for beginning, reason in _NO_PICTURES if start.startswith(beginning)), None)
