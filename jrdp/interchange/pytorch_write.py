"""Writing PyTorch checkpoints without torch, in the zip format and in the legacy one."""

from __future__ import annotations

import struct
import zipfile
from collections import Counter, OrderedDict
from typing import Any, BinaryIO

import numpy as np

from jrdp.interchange.pickled_arrays import STORAGE_TYPES
from jrdp.interchange.pytorch_read import MAGIC_NUMBER, PROTOCOL_VERSION
from jrdp.interchange.tensors import BFloat16, FormatError, Tensor, dtype_name, raw_bytes

_STORAGE_NAMES = {dtype: storage for storage, dtype in STORAGE_TYPES.items()}
_ALIGNMENT = 64


def write_zip(stream: BinaryIO, value: Any) -> None:
    """What `torch.save(value, stream)` writes; `torch.load(stream, weights_only=True)` reads it.

    `value` is made of dicts, lists, tuples, text, numbers and tensors. Entries are stored uncompressed at multiples of
    64 bytes, so that torch can map the file; their dates are fixed, so that equal values make equal files.
    """
    pickler = _Pickler()
    program = pickler.dump(value)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, stream, "archive/data.pkl", program)
        _add(archive, stream, "archive/byteorder", b"little")
        for key, tensor in pickler.storages.items():
            _add(archive, stream, f"archive/data/{key}", raw_bytes(tensor))
        _add(archive, stream, "archive/version", b"3\n")


def _add(archive: zipfile.ZipFile, stream: BinaryIO, name: str, data: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(name)
    padding = -(stream.tell() + 30 + len(name) + 4) % _ALIGNMENT  # 30: the fixed part of a zip entry's header
    entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(entry, data)


def write_legacy(stream: BinaryIO, value: Any) -> None:
    """What `torch.save` of torch 1.1 writes; any later torch reads it too (torch < 1.2 knows no bfloat16)."""
    pickler = _Pickler(legacy=True)
    sizes = {"short": 2, "int": 4, "long": 4}
    stream.write(_Pickler().dump(MAGIC_NUMBER))
    stream.write(_Pickler().dump(PROTOCOL_VERSION))
    stream.write(_Pickler().dump({"protocol_version": PROTOCOL_VERSION, "little_endian": True, "type_sizes": sizes}))
    stream.write(pickler.dump(value))
    keys = sorted(pickler.storages)
    stream.write(_Pickler().dump(keys))
    for key in keys:
        data = raw_bytes(pickler.storages[key])
        count = _count(pickler.storages[key])
        stream.write(struct.pack("<q", count))
        stream.write(data)


def _count(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


class _Pickler:
    """Pickle protocol 2 for plain data and tensors, whose contents go to `storages`, one storage each."""

    def __init__(self, legacy: bool = False):
        self.storages: dict[str, Tensor] = {}
        self._legacy = legacy

    def dump(self, value: Any) -> bytes:
        self._parts = [b"\x80\x02"]
        self._value(value)
        self._parts.append(b".")
        return b"".join(self._parts)

    def _value(self, value: Any) -> None:
        if value is None:
            self._parts.append(b"N")
        elif isinstance(value, (bool, np.bool_)):
            self._parts.append(b"\x88" if value else b"\x89")
        elif isinstance(value, (int, np.integer)):
            self._integer(int(value))
        elif isinstance(value, (float, np.floating)):
            self._parts.append(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            text = value.encode("utf-8", "surrogatepass")
            self._parts.append(b"X" + struct.pack("<I", len(text)) + text)
        elif isinstance(value, (np.ndarray, BFloat16)):
            self._tensor(value)
        elif isinstance(value, dict):
            self._dict(value)
        elif isinstance(value, tuple):
            self._sequence(b"(", value, b"t")
        elif isinstance(value, list):
            self._sequence(b"](", value, b"e")
        else:
            raise FormatError(f"a {type(value).__name__} cannot be stored in a .pth file")

    def _integer(self, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self._parts.append(b"J" + struct.pack("<i", value))
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self._parts.append(b"\x8a" + bytes([len(data)]) + data)

    def _sequence(self, begin: bytes, values: Any, end: bytes) -> None:
        self._parts.append(begin)
        for value in values:
            self._value(value)
        self._parts.append(end)

    def _dict(self, value: dict) -> None:
        if isinstance(value, Counter):
            self._parts.append(b"ccollections\nCounter\n}(")
        elif isinstance(value, OrderedDict):
            self._parts.append(b"ccollections\nOrderedDict\n)R(")
        else:
            self._parts.append(b"}(")
        for key, item in value.items():
            self._value(key)
            self._value(item)
        self._parts.append(b"u\x85R" if isinstance(value, Counter) else b"u")

    def _tensor(self, tensor: Tensor) -> None:
        key = str(len(self.storages))
        dtype = dtype_name(tensor)
        self.storages[key] = tensor
        strides, step = [], 1
        for length in reversed(tensor.shape):
            strides.append(step)
            step *= length
        self._parts.append(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self._value("storage")
        self._parts.append(f"ctorch\n{_STORAGE_NAMES[dtype]}\n".encode())
        for item in (key, "cpu", _count(tensor)):
            self._value(item)
        self._parts.append(b"Nt" if self._legacy else b"t")  # the legacy tuple ends with "no view of another storage"
        self._parts.append(b"Q")
        for item in (0, tuple(tensor.shape), tuple(reversed(strides)), False):
            self._value(item)
        self._parts.append(b"ccollections\nOrderedDict\n)RtR")
