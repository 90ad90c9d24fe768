"""Reading .mat files: written by SciPy, written by hand in every byte order, and damaged."""

import base64
import struct
import zlib

import numpy as np
import pytest

from jrdp.dataset_tools.matfile import read_mat
from jrdp.errors import UserError

LABELS = np.zeros((6, 8))
LABELS[1:4, 1:5] = 1
LABELS[3:6, 4:8] = 2

# The bodies (after the 128 bytes of header) that scipy.io.savemat(..., do_compression=True) wrote for
# {"inst": LABELS}, {"inst": uint8}, {"masks": [H, W, 2] logical}, {"gt": {mask 1, mask 2}} and a structure.
SCIPY = {
    "double": "DwAAADsAAAB4nONjYGDYwMjAwAakORggNAiwIvFBNCMDC0NmXnEJJ5DdwMhAIfhgj50eLOoZHHDQuADd1QMAuukTQQ==",
    "uint8": "DwAAADQAAAB4nONjYGBIAGI2IOYAYk4GCGCF8mHijAwsDJl5xSVMQLYBAxwwMjJikExMIEVoJACvNwK5",
    "logical": "DwAAADgAAAB4nONjYGBYAMRsQMwBxJxMDGDACsQ8SOJQYQZGqFxuYnF2MVQ8gQEOGBkZMUgGEgE2MxgBp3gDhw==",
    "cells": "DwAAAEMAAAB4nONjYGD4AcRsQMwBxIwMEMCKxGcC00wM6SUMDHxAdgKSek4mVPXo5oCkDRjggJGREYNkwAYotAcbwGY3IwDAuQPF",
    "struct": (
        "DwAAAJMAAAB4nONjYGBoYGRgYAPSHEDMxAABrFA+IxwzMriDxVkYeKFi6kAcnJqem5pXkliSmZ/H4JxYkpqeX5SZWgyUycsvSWWAAz4g"
        "nsCAsIcLzR42JPtAgBmIExjQASMYEmYzgSEE4GeD3OWAZD8fFv8zIbmLB4gFoO4DARYk/1kgmcOCxRxWJHMEoPyM1JycfCANAJnREGs="
    ),
}


def _file(tmp_path, body, order=b"IM"):
    path = tmp_path / "x.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1" + order + body)
    return path


def _read(tmp_path, kind):
    return read_mat(_file(tmp_path, base64.b64decode(SCIPY[kind])))


def test_files_written_by_scipy(tmp_path):
    double = _read(tmp_path, "double")["inst"]
    assert np.array_equal(double, LABELS) and double.dtype == np.float64
    small = _read(tmp_path, "uint8")["inst"]
    assert np.array_equal(small, LABELS) and small.dtype == np.uint8
    masks = _read(tmp_path, "logical")["masks"]
    assert masks.dtype == bool and np.array_equal(masks, np.stack([LABELS == 1, LABELS == 2], axis=2))
    cells = _read(tmp_path, "cells")["gt"]
    assert len(cells) == 2 and np.array_equal(cells[1], LABELS == 2)
    structure = _read(tmp_path, "struct")["G"]
    assert sorted(structure) == ["Categories", "Segmentation"]  # the text field is left out
    assert np.array_equal(structure["Segmentation"], LABELS) and structure["Categories"].ravel().tolist() == [3, 4]


def _element(order, kind, body):
    return struct.pack(order + "II", kind, len(body)) + body + b"\0" * (-len(body) % 8)


def _matrix(order, name, array, storage, kind=6):
    flags = _element(order, 6, struct.pack(order + "II", kind, 0))
    shape = _element(order, 5, np.array(array.shape, order + "i4").tobytes())
    title = _element(order, 1, name.encode())
    code, dtype = storage
    return _element(order, 14, flags + shape + title + _element(order, code, array.astype(order + dtype).tobytes("F")))


@pytest.mark.parametrize("order, mark", [("<", b"IM"), (">", b"MI")])
@pytest.mark.parametrize("storage", [(9, "f8"), (2, "u1"), (3, "i2")])
def test_uncompressed_files_in_both_byte_orders(tmp_path, order, mark, storage):
    body = _matrix(order, "first", LABELS, storage) + _matrix(order, "second", LABELS * 2, storage)
    variables = read_mat(_file(tmp_path, body, mark))
    assert np.array_equal(variables["first"], LABELS) and np.array_equal(variables["second"], LABELS * 2)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x.mat"
    with pytest.raises(UserError, match="cannot read"):
        read_mat(path)
    new = b"MATLAB 7.3 MAT-file" + b" " * 600
    for content, words in ((b"", "not a .mat"), (b"x" * 300, "not a .mat"), (new, "-v7")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_mat(path)


@pytest.mark.parametrize("kind", SCIPY)
def test_damaged_files_give_one_line_or_other_values(tmp_path, kind):
    body = base64.b64decode(SCIPY[kind])
    plain = zlib.decompress(body[8:])
    for cut in range(1, len(body), 3):
        with pytest.raises(UserError, match="damaged"):
            read_mat(_file(tmp_path, body[:-cut]))
            raise UserError("damaged")  # a cut in front of the first element leaves an empty file, which is fine
    for position in range(0, len(plain), 5):
        changed = plain[:position] + bytes([plain[position] ^ 0x41]) + plain[position + 1 :]
        try:
            read_mat(_file(tmp_path, changed))
        except UserError as error:
            assert "\n" not in str(error)


def test_deep_nesting_ends(tmp_path):
    body = b""
    for _ in range(60):
        flags = _element("<", 6, struct.pack("<II", 1, 0))
        inner = _element("<", 14, body)
        body = flags + _element("<", 5, np.array([1, 1], "<i4").tobytes()) + _element("<", 1, b"") + inner
    with pytest.raises(UserError, match="nested too deeply"):
        read_mat(_file(tmp_path, _element("<", 14, body)))
