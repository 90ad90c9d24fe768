"""How far two arrays are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def relative(ours: float, theirs: float) -> float:
    """The relative difference of two losses; of one that is zero, as without a positive RoI, the difference itself."""
    return abs(ours - theirs) / abs(theirs) if theirs else abs(ours)


@dataclass(frozen=True)
class Difference:
    """Of an array `ours` against a reference of the same shape.

    relative: L2 norm of the difference over the reference's, in float64 (0 for two zeros; inf where one is not finite
        or the reference alone is zero). worst: largest absolute difference, at `index`. scale: the reference's largest
        absolute value. norms: L2 norms of ours and of the reference.
    """

    relative: float
    worst: float
    index: tuple[int, ...]
    scale: float
    norms: tuple[float, float]

    @property
    def worst_of_scale(self) -> float:
        """The largest difference as a share of the reference's largest value."""
        return _ratio(self.worst, self.scale)

    @property
    def norm_error(self) -> float:
        """Relative difference of the two norms."""
        return _ratio(abs(self.norms[0] - self.norms[1]), self.norms[1])

    def as_json(self) -> dict:
        """Plain numbers; what is not finite becomes None."""
        values = {"relative_l2": self.relative, "worst": self.worst, "index": list(self.index), "scale": self.scale}
        values |= {"norm_error": self.norm_error, "worst_of_scale": self.worst_of_scale}
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


def difference(ours: np.ndarray, reference: np.ndarray) -> Difference:
    """Compare two arrays; raises ValueError when their shapes differ."""
    if ours.shape != reference.shape:
        raise ValueError(f"shapes differ: {ours.shape} and {reference.shape}")
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    if a.size == 0:
        return Difference(0.0, 0.0, (), 0.0, (0.0, 0.0))
    broken = ~(np.isfinite(a) & np.isfinite(b))
    if broken.any():
        index = tuple(int(i) for i in np.argwhere(broken)[0])
        return Difference(np.inf, np.inf, index, np.inf, (np.inf, np.inf))
    gap = np.abs(a - b)
    index = tuple(int(i) for i in np.unravel_index(gap.argmax(), gap.shape))
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    relative = _ratio(float(np.linalg.norm(gap)), norms[1])
    return Difference(relative, float(gap.max()), index, float(np.abs(b).max()), norms)


def match_greedily(similarity: np.ndarray, least: float) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) with similarity >= `least`, the most similar first."""
    pairs, rows, columns = [], set(), set()
    for flat in np.argsort(-similarity, axis=None, kind="stable"):
        row, column = (int(i) for i in np.unravel_index(flat, similarity.shape))
        if similarity[row, column] < least:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else float("inf")
    return part / whole
