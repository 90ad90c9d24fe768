"""Verdicts from a noise floor: is Jittor further from float64 than PyTorch's own float32 is?

Two correct float32 programs do not agree to the last digit, and how far they are apart depends on the weights and the
picture. So both are held against the twin in float64 in the same run, and PyTorch's own distance says how much
rounding the quantity has. `docs/parity.md` defends the numbers below.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from jrdp.comparison.measures import difference

# Jittor may be this many times as far from float64 as PyTorch's float32 is: a sum of n numbers one after the other is
# about sqrt(n / lanes) times as rough as one in lanes: 24 for a 3x3 convolution of 512 channels in 8 lanes.
FACTOR = 24.0
FLOOR = 16 * 2.0**-23  # and 16 units in the last place of float32, where PyTorch happens to be nearly exact


@dataclass(frozen=True)
class Verdict:
    """One quantity's distances to float64, and the most that Jittor's may be.

    ours, theirs: Jittor's and PyTorch float32's distance, as measured by `measure`; theirs is None where the twin
    itself ran in float64, so that there is no floor and `outer` alone decides. allowed: factor * theirs + floor.
    outer: the fixed tolerance, which holds whatever PyTorch does.
    """

    measure: str
    ours: float
    theirs: float | None
    allowed: float
    outer: float

    @property
    def passed(self) -> bool:
        """Within both bounds; false for what is not finite."""
        return bool(self.ours <= self.allowed and self.ours <= self.outer)

    @property
    def used(self) -> float:
        """The share of what is allowed that the distance takes; infinite for one that is not finite."""
        limit = min(self.allowed, self.outer)
        share = self.ours / limit if limit else float(self.ours > 0)
        return share if np.isfinite(share) else float("inf")

    @property
    def ratio(self) -> float | None:
        """Ours over theirs, None where PyTorch is exact or was not measured."""
        return self.ours / self.theirs if self.theirs else None

    def __str__(self) -> str:
        if self.theirs is None or self.ours > self.outer:
            return f"{self.measure} {self.ours:.3g} from float64, tolerance {self.outer:.3g}"
        return (
            f"{self.measure} {self.ours:.3g} from float64, PyTorch's float32 {self.theirs:.3g}, "
            f"allowed {self.allowed:.3g}"
        )

    def as_json(self) -> dict:
        """Plain numbers; what is not finite becomes None."""
        values = {**asdict(self), "passed": self.passed, "ratio": self.ratio}
        return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}


def weigh(
    measure: str,
    ours: float,
    theirs: float | None,
    outer: float,
    factor: float = FACTOR,
    floor: float = FLOOR,
) -> Verdict:
    """The verdict on two distances to float64, measured already (theirs None: by the tolerance alone)."""
    allowed = float("inf") if theirs is None else factor * float(theirs) + floor
    return Verdict(measure, float(ours), None if theirs is None else float(theirs), allowed, float(outer))


def judge(
    ours: np.ndarray,
    single: np.ndarray | None,
    double: np.ndarray,
    outer: float,
    outer_element: float | None = None,
    factor: float = FACTOR,
    floor: float = FLOOR,
) -> list[Verdict]:
    """Two verdicts on one array: its relative L2 distance, and its worst element over float64's largest.

    ours: Jittor's; single: PyTorch's in float32, None where only the tolerances count; double: the twin's in float64.
    outer: the fixed tolerance of the relative L2; outer_element: of the worst element, None for the same one.
    Raises ValueError where the shapes differ.
    """
    mine = difference(ours, double)
    other = None if single is None else difference(single, double)
    element = outer if outer_element is None else outer_element
    return [
        weigh(name, getattr(mine, key), None if other is None else getattr(other, key), limit, factor, floor)
        for name, key, limit in (
            ("relative L2", "relative", outer),
            ("worst element over the largest", "worst_of_scale", element),
        )
    ]


def judge_gap(
    measure: str,
    ours: np.ndarray,
    single: np.ndarray | None,
    double: np.ndarray,
    outer: float,
    factor: float = FACTOR,
    floor: float = FLOOR,
) -> Verdict:
    """The verdict on the largest absolute difference: for pixels, scores and probabilities.

    floor: in the unit of the quantity. Raises ValueError where the shapes differ.
    """
    theirs = None if single is None else difference(single, double).worst
    return weigh(measure, difference(ours, double).worst, theirs, outer, factor, floor)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The one that uses most of what it is allowed; a failed one before all others. Raises ValueError for none."""
    return max(verdicts, key=lambda verdict: (not verdict.passed, verdict.used))
