"""Reading MATLAB's .mat files of version 5 to 7 (`save -v6`, `-v7`), so far as instance maps need it.

Numeric and logical arrays, cell arrays and structures; nothing in such a file is code. Written from MathWorks'
"MAT-File Format" document. Version 7.3 is HDF5 and is refused with advice.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Union

import numpy as np

from jrdp.errors import UserError
from jrdp.files import refuse_special

# An array, a cell array as a flat list in column-major order, or a structure.
Value = Union[np.ndarray, list, dict]

_MATRIX, _COMPRESSED = 14, 15
_STORAGE = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CELL, _STRUCT = 1, 2
_NUMERIC = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_LOGICAL = 0x0200
_MOST_BYTES = 1 << 30  # of a decompressed variable
_DEEPEST = 16


class _Damaged(Exception):
    pass


def read_mat(path: str | os.PathLike) -> dict[str, Value]:
    """The variables of a .mat file by name; those of other kinds (text, sparse, objects) are left out.

    Raises:
        UserError: when the file is missing, not a .mat file, of version 7.3, or damaged.
    """
    refuse_special(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if data[:10] == b"MATLAB 7.3" or data[:4] == b"\x89HDF" or data[512:516] == b"\x89HDF":
        raise UserError(f"{path} is a .mat file of version 7.3; save it in MATLAB with save(..., '-v7')")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise UserError(f"{path} is not a .mat file of version 5 to 7")
    variables = {}
    try:
        for kind, body in _elements(data[128:], order):
            if kind == _COMPRESSED:
                unpacker = zlib.decompressobj()
                unpacked = unpacker.decompress(body, _MOST_BYTES)
                if unpacker.unconsumed_tail:
                    raise _Damaged("a variable is too large")
                (kind, body), *_ = _elements(unpacked, order)
            if kind == _MATRIX:
                name, value = _matrix(body, order, 0)
                if value is not None:
                    variables[name] = value
    except (_Damaged, zlib.error, struct.error, ValueError, IndexError) as error:
        raise UserError(f"{path} is a damaged .mat file: {error}") from error
    return variables


def _elements(data: bytes, order: str) -> list[tuple[int, bytes]]:
    """(type, contents) of the data elements one after the other."""
    found, position = [], 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, position)
        if kind >> 16:  # the small form: both in one word, and the contents in the next
            kind, size, start, after = kind & 0xFFFF, kind >> 16, position + 4, position + 8
            if size > 4:
                raise _Damaged("a small element is too long")
        else:
            start = position + 8
            after = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise _Damaged("it is truncated")
        found.append((kind, data[start : start + size]))
        position = after
    return found


def _numbers(element: tuple[int, bytes], order: str) -> np.ndarray:
    kind, body = element
    if kind not in _STORAGE:
        raise _Damaged(f"numbers of the unknown type {kind}")
    return np.frombuffer(body, dtype=order + _STORAGE[kind])


def _matrix(body: bytes, order: str, depth: int) -> tuple[str, Value | None]:
    """Name and value of a matrix element; None for a kind that is not read."""
    if not body:
        return "", np.zeros((0, 0))
    if depth > _DEEPEST:
        raise _Damaged("it is nested too deeply")
    flags, shape, name, *parts = _elements(body, order)
    word = int(_numbers(flags, order)[0])
    dimensions = [int(side) for side in _numbers(shape, order)]
    title = name[1].decode("latin-1")
    if min(dimensions, default=0) < 0:
        raise _Damaged("an array has a negative size")
    count = int(np.prod(dimensions, dtype=object))
    kind = word & 0xFF
    if kind in _NUMERIC:
        values = _numbers(parts[0], order)
        if values.size != count:
            raise _Damaged(f"the array {title!r} has {values.size} numbers instead of {count}")
        dtype = np.dtype(bool) if word & _LOGICAL else np.dtype(_NUMERIC[kind])
        return title, values.astype(dtype).reshape(dimensions, order="F")
    if kind == _CELL:
        if len(parts) != count:
            raise _Damaged(f"the cell array {title!r} has {len(parts)} cells instead of {count}")
        cells = [_matrix(part, order, depth + 1)[1] for _, part in parts]
        return title, [cell for cell in cells if cell is not None]
    if kind == _STRUCT:
        length = int(_numbers(parts[0], order)[0])
        names = [parts[1][1][i : i + length] for i in range(0, len(parts[1][1]), max(length, 1))]
        fields = [field.split(b"\0")[0].decode("latin-1") for field in names]
        values = [_matrix(part, order, depth + 1)[1] for _, part in parts[2:]]
        if len(values) != count * len(fields):
            raise _Damaged(f"the structure {title!r} is incomplete")
        if count == 1:
            return title, {field: value for field, value in zip(fields, values) if value is not None}
        rows = [dict(zip(fields, values[i : i + len(fields)])) for i in range(0, len(values), max(len(fields), 1))]
        return title, [{field: value for field, value in row.items() if value is not None} for row in rows]
    return title, None
