"""Concatenation as one operator: Jittor's own is compiled anew wherever a length is 1 that was not before."""

from __future__ import annotations

import math
from typing import Sequence

import jittor as jt

from .compile import Kernels

MAX_PARTS = 5  # kJoinParts in kernels/join_parts.h
KERNELS = Kernels(cpu="join.h", cuda="join.cuh")


def join(parts: Sequence, dim: int, kernels: Kernels = KERNELS):
    """`jt.concat` of up to five Vars of one dtype along `dim` (not negative), differentiable; empty parts are allowed.

    No shape compiles anything anew, and neither does another number of parts.

    Raises:
        ValueError: no part or too many, or parts that differ in dtype or in a length other than that of `dim`.
    """
    parts = list(parts)
    if not 1 <= len(parts) <= MAX_PARTS:
        raise ValueError(f"join takes 1 to {MAX_PARTS} parts, got {len(parts)}")
    first = parts[0]
    outer, inner = list(first.shape[:dim]), list(first.shape[dim + 1 :])
    for k, part in enumerate(parts):
        if [*part.shape[:dim], *part.shape[dim + 1 :]] != outer + inner or part.ndim != first.ndim:
            raise ValueError(f"part {k}: shape {list(part.shape)} does not go with {list(first.shape)} along {dim}")
        if part.dtype != first.dtype:
            raise ValueError(f"part {k}: dtype {part.dtype}, part 0 has {first.dtype}")
    rows = math.prod(outer)
    length = sum(part.shape[dim] for part in parts)
    matrices = [part.reshape(rows, part.shape[dim] * math.prod(inner)) for part in parts]
    return _Join.apply(kernels, *matrices).reshape(*outer, length, *inner)


class _Join(jt.Function):
    """Matrices `[R, W_k]` -> `[R, sum of W_k]`; those that are not there are stood in for by the first, unread."""

    def execute(self, kernels, *parts):
        self.kernels, self.parts = kernels, len(parts)
        self.widths, self.rows, self.dtype = [part.shape[1] for part in parts], parts[0].shape[0], parts[0].dtype
        unused = [parts[0]] * (MAX_PARTS - len(parts))
        shape = [self.rows, sum(self.widths)]
        return kernels.run(_JOIN, [*parts, *unused], [shape], [self.dtype], {"parts": self.parts})[0]

    def grad(self, gradient):
        shapes = [[self.rows, width] for width in self.widths] + [[1, 1]] * (MAX_PARTS - self.parts)
        parts = self.kernels.run(_SPLIT, [gradient], shapes, [gradient.dtype] * MAX_PARTS, {"parts": self.parts})
        return None, *parts[: self.parts]


def _copies(whole: str, part: str, to_whole: bool) -> str:
    """C++ that copies each part into its columns of the whole, or out of them."""
    lines = [
        'const int count = (int)data["parts"];',
        f"JoinParts<{whole}0_type> parts = join_parts<{whole}0_type>({whole}0_shape0, {whole}0_shape1);",
    ]
    for k in range(MAX_PARTS):
        lines.append(f"if (count > {k}) join_add(parts, ({whole}0_type*){part}{k}_p, {part}{k}_shape1);")
    lines.append(f"join_copy<{str(to_whole).lower()}>(parts, ({whole}0_type*){whole}0_p);")
    return "\n".join(lines)


_JOIN = _copies(whole="out", part="in", to_whole=True)
_SPLIT = _copies(whole="in", part="out", to_whole=False)
