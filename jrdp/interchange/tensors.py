"""The element types that weight files may hold, and the one that NumPy lacks (bfloat16)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import numpy as np


class FormatError(Exception):
    """A file breaks its own format or asks for something refused; `read` turns it into a `UserError` with the path."""


@dataclass(frozen=True, eq=False)
class BFloat16:
    """A bfloat16 tensor as raw bits, because NumPy has no such type: `bits` is uint16 of the tensor's shape."""

    bits: np.ndarray

    @property
    def shape(self) -> tuple:
        return self.bits.shape

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    def float32(self) -> np.ndarray:
        """The same values, exactly, as float32 (bfloat16 is its upper half)."""
        return (self.bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


Tensor = Union[np.ndarray, BFloat16]

# Names as torch writes them, and the NumPy type that holds the bits.
NUMPY_TYPES = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}

FLOATS = ("float64", "float32", "float16", "bfloat16")  # any of these fills a network's floating-point tensor
HALVES = ("float16", "bfloat16")  # those that float32 holds exactly


def dtype_name(tensor: Tensor) -> str:
    """ "float32", "bfloat16", ...; raises `FormatError` for a type that no weight file has (objects, strings)."""
    if isinstance(tensor, BFloat16):
        return "bfloat16"
    if tensor.dtype.name not in NUMPY_TYPES:
        raise FormatError(f"tensors of type {tensor.dtype.name} cannot be stored; use {', '.join(NUMPY_TYPES)}")
    return tensor.dtype.name


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bits, C order, little-endian."""
    array = tensor.bits if isinstance(tensor, BFloat16) else tensor
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return memoryview(array.reshape(-1).view(np.uint8))


def from_bits(array: np.ndarray, name: str) -> Tensor:
    """Give bits read as `NUMPY_TYPES[name]` their type."""
    return BFloat16(array) if name == "bfloat16" else array


def as_float32(tensor: Tensor) -> np.ndarray:
    """Values as float32 for the model: exact from float16 and bfloat16, rounded from float64 and integers."""
    if isinstance(tensor, BFloat16):
        return tensor.float32()
    return np.ascontiguousarray(tensor, dtype=np.float32).reshape(tensor.shape)


def as_type(tensor: Tensor, dtype: str) -> np.ndarray:
    """Values in the element type of a network's tensor; whoever calls has checked that `fits_type`."""
    if isinstance(tensor, BFloat16):
        tensor = tensor.float32()
    return np.ascontiguousarray(tensor, dtype=NUMPY_TYPES[dtype]).reshape(tensor.shape)


def fits_type(tensor: Tensor, dtype: str) -> bool:
    """Whether `tensor` may fill one of a network's that is `dtype`: any floating-point type another, integers the same."""
    return dtype_name(tensor) == dtype or (dtype in FLOATS and dtype_name(tensor) in FLOATS)


class Budget:
    """Bounds the memory that a file of `file_size` bytes may claim: copies, expanded views, containers."""

    def __init__(self, file_size: int):
        self.left = 4 * file_size + (1 << 20)

    def take(self, nbytes: int) -> None:
        self.left -= nbytes
        if self.left < 0:
            raise FormatError("asks for far more memory than its own size; refused")
