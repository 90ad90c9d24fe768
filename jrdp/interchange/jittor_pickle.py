"""Pickles of NumPy arrays: what `jittor.save` writes (.pkl), and Caffe2/Detectron's model files."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any, BinaryIO

from jrdp.interchange.pickled_arrays import allowed_names, plain
from jrdp.interchange.pickles import Unpickler
from jrdp.interchange.tensors import Budget, FormatError, Tensor, as_float32, dtype_name

_JITTOR_END = b"HCAJSLHD"


def is_jittor(data: bytes) -> bool:
    return data.endswith(_JITTOR_END)


def read_pickle(data: bytes) -> Any:
    """One pickle of plain data and arrays; Jittor's checksum is checked where it is there. Raises `FormatError`."""
    if is_jittor(data):
        checksum, data = data[-28:-8], data[:-28]
        if hashlib.sha1(data).digest() != checksum:
            raise FormatError("its contents do not fit its checksum: the file is damaged")
    budget = Budget(len(data))
    reader = Unpickler(data, allowed_names(budget))
    value = plain(reader.load(), budget)
    if reader.position != len(data):
        raise FormatError("it has unexpected bytes at its end: truncated, damaged or not a checkpoint")
    return value


class _Hashing:
    """A stream that hashes what passes through."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.hash = hashlib.sha1()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self._stream.write(data)


def write_jittor(stream: BinaryIO, tensors: dict[str, Tensor]) -> None:
    """What `jittor.save(model.state_dict(), "x.pkl")` writes. Bfloat16 becomes float32, which loses nothing."""
    arrays = {}
    for name, tensor in tensors.items():
        arrays[name] = as_float32(tensor) if dtype_name(tensor) == "bfloat16" else tensor
    hashing = _Hashing(stream)
    pickle.dump(arrays, hashing, protocol=4)
    stream.write(hashing.hash.digest())
    stream.write(_JITTOR_END)
