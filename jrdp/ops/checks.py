"""What operators refuse."""

from __future__ import annotations


def need_float32(name: str, value, *shape) -> None:
    """Raise ValueError unless the Var `value` is float32 of this shape; a letter stands for a dimension of any length."""
    fits = value.ndim == len(shape) and all(isinstance(n, str) or n == m for n, m in zip(shape, value.shape))
    if not fits or value.dtype != "float32":
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name}: expected float32 [{expected}], got {value.dtype} {list(value.shape)}")
