"""The names that a checkpoint's pickle may ask for, each with a harmless stand-in."""

from __future__ import annotations

from collections import Counter, OrderedDict
from math import prod
from typing import Any, Callable

import numpy as np

from jrdp.interchange.pickles import Buildable, Global, Skipped, UnusualTensor, is_key
from jrdp.interchange.tensors import NUMPY_TYPES, Budget, FormatError, Tensor, from_bits

_MAX_DIMENSIONS = 32
_NUMPY_CODES = {
    "f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "?",
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
}  # fmt: skip

# Bytes of an element of torch's types that no weight file holds: such tensors are stepped over.
UNUSUAL_TYPES = {
    "complex32": 4, "complex64": 8, "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8, "qint8": 1, "quint8": 1,
    "qint32": 4, "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
# The functions that rebuild torch's tensors of other kinds, what those are called, and what makes a plain one of them.
_UNUSUAL_TENSORS = {
    "_rebuild_sparse_tensor": ("a sparse tensor", "tensor.to_dense()"),
    "_rebuild_sparse_csr_tensor": ("a sparse tensor", "tensor.to_dense()"),
    "_rebuild_nested_tensor": ("a nested tensor", ""),
    "_rebuild_qtensor": ("a quantised tensor", "tensor.dequantize()"),
    "_rebuild_meta_tensor_no_storage": ("a tensor of the device meta, which has no values", ""),
    "_rebuild_wrapper_subclass": ("a tensor of a class of its own", ""),
}
_QUANTISATION_SCHEMES = (
    "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)  # fmt: skip


class Storage:
    """A flat run of elements; `fill` comes later, when the file's data part is read."""

    def __init__(self, dtype: str, count: int):
        self.dtype = dtype
        self.count = count
        self.data: bytes | memoryview | None = None

    @property
    def nbytes(self) -> int:
        return self.count * (UNUSUAL_TYPES.get(self.dtype) or NUMPY_TYPES[self.dtype].itemsize)

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
    """An element type; `dtype` is None for one that is no number, whose arrays are stepped over."""

    def __init__(self, code: Any):
        known = isinstance(code, str) and code in _NUMPY_CODES
        self.dtype = np.dtype(code) if known else None
        self.code = code[:20] if isinstance(code, str) else type(code).__name__

    def set_state(self, state: Any) -> None:
        if self.dtype is None:
            return
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise FormatError("an array type in it is damaged")
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(Buildable):
    """A NumPy array between `_reconstruct` and its state."""

    def __init__(self, budget: Budget):
        self.value: np.ndarray | UnusualTensor | None = None
        self._budget = budget

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise FormatError("an array in it is damaged")
        _, shape, dtype, fortran, data = state
        if isinstance(data, str) and _is_number(dtype):  # written by Python 2
            self._budget.take(len(data))
            data = data.encode("latin-1")
        self.value = _array(self._budget, shape, dtype, "F" if fortran else "C", data)

    def array(self, budget: Budget) -> np.ndarray | UnusualTensor:
        if self.value is None:
            raise FormatError("an array in it has no contents: the file is damaged")
        return self.value


def _is_number(dtype: Any) -> bool:
    return isinstance(dtype, PickledDtype) and dtype.dtype is not None


def _array(budget: Budget, shape: Any, dtype: Any, order: str, data: Any) -> np.ndarray | UnusualTensor:
    if isinstance(dtype, PickledDtype) and dtype.dtype is None:
        return UnusualTensor(f"an array of NumPy's type {dtype.code!r}")
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
            if is_key(key):
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
        if isinstance(data, str) and _is_number(dtype):
            data = data.encode("latin-1")
        value = _array(budget, (), dtype, "C", data)
        return value.item() if isinstance(value, np.ndarray) else value

    def stored(storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None = None) -> Any:
        kind = dtype or getattr(storage, "dtype", None)
        if kind in UNUSUAL_TYPES:
            return UnusualTensor(f"a tensor of torch.{kind}", "" if kind.startswith("q") else "tensor.float()")
        return StoredTensor(storage, offset, size, stride, dtype)

    def tensor_v2(
        storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = None, hooks: Any = None, metadata: Any = None
    ) -> Any:
        if isinstance(metadata, dict) and metadata.get("neg"):  # the storage holds the numbers with the other sign
            return UnusualTensor("a negative view", "tensor.resolve_neg()")
        return stored(storage, offset, size, stride)

    def tensor_v3(
        storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
    ) -> Any:
        if not isinstance(dtype, Global) or dtype.value not in (*NUMPY_TYPES, *UNUSUAL_TYPES):
            raise FormatError("a tensor in it has an unknown element type")
        return stored(storage, offset, size, stride, dtype.value)

    def unusual(name: str, remedy: str) -> Callable[..., UnusualTensor]:
        return lambda *_: UnusualTensor(name, remedy)

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
        ("torch.serialization", "_get_layout"): lambda *_: None,
        ("jittor", "Var"): first,
        ("jittor", "jittor_core.Var"): first,
        ("jittor_core", "Var"): first,
    }
    for function, kind in _UNUSUAL_TENSORS.items():
        table["torch._utils", function] = unusual(*kind)
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray", "_reconstruct"] = lambda *_: PickledArray(budget)
        table[f"{core}.multiarray", "scalar"] = scalar
        table[f"{core}.numeric", "_frombuffer"] = lambda data, dtype, shape, order: _array(
            budget, shape, dtype, "F" if order == "F" else "C", data
        )
    names = {key: Global(".".join(key), build=function) for key, function in table.items()}
    for key in [("numpy", "ndarray"), ("torch", "Tensor"), ("torch.nn.parameter", "Parameter")]:
        names[key] = Global(".".join(key))
    for dtype in (*NUMPY_TYPES, *UNUSUAL_TYPES):
        names["torch", dtype] = Global(f"torch.{dtype}", value=dtype)
    for scheme in _QUANTISATION_SCHEMES:
        names["torch", scheme] = Global(f"torch.{scheme}")
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
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
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
