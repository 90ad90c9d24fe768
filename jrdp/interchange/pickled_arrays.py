"""The names that a checkpoint's pickle may ask for, each with a harmless stand-in."""

from __future__ import annotations

from collections import Counter, OrderedDict
from math import prod
from typing import Any

import numpy as np

from jrdp.interchange.pickles import Buildable, Global, Skipped
from jrdp.interchange.tensors import NUMPY_TYPES, Budget, FormatError, Tensor, from_bits

_MAX_DIMENSIONS = 32
_NUMPY_CODES = {
    "f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "?",
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
}  # fmt: skip


class Storage:
    """A flat run of elements; `fill` comes later, when the file's data part is read."""

    def __init__(self, dtype: str, count: int):
        self.dtype = dtype
        self.count = count
        self.data: bytes | memoryview | None = None

    @property
    def nbytes(self) -> int:
        return self.count * NUMPY_TYPES[self.dtype].itemsize

    def elements(self, dtype: str) -> np.ndarray:
        if self.data is None:
            raise FormatError("a tensor's data is missing: the file is truncated or damaged")
        return np.frombuffer(self.data, dtype=NUMPY_TYPES[dtype])


class StoredTensor:
    """A tensor as torch pickles it: a strided view of a storage."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None = None):
        if not isinstance(storage, Storage):
            raise FormatError("a tensor in it has no storage: the file is damaged")
        if not _is_shape(size) or not _is_shape(stride) or len(size) != len(stride) or not _is_shape((offset,)):
            raise FormatError("a tensor in it has an impossible shape: the file is damaged")
        self.storage = storage
        self.dtype = dtype or storage.dtype
        self.offset, self.size, self.stride = offset, size, stride
        itemsize = NUMPY_TYPES[self.dtype].itemsize
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if prod(size) and (last + 1) * itemsize > storage.nbytes:
            raise FormatError(f"a tensor of shape {tuple(size)} reaches beyond its storage: the file is damaged")

    def array(self, budget: Budget) -> Tensor:
        """The tensor, C order; a read-only view of the file's data where that is possible."""
        count = prod(self.size)
        dense = [prod(self.size[i + 1 :]) for i in range(len(self.size))]
        elements = self.storage.elements(self.dtype)
        if count == 0:
            values = np.zeros(self.size, elements.dtype)
        elif all(n == 1 or step == want for n, step, want in zip(self.size, self.stride, dense)):
            values = elements[self.offset : self.offset + count].reshape(self.size)
        else:
            budget.take(count * elements.itemsize)
            strides = [step * elements.itemsize for step in self.stride]
            view = np.lib.stride_tricks.as_strided(elements[self.offset :], self.size, strides, writeable=False)
            values = view.copy()
        if not values.flags.aligned:
            budget.take(values.nbytes)
            values = values.copy()
        return from_bits(values, self.dtype)


class PickledDtype(Buildable):
    def __init__(self, code: Any):
        if not isinstance(code, str) or code not in _NUMPY_CODES:
            shown = code[:20] if isinstance(code, str) else type(code).__name__
            raise FormatError(f"it holds an array of type {shown!r}, which is no kind of number; refused")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise FormatError("an array type in it is damaged")
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(Buildable):
    """A NumPy array between `_reconstruct` and its state."""

    def __init__(self, budget: Budget):
        self.value: np.ndarray | None = None
        self._budget = budget

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise FormatError("an array in it is damaged")
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # written by Python 2
            self._budget.take(len(data))
            data = data.encode("latin-1")
        self.value = _array(self._budget, shape, dtype, "F" if fortran else "C", data)

    def array(self, budget: Budget) -> np.ndarray:
        if self.value is None:
            raise FormatError("an array in it has no contents: the file is damaged")
        return self.value


def _array(budget: Budget, shape: Any, dtype: Any, order: str, data: Any) -> np.ndarray:
    if not _is_shape(shape) or not isinstance(dtype, PickledDtype) or not isinstance(data, (bytes, memoryview)):
        raise FormatError("an array in it is damaged")
    if prod(shape) * dtype.dtype.itemsize != len(data):
        raise FormatError(f"an array of shape {tuple(shape)} in it does not fit its {len(data)} bytes: damaged")
    values = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
    native = dtype.dtype.newbyteorder("=")
    if values.dtype != native or not values.flags.c_contiguous or not values.flags.aligned:
        budget.take(values.nbytes)
        values = np.array(values, dtype=native, order="C")
    return values


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= _MAX_DIMENSIONS
        and all(type(n) is int and 0 <= n < 1 << 48 for n in value)
    )


def allowed_names(budget: Budget) -> dict[tuple[str, str], Global]:
    """The allow-list: (module, name) -> what stands for it. Copies made on the way are charged to `budget`."""

    def ordered_dict(*arguments: Any) -> OrderedDict:
        pairs = arguments[0] if arguments else []
        budget.take(100 * len(pairs))
        result: OrderedDict = OrderedDict()
        for pair in pairs.items() if isinstance(pairs, dict) else pairs:
            key, value = pair
            if not isinstance(key, (str, int)):
                raise FormatError(f"its pickle uses a {type(key).__name__} as a key; refused")
            result[key] = value
        return result

    def counter(*arguments: Any) -> Counter:
        counts = arguments[0] if arguments else {}
        if not isinstance(counts, dict) or any(type(count) is not int for count in counts.values()):
            raise FormatError("a counter in it is damaged")
        budget.take(100 * len(counts))
        return Counter(counts)

    def encode(text: str, encoding: str = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise FormatError("its pickle encodes text in an unexpected way; refused")
        budget.take(len(text))
        return text.encode("latin-1")

    def no_bytes() -> bytes:
        return b""

    def scalar(dtype: PickledDtype, data: Any) -> Any:
        return _array(budget, (), dtype, "C", data.encode("latin-1") if isinstance(data, str) else data).item()

    def tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
        return StoredTensor(storage, offset, size, stride)

    def tensor_v3(
        storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
    ) -> StoredTensor:
        if not isinstance(dtype, Global) or dtype.value not in NUMPY_TYPES:
            raise FormatError("a tensor in it has an unknown element type")
        return StoredTensor(storage, offset, size, stride, dtype.value)

    def first(value: Any, *_: Any) -> Any:
        return value

    def from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
        if not isinstance(function, Global) or function.build is None or not isinstance(arguments, tuple):
            raise FormatError("a tensor in it is rebuilt in an unexpected way; refused")
        return function.build(*arguments)

    def size(values: Any = ()) -> tuple:
        budget.take(8 * len(values))
        return tuple(values)

    table = {
        ("collections", "OrderedDict"): ordered_dict,
        ("collections", "Counter"): counter,
        ("_codecs", "encode"): encode,
        ("__builtin__", "bytes"): no_bytes,  # how protocols 0 to 2 write empty data; it takes no argument
        ("numpy", "dtype"): lambda code, *_: PickledDtype(code),
        ("torch", "Size"): size,
        ("torch", "device"): lambda *_: None,
        ("torch._utils", "_rebuild_tensor"): tensor_v2,
        ("torch._utils", "_rebuild_tensor_v2"): tensor_v2,
        ("torch._utils", "_rebuild_tensor_v3"): tensor_v3,
        ("torch._utils", "_rebuild_parameter"): first,
        ("torch._utils", "_rebuild_parameter_with_state"): first,
        ("torch._tensor", "_rebuild_from_type_v2"): from_type,
        ("jittor", "Var"): first,
        ("jittor", "jittor_core.Var"): first,
        ("jittor_core", "Var"): first,
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = lambda *_: PickledArray(budget)
        table[f"{core}.multiarray", "scalar"] = scalar
        table[f"{core}.numeric", "_frombuffer"] = lambda data, dtype, shape, order: _array(
            budget, shape, dtype, "F" if order == "F" else "C", data
        )
    names = {key: Global(".".join(key), build=function) for key, function in table.items()}
    for key in [("numpy", "ndarray"), ("torch", "Tensor"), ("torch.nn.parameter", "Parameter")]:
        names[key] = Global(".".join(key))
    for dtype in NUMPY_TYPES:
        names["torch", dtype] = Global(f"torch.{dtype}", value=dtype)
    for storage, dtype in STORAGE_TYPES.items():
        for module in ("torch", "torch.cuda"):
            names[module, storage] = Global(f"{module}.{storage}", value=dtype)
    names["torch.storage", "UntypedStorage"] = Global("torch.storage.UntypedStorage", value="uint8")
    return names


STORAGE_TYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


def plain(value: Any, budget: Budget) -> Any:
    """What a pickle built, as dicts, lists, tuples, numbers, text, tensors and `Skipped`; nesting and size bounded."""
    left = [1_000_000]

    def visit(value: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > 12 or left[0] < 0:
            raise FormatError("its contents are nested too deeply for a checkpoint; refused")
        if isinstance(value, (StoredTensor, PickledArray)):
            return value.array(budget)
        if isinstance(value, Counter):  # of numbers only; torch's MultiStepLR keeps its milestones in one
            return value
        if isinstance(value, dict):
            return {key: visit(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(visit(item, depth + 1) for item in value)
        if isinstance(value, Global):
            return value.name
        if value is None or isinstance(value, (str, int, float, bytes, np.ndarray, Skipped)):
            return value
        if isinstance(value, (Storage, PickledDtype)):
            return Skipped("torch.Storage" if isinstance(value, Storage) else "numpy.dtype")
        raise FormatError(f"it holds a {type(value).__name__} where no checkpoint has one; refused")

    return visit(value, 0)
