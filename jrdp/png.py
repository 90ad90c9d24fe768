"""Arrays as PNG files, compressed by ISA-L.

Every line has the same filter: the difference to the pixel on its left for photographs, none for indices, whose runs
would break. On photographs that takes a quarter of the time that OpenCV takes, for files of the same size.
"""

from __future__ import annotations

import struct

import numpy as np
from isal import isal_zlib

MADE_BY = b"Software\0jrdp"  # in every file, before the pixels: tells a later run that it may be replaced
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _INDEXED = 0, 2, 3  # PNG's colour types
_NO_FILTER, _LEFT = 0, 1  # PNG's filters of a line
_LEVEL = 1  # of 0 to 3; 3 makes a photograph 1 % smaller in 1.6 of the time


def encode_png(picture: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """A PNG file's content.

    Args:
        picture: uint8 `[height, width, 3]` (RGB), or `[height, width]` of uint8 or uint16: grey, or indices into `palette`.
        palette: RGB uint8 `[at most 256, 3]`, of a uint8 picture.

    Raises:
        ValueError: for another picture, and for one without pixels.
    """
    height, width, *channels = picture.shape if picture.ndim in (2, 3) else (0, 0, 0)
    bytes_each = picture.dtype.itemsize if picture.dtype.kind == "u" else 0
    most = 2 if palette is None and not channels else 1
    if channels not in ([], [3]) or not 1 <= bytes_each <= most or not picture.size:
        raise ValueError(f"a picture of {picture.dtype} {list(picture.shape)} cannot be written as PNG")
    kind = _RGB if channels else _GREY if palette is None else _INDEXED
    size = struct.pack(">IIBBBBB", width, height, 8 * bytes_each, kind, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"tEXt", MADE_BY)]
    if palette is not None:
        chunks.append((b"PLTE", np.asarray(palette, np.uint8).tobytes()))
    chunks += [(b"IDAT", isal_zlib.compress(_lines(picture), _LEVEL)), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(*chunk) for chunk in chunks)


def _lines(picture: np.ndarray) -> np.ndarray:
    """The bytes to compress, uint8 `[height, 1 + bytes of a line]`: each line after the number of its filter."""
    height = len(picture)
    flat = np.ascontiguousarray(picture, picture.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    lines = np.empty((height, 1 + flat.shape[1]), np.uint8)
    if picture.ndim == 2:
        lines[:, 0], lines[:, 1:] = _NO_FILTER, flat
    else:
        lines[:, 0], lines[:, 1:4] = _LEFT, flat[:, :3]
        np.subtract(flat[:, 3:], flat[:, :-3], out=lines[:, 4:])
    return lines


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(name)))
