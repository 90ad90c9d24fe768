"""Safetensors with bfloat16 and with every claim of the header checked; no tensor is copied on reading."""

from __future__ import annotations

import json
import struct
from math import prod
from typing import Any, BinaryIO

import numpy as np

from jrdp.files import parse_json
from jrdp.interchange.tensors import NUMPY_TYPES, Budget, FormatError, Tensor, dtype_name, from_bits, raw_bytes

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_NAMES = {name: code for code, name in _TYPES.items()}
_MAX_HEADER = 16 << 20


def header_length(data: bytes) -> int | None:
    """Bytes of JSON that follow the first eight, or None if `data` cannot be a safetensors file."""
    if len(data) < 10 or data[8:9] != b"{":
        return None
    (length,) = struct.unpack_from("<Q", data)
    return length if length <= _MAX_HEADER else None


def read_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors in the header's order, the header's "__metadata__"). Raises `FormatError`."""
    length = header_length(data)
    if length is None:
        raise FormatError("it is not a safetensors file")
    if 8 + length > len(data):
        raise FormatError("it ends inside its header: the file is truncated")
    header = _parse(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("its metadata are not text: the file is damaged")
    body = memoryview(data)[8 + length :]
    budget = Budget(len(data))
    tensors, ranges = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry)
        if end > len(body):
            raise FormatError(f"it ends before the data of {name[:80]!r}: the file is truncated")
        if end - begin != prod(shape) * NUMPY_TYPES[dtype].itemsize:
            raise FormatError(f"the data of {name[:80]!r} do not fit its shape: the file is damaged")
        values = np.frombuffer(body[begin:end], NUMPY_TYPES[dtype]).reshape(shape)
        if not values.flags.aligned:
            budget.take(values.nbytes)
            values = values.copy()
        tensors[name] = from_bits(values, dtype)
        ranges.append((begin, end))
    position = 0
    for begin, end in sorted(ranges):
        if begin != position:
            raise FormatError("its tensors overlap or leave gaps: the file is damaged")
        position = end
    if position != len(body):
        raise FormatError("it does not end where its last tensor ends: the file is damaged")
    return tensors, metadata


def _parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: list) -> dict:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise FormatError("its header has a name twice: the file is damaged")
        return result

    def integer(digits: str) -> int:
        if len(digits) > 18:  # reading a number of a million digits takes minutes
            raise FormatError("its header holds an absurdly large number: the file is damaged")
        return int(digits)

    try:
        header = parse_json(text.decode("utf-8"), object_pairs_hook=unique, parse_int=integer)
    except ValueError as error:
        raise FormatError("its header is not valid JSON: the file is damaged, or not a safetensors file") from error
    if not isinstance(header, dict):
        raise FormatError("its header is not a JSON object: the file is damaged")
    return header


def _entry(name: str, entry: Any) -> tuple[str, tuple, int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"the header entry of {name[:80]!r} is damaged")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _TYPES:
        raise FormatError(f"{name[:80]!r} has an element type that is not supported; known: {', '.join(_TYPES)}")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if any(type(number) is not int or number < 0 for number in numbers) or len(shape) > 32 or len(offsets) != 2:
        raise FormatError(f"the header entry of {name[:80]!r} is damaged")
    return _TYPES[code], tuple(shape), offsets[0], offsets[1]


def write_safetensors(stream: BinaryIO, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Header in the order of `tensors`; data by decreasing element size, so that every tensor is aligned."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, tensor in tensors.items():
        header[name] = {"dtype": _NAMES[dtype_name(tensor)], "shape": list(tensor.shape), "data_offsets": None}
    order = sorted(tensors, key=lambda name: -NUMPY_TYPES[dtype_name(tensors[name])].itemsize)
    position = 0
    for name in order:
        end = position + tensors[name].nbytes
        header[name]["data_offsets"] = [position, end]
        position = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)))
    stream.write(text)
    for name in order:
        stream.write(raw_bytes(tensors[name]))
