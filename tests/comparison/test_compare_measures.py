"""Distances and matching against plain statements of what they are."""

from __future__ import annotations

import gc
import json
import sys

import numpy as np
import pytest

from jrdp.comparison.exchange import load_batch, save_arrays, save_batch
from jrdp.boxes import iou
from jrdp.comparison.measures import difference, match_greedily
from jrdp.comparison.report import Report, text_table
from jrdp.comparison.synthetic import synthetic_state
from jrdp.structures import ImageBatch, Targets


def test_an_interrupted_exchange_says_nothing(tmp_path, monkeypatch):
    complaints = []

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sys, "unraisablehook", lambda complaint: complaints.append(str(complaint.exc_value)))
        patched.setattr(np.lib.format, "write_array", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_arrays(tmp_path / "a.npz", {"a": np.ones(3)})
        gc.collect()
    assert complaints == []


def test_difference_by_hand():
    reference = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    ours = np.array([[3.0, 0.0], [0.5, 4.0]], np.float32)
    found = difference(ours, reference)
    assert found.relative == pytest.approx(0.1)
    assert (found.worst, found.index, found.scale) == (0.5, (1, 0), 4.0)
    assert found.worst_of_scale == pytest.approx(0.125)
    assert found.norm_error == pytest.approx((np.sqrt(25.25) - 5) / 5)


def test_difference_at_the_edges():
    zeros = np.zeros((2, 3), np.float32)
    assert difference(zeros, zeros).relative == 0
    assert difference(zeros + 1, zeros).relative == float("inf")
    assert difference(np.zeros((0, 4)), np.zeros((0, 4))).relative == 0
    with pytest.raises(ValueError, match="shapes differ"):
        difference(zeros, zeros.T)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_is_never_within_tolerance(broken):
    ours = np.ones((2, 2), np.float32)
    ours[1, 0] = broken
    found = difference(ours, ours.copy())
    assert found.relative == float("inf") and found.index == (1, 0)
    json.dumps(found.as_json(), allow_nan=False)


def test_a_flattened_box_is_paired_with_itself():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 20, 30], [7, 7, 7, 7]], np.float32)
    assert sorted(match_greedily(iou(boxes, boxes), 0.9)) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_matching_takes_the_most_similar_first_and_each_once():
    similarity = np.array([[0.9, 0.8, 0.1], [0.95, 0.7, 0.1], [0.1, 0.2, 0.3]])
    assert match_greedily(similarity, 0.5) == [(1, 0), (0, 1)]
    assert match_greedily(np.zeros((0, 4)), 0.5) == []


def test_a_batch_survives_the_journey(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, 3, 32, 64)).astype(np.float32)
    batch = ImageBatch(images, [(30, 60), (32, 64)], [(60, 120), (64, 128)], [7, 9])
    bitmap = (generator.random((32, 64)) > 0.5).astype(np.uint8)
    parts = [np.array([1.0, 2, 5, 2, 5, 8]), np.array([7.0, 7, 9, 7, 9, 9, 7, 9])]
    targets = [
        Targets(np.zeros((0, 4), np.float32), [], [], (30, 60)),
        Targets(np.array([[1, 2, 9, 9], [0, 0, 4, 4]], np.float32), [parts, None], [None, bitmap], (32, 64)),
    ]
    save_batch(tmp_path / "batch.npz", batch, targets)
    again, targets_again = load_batch(tmp_path / "batch.npz")
    np.testing.assert_array_equal(again.images, images)
    assert (again.sizes, again.original_sizes, again.image_ids) == (batch.sizes, batch.original_sizes, [7, 9])
    assert len(targets_again) == 2 and len(targets_again[0]) == 0
    np.testing.assert_array_equal(targets_again[1].boxes, targets[1].boxes)
    assert targets_again[1].size == (32, 64) and targets_again[1].polygons[1] is None
    for part, expected in zip(targets_again[1].polygons[0], parts):
        np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(targets_again[1].bitmaps[1], bitmap)
    save_batch(tmp_path / "batch.npz", batch)
    assert load_batch(tmp_path / "batch.npz")[1] == []


def test_report_holds_everything_in_one_file(tmp_path):
    report = Report("a < b")
    report.table(["name", "value"], [["<script>", 0.12345], ["x", 2]], [True, False])
    report.pictures([("picture", np.zeros((4, 5, 3), np.uint8))])
    report.failures.append("one & only")
    report.write(tmp_path / "out", {"value": 1})
    page = (tmp_path / "out/report.html").read_text()
    assert "a &lt; b" in page and "&lt;script&gt;" in page and "one &amp; only" in page and "0.123" in page
    assert "data:image/jpeg;base64," in page and "http" not in page
    data = json.loads((tmp_path / "out/report.json").read_text())
    assert data["passed"] is False and data["failures"] == ["one & only"] and data["value"] == 1
    assert text_table(["a", "b"], [["xy", 1.0]]).splitlines() == ["a   b", "xy  1"]


def test_synthetic_weights_depend_on_name_and_seed_only():
    shapes = {"backbone.body.layer1.0.conv3.weight": [8, 4, 1, 1], "rpn.head.scales.0.scale": [1]}
    first, again = synthetic_state(shapes, 3), synthetic_state(dict(reversed(shapes.items())), 3)
    other = synthetic_state(shapes, 4)
    for name, value in first.items():
        assert value.dtype == np.float32 and list(value.shape) == shapes[name]
        np.testing.assert_array_equal(value, again[name])
        assert not np.array_equal(value, other[name])
