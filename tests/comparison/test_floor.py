"""Verdicts from a noise floor, on numbers small enough to do by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jrdp.comparison.floor import judge, judge_gap, weigh, worst

DOUBLE = np.array([3.0, 0.0, 4.0])  # norm 5, largest 4


def moved(by):
    return DOUBLE + np.array([0.0, by, 0.0])


def test_distances_to_float64_by_hand():
    l2, element = judge(moved(0.5), moved(0.25), DOUBLE, outer=1.0, factor=3, floor=0.01)
    assert (l2.ours, l2.theirs, l2.allowed) == pytest.approx((0.1, 0.05, 0.16))
    assert (element.ours, element.theirs, element.allowed) == pytest.approx((0.125, 0.0625, 0.1975))
    assert l2.passed and element.passed and l2.ratio == pytest.approx(2)


@pytest.mark.parametrize(
    "ours,theirs,outer,passed",
    [
        (3e-3, 1e-3, 1.0, True),  # three times as far as PyTorch, four allowed
        (5e-3, 1e-3, 1.0, False),  # five times
        (9e-7, 0.0, 1.0, True),  # PyTorch is exact: the floor alone
        (2e-6, 0.0, 1.0, False),
        (3e-3, 1e-3, 2e-3, False),  # the tolerance holds whatever PyTorch does
        (1.9e-3, None, 2e-3, True),  # no floor was measured: the tolerance alone
        (float("nan"), 1e-3, 1.0, False),
        (float("inf"), float("inf"), 1.0, False),
    ],
)
def test_both_bounds_count(ours, theirs, outer, passed):
    verdict = weigh("distance", ours, theirs, outer, factor=4, floor=1e-6)
    assert verdict.passed is passed
    assert json.loads(json.dumps(verdict.as_json(), allow_nan=False))["passed"] is passed


def test_what_is_not_finite_fails():
    broken = np.array([3.0, np.nan, 4.0])
    assert not any(v.passed for v in judge(broken, DOUBLE, DOUBLE, outer=1.0))
    assert not judge_gap("gap", broken, DOUBLE, DOUBLE, outer=1.0).passed


def test_absolute_gaps_have_their_own_floor():
    verdict = judge_gap("boxes, px", moved(0.011), moved(0.001), DOUBLE, outer=0.02, factor=8, floor=0.004)
    assert verdict.passed and verdict.allowed == pytest.approx(0.012)
    assert not judge_gap("boxes, px", moved(0.013), moved(0.001), DOUBLE, outer=0.02, factor=8, floor=0.004).passed
    assert str(verdict) == "boxes, px 0.011 from float64, PyTorch's float32 0.001, allowed 0.012"


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shapes differ"):
        judge(DOUBLE[:2], DOUBLE, DOUBLE, outer=1.0)


def test_the_worst_is_the_one_nearest_to_its_bound():
    near, far, over = (weigh(n, v, 1e-3, 1.0, 4, 0.0) for n, v in (("near", 3.9e-3), ("far", 1e-3), ("over", 4.1e-3)))
    assert worst([far, near]) is near and worst([near, over, far]) is over
    exact, tiny = weigh("exact", 0.0, 0.0, 1.0, 4, 0.0), weigh("tiny", 1e-9, 0.0, 1.0, 4, 0.0)
    assert worst([exact, tiny]) is tiny and not tiny.passed
