"""What is handed from one framework to the other, and how the decisions that differ are judged."""

from __future__ import annotations

import numpy as np
import pytest

from jrdp.comparison.choices import Decisions, pooling_choice
from jrdp.comparison.explanation import Imposed


def test_pooling_takes_the_first_of_the_largest():
    rng = np.random.default_rng(3)
    x = rng.integers(0, 4, (2, 3, 7, 9)).astype(np.float32)  # many ties
    index = pooling_choice(x)
    assert index.shape == (2, 3, 4, 5)
    for n, c, i, j in np.ndindex(index.shape):
        rows = range(max(0, 2 * i - 1), min(7, 2 * i + 2))
        columns = range(max(0, 2 * j - 1), min(9, 2 * j + 2))
        places = [row * 9 + column for row in rows for column in columns]
        values = [x[n, c].flat[place] for place in places]
        assert index[n, c, i, j] == places[int(np.argmax(values))]


def test_decisions_survive_the_file(tmp_path):
    rng = np.random.default_rng(4)
    given = Decisions(
        relus=[rng.random((2, 5, 3, 7)) > 0.5, rng.random((1, 3, 1, 1)) > 0.5],
        pooling=[rng.integers(0, 9, (2, 5, 2, 4))],
        smaller=rng.random((6, 4)) > 0.5,
        positive=rng.random((2, 11)) > 0.5,
        maps={"cls_logits_P3": rng.random((2, 1, 3, 4), np.float32)},
        proposals=[(rng.random((3, 4), np.float32), rng.random(3, np.float32)), (np.zeros((0, 4)), np.zeros(0))],
        rois=rng.random((4, 5), np.float32),
        masks=rng.integers(0, 2, (4, 32, 32)).astype(np.uint8),
    )
    given.save(tmp_path / "decisions.npz")
    read = Decisions.load(tmp_path / "decisions.npz")
    for name in ("smaller", "positive", "rois", "masks"):
        assert np.array_equal(getattr(given, name), getattr(read, name))
    for name in ("relus", "pooling"):
        assert len(getattr(given, name)) == len(getattr(read, name))
        assert all(np.array_equal(a, b) for a, b in zip(getattr(given, name), getattr(read, name)))
    assert np.array_equal(given.maps["cls_logits_P3"], read.maps["cls_logits_P3"])
    assert all(np.array_equal(a, b) for x, y in zip(given.proposals, read.proposals) for a, b in zip(x, y))


def answer(**changes) -> dict:
    """The account of a batch in which all is well: one ReLU decision differs, within rounding."""
    relu = {
        "place": "layer2.0", "elements": 1000, "given": 1, "given_largest": 1e-6, "other": 2, "other_largest": 2e-6,
        "rounding": 5e-6, "scale": 1.0,
    }
    minimum = {
        "place": "minimum in the box loss", "elements": 40, "given": 1, "given_largest": 1e-4, "other": None,
        "other_largest": None, "rounding": None, "scale": 100.0,
    }
    proposals = {"given": 5, "own": 5, "alone": 0, "score": 1e-8}
    checks = {"locations": 0, "rois": 0, "positives": 3, "sampling": {"samples": 9, "differing": 1}}
    checks |= {"proposals": [proposals], "own_proposals": [proposals]}
    parts = {"relu": relu, "minimum": minimum, "checks": checks, "proposals": proposals}
    for name, (part, value) in changes.items():
        parts[part] = parts[part] | {name: value}
    parts["checks"]["proposals"] = [parts["proposals"]]
    return {"relus": [parts["relu"]], "others": [parts["minimum"]], "checks": parts["checks"]}


def test_decisions_within_rounding_are_no_failure():
    imposed = Imposed({}, {}, answer())
    assert imposed.failures() == []
    assert imposed.differing == 2 and len(imposed.rows()) == 2


@pytest.mark.parametrize(
    "change,words",
    [
        ({"given_largest": ("relu", 1e-3)}, "layer2.0 differ, one where the input is 0.001"),
        ({"given_largest": ("minimum", 0.5)}, "minimum in the box loss differ"),
        ({"locations": ("checks", 2)}, "2 locations"),
        ({"rois": ("checks", 1)}, "1 RoIs learn a mask on one side only"),
        ({"alone": ("proposals", 1)}, "from the same maps image 0 has 5 proposals"),
        ({"score": ("proposals", 0.2)}, "scores 0.2 apart"),
    ],
)
def test_each_wrong_decision_is_named(change, words):
    failures = Imposed({}, {}, answer(**change)).failures()
    assert len(failures) == 1 and words in failures[0]


def test_what_tf32_moves_is_no_wrong_decision():
    moved = {"given_largest": ("relu", 5e-3)}
    for same_device in (True, False):
        assert len(Imposed({}, {}, answer(**moved), same_device).failures()) == 1
    assert Imposed({}, {}, answer(**moved), same_device=False, tf32=True).failures() == []
    assert Imposed({}, {}, answer(given_largest=("minimum", 0.2)), tf32=True).failures() == []
    wrong = [{"given_largest": ("relu", 0.1)}, {"given_largest": ("minimum", 3.0)}, {"locations": ("checks", 2)}]
    for change in wrong:
        assert len(Imposed({}, {}, answer(**change), same_device=False, tf32=True).failures()) == 1


def test_scores_may_come_from_the_fast_exponential_of_a_gpu():
    fast = answer(score=("proposals", 4e-6))
    assert len(Imposed({}, {}, fast).failures()) == 1
    assert Imposed({}, {}, fast, cuda=True).failures() == []
