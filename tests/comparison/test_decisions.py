"""The decisions behind a set of detections: replayed, and taken the other way where they were close."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jrdp.comparison.decisions import BEST, IOU, LAST, ORDER, THRESHOLD, Replay, Rounding, explain, locate, read_heads
from jrdp.config import FcosConfig
from jrdp.models.fcos_decode import decode

SIZE = (96, 128)
CONFIG = FcosConfig()
SMALL = 1e-5


def logit(p):
    return np.log(p / (1 - p))


def maps(seed=0, spread=2.0):
    """Head answers of a small picture by name, float32."""
    generator = np.random.default_rng(seed)
    out = {}
    for level, stride in enumerate((8, 16, 32, 64, 128), start=3):
        height, width = -(-SIZE[0] // stride), -(-SIZE[1] // stride)
        out[f"cls_logits_P{level}"] = generator.normal(-3, spread, (1, 1, height, width)).astype(np.float32)
        out[f"bbox_reg_P{level}"] = generator.uniform(3, 40, (1, 4, height, width)).astype(np.float32)
        out[f"centerness_P{level}"] = generator.normal(0, 1, (1, 1, height, width)).astype(np.float32)
    return out


def rounding(heads, by=SMALL):
    return Rounding(*(np.full(len(heads.level), by) for _ in range(3)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limits", [{}, {"pre_nms_top_n": 20, "post_nms_top_n": 10}, {"pre_nms_threshold": 0.9999}])
def test_a_replay_is_the_decoding(seed, limits):
    config = CONFIG.model_copy(update=limits)
    answers = maps(seed)
    levels = [[answers[f"{name}_P{k}"] for k in range(3, 8)] for name in ("cls_logits", "bbox_reg", "centerness")]
    (found,) = decode(*levels, [SIZE], config)
    heads = read_heads(answers, SIZE)
    places = locate(heads, found.boxes, found.scores)
    assert len(places) > 4 or limits
    np.testing.assert_array_equal(places, Replay(heads, config).kept())


def test_a_detection_that_no_location_gives_is_noticed():
    heads = read_heads(maps(), SIZE)
    assert locate(heads, heads.boxes[:2] + 0.02, heads.score[:2]) is None
    assert locate(heads, heads.boxes[:2], np.sqrt(heads.score[:2])) is None
    assert read_heads({"cls_logits_P3": np.zeros((1, 1, 2, 2))}, SIZE) is None


def handmade(probability, boxes, centre=2.0):
    """Heads with one location on each of P3..P7 (P3 has as many as are given more)."""
    count = len(probability)
    level = np.array([3] * (count - 4) + [4, 5, 6, 7])
    centres = np.full(count, centre)
    base = read_heads(maps(), SIZE)
    return dataclasses.replace(
        base, level=level, cell=np.arange(count), logit=logit(np.array(probability)), centre=centres,
        boxes=np.array(boxes, float),
    )


APART = [[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9], [60, 0, 69, 9], [80, 0, 89, 9], [100, 0, 109, 9]]
SURE = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


@pytest.mark.parametrize("by,found", [(1e-7, True), (1e-4, False)])
def test_a_score_at_the_threshold(by, found):
    heads = handmade([0.9, 0.05 + by, 0.7, 0.6, 0.5, 0.4], APART)
    replay = Replay(heads, CONFIG, rounding(heads))
    assert replay.kept().tolist() == [0, 1, 2, 3, 4, 5]
    reasons = explain(replay, [0, 2, 3, 4, 5], rounding(heads))
    if not found:
        assert reasons is None
        told = replay.reason(1, rounding(heads))
        assert told.kind == THRESHOLD and told.margin == pytest.approx(by, rel=1e-3) and not told.close
        return
    (reason,) = reasons
    assert (reason.kind, reason.subject) == (THRESHOLD, 1) and reason.margin == pytest.approx(by, rel=1e-2)
    assert "P3 location 1: 0.0500001 against 0.05, margin 9.9e-08" in reason.told(heads)


def test_the_best_of_a_level_without_a_candidate():
    probability = [0.04, 0.04 + 1e-8, 0.7, 0.6, 0.5, 0.4]
    heads = handmade(probability, APART)
    replay = Replay(heads, CONFIG, rounding(heads))
    assert replay.kept().tolist() == [1, 2, 3, 4, 5]
    (reason,) = explain(replay, [0, 2, 3, 4, 5], rounding(heads))
    assert (reason.kind, reason.subject, reason.other) == (BEST, 0, 1)
    assert explain(replay, [2, 3, 4, 5], rounding(heads)) is None


def overlapping(iou):
    """A second box of width 100 beside [0, 0, 99, 9], for an IoU with +1 widths: (100 - s) / (100 + s)."""
    shift = 100 * (1 - iou) / (1 + iou)
    return [[0, 0, 99, 9], [shift, 0, 99 + shift, 9], *[[0, 20 * k, 99, 20 * k + 9] for k in range(1, 5)]]


@pytest.mark.parametrize("by,found", [(1e-7, True), (-1e-7, True), (1e-4, False)])
def test_an_iou_at_the_nms_threshold(by, found):
    threshold = float(np.float32(0.6))
    heads = handmade(SURE, overlapping(threshold + by))
    replay = Replay(heads, CONFIG, rounding(heads))
    both, one = [0, 1, 2, 3, 4, 5], [0, 2, 3, 4, 5]
    here, there = (one, both) if by > 0 else (both, one)
    assert replay.kept().tolist() == here
    reasons = explain(replay, there, rounding(heads))
    if found:
        (reason,) = reasons
        assert (reason.kind, reason.subject, reason.other) == (IOU, 0, 1)
        assert reason.margin == pytest.approx(1e-7, rel=1e-3)
    else:
        assert reasons is None and replay.reason(1, rounding(heads)).kind == IOU


def test_the_order_of_two_overlapping_boxes():
    heads = handmade([0.9, 0.9 - 1e-9, 0.7, 0.6, 0.5, 0.4], overlapping(0.8))
    replay = Replay(heads, CONFIG, rounding(heads))
    assert replay.kept().tolist() == [0, 2, 3, 4, 5]
    (reason,) = explain(replay, [1, 2, 3, 4, 5], rounding(heads))
    assert (reason.kind, reason.subject, reason.other) == (ORDER, 0, 1)
    far = handmade([0.9, 0.89, 0.7, 0.6, 0.5, 0.4], overlapping(0.8))
    assert explain(Replay(far, CONFIG, rounding(far)), [1, 2, 3, 4, 5], rounding(far)) is None


def test_the_last_place_goes_to_either_or_to_both():
    config = CONFIG.model_copy(update={"post_nms_top_n": 3})
    heads = handmade([0.9, 0.8, 0.7, 0.7 - 1e-9, 0.5, 0.4], APART)
    replay = Replay(heads, config, rounding(heads))
    assert replay.kept().tolist() == [0, 1, 2]
    assert [r.kind for r in explain(replay, [0, 1, 2, 3], rounding(heads))] == [LAST]
    assert [r.kind for r in explain(replay, [0, 1, 3], rounding(heads))] == [LAST, LAST]
    assert explain(replay, [0, 1, 4], rounding(heads)) is None


def test_one_close_decision_explains_what_follows_from_it():
    """B is suppressed by A at the threshold; without A's say B suppresses C, which was there."""
    threshold = float(np.float32(0.6))
    shift = 100 * (1 - threshold) / (1 + threshold) - 1e-5  # A and B just above the threshold
    boxes = [[0, 0, 99, 9], [shift, 0, 99 + shift, 9], [shift + 10, 0, 109 + shift, 9]]
    heads = handmade(SURE, [*boxes, *[[0, 20 * k, 99, 20 * k + 9] for k in range(1, 4)]])
    replay = Replay(heads, CONFIG, rounding(heads))
    assert replay.kept().tolist() == [0, 2, 3, 4, 5]
    moved = dataclasses.replace(heads, boxes=heads.boxes + np.array([0, 0, 2e-5, 0]) * (np.arange(6) == 1)[:, None])
    for other in (None, moved):
        (reason,) = explain(replay, [0, 1, 3, 4, 5], rounding(heads), other)
        assert (reason.kind, reason.subject, reason.other) == (IOU, 0, 1)
    assert explain(replay, replay.kept(), rounding(heads)) == []
