"""Three sides' detections held together: what is a problem, and what a close decision explains."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jrdp.comparison.found import compare_found
from jrdp.config import FcosConfig
from jrdp.models.fcos_decode import decode

SIZE = (96, 128)
CONFIG = FcosConfig()
LIMITS = {"box": 0.01, "score": 1e-4, "mask": 1e-3}


def answers():
    """Head answers by name; P6 and P7 have no candidate, and their best box is flat after clipping."""
    generator = np.random.default_rng(3)
    out = {}
    for level, stride in enumerate((8, 16, 32, 64, 128), start=3):
        height, width = -(-SIZE[0] // stride), -(-SIZE[1] // stride)
        out[f"cls_logits_P{level}"] = generator.normal(-3, 2, (1, 1, height, width)).astype(np.float32)
        out[f"bbox_reg_P{level}"] = generator.uniform(3, 40, (1, 4, height, width)).astype(np.float32)
        out[f"centerness_P{level}"] = generator.normal(0, 1, (1, 1, height, width)).astype(np.float32)
    out["cls_logits_P6"][:] = out["cls_logits_P7"][:] = -5
    out["cls_logits_P6"][0, 0, -1, -1] = -4
    out["bbox_reg_P6"][0, :, -1, -1] = 0.5  # its centre is outside the picture
    return out


def side(heads, config=CONFIG):
    """A side's arrays: its heads and what they give; the masks are empty."""
    levels = [[heads[f"{name}_P{k}"] for k in range(3, 8)] for name in ("cls_logits", "bbox_reg", "centerness")]
    (found,) = decode(*levels, [SIZE], config)
    masks = np.zeros((len(found.scores), 32, 32), np.float32)
    detections = {"boxes": found.boxes, "scores": found.scores, "masks": masks}
    return {**heads, **{f"detections/0/{key}": value for key, value in detections.items()}}


def nudged(heads, name, place, to):
    out = {key: value.copy() for key, value in heads.items()}
    out[name].reshape(-1)[place] = to
    return out


def compared(ours, single, double):
    result = compare_found(ours, single, double, SIZE, CONFIG, LIMITS)
    json.dumps(result, allow_nan=False)
    return result


def test_equal_sides_have_no_problem_flat_boxes_and_empty_masks_included():
    same = side(answers())
    boxes = same["detections/0/boxes"]
    assert (boxes[:, 1] == boxes[:, 3]).any()
    for single in (same, None):
        result = compared(same, single, same)
        assert result["problems"] == [] and result["explained"] == [] and result["same_order"]
        assert result["matched"] == len(boxes) and result["box"]["ours"] == 0
        assert (result["flipped_pixels"], result["mask"]["ours"]) == (0, 0)


EDGE = float(np.log(np.float64(np.float32(0.05)) / (1 - np.float64(np.float32(0.05)))))


@pytest.mark.parametrize("by,explained", [(4e-7, True), (4e-3, False)])
def test_a_detection_more_is_explained_by_a_close_score_alone(by, explained):
    # P5's location 0 in float64 just below the threshold, in Jittor above it.
    heads = answers()
    heads["bbox_reg_P5"][0, :, 0, 0] = 1.0  # a small box that nothing suppresses
    double = side({k: v.astype(np.float64) for k, v in nudged(heads, "cls_logits_P5", 0, EDGE - by).items()})
    single = side(nudged(heads, "cls_logits_P5", 0, EDGE - by))
    ours = side(nudged(heads, "cls_logits_P5", 0, EDGE + by))
    assert len(ours["detections/0/boxes"]) == len(double["detections/0/boxes"]) + 1
    result = compared(ours, single, double)
    if explained:
        assert result["problems"] == []
        (reason,) = result["explained"]
        assert (reason["side"], reason["kind"], reason["where"]) == (
            "Jittor", "score against the threshold", "P5 location 0",
        )
        assert reason["margin"] == pytest.approx(0.05 * 0.95 * by, rel=0.3)
    else:
        (problem,) = result["problems"]
        assert "not explained by close decisions: score against the threshold, P5 location 0" in problem


def test_a_twin_with_other_rules_is_noticed():
    heads = answers()
    same = side(heads)
    loose = side(heads, CONFIG.model_copy(update={"nms_threshold": 0.8}))
    result = compared(same, loose, loose)
    assert result["problems"][0].startswith("the twin's detections are not those")
    rooted = {**same, "detections/0/scores": np.sqrt(same["detections/0/scores"])}
    result = compared(same, rooted, rooted)
    assert any(problem.startswith("scores 0.") for problem in result["problems"])
    result = compared(rooted, same, same)
    assert result["problems"][0].startswith("Jittor's detections are not at")


def test_a_moved_box_a_changed_score_and_a_flipped_pixel():
    heads = answers()
    double = side(heads)
    moved = {key: value.copy() for key, value in side(heads).items()}
    moved["detections/0/boxes"][0] += 0.004
    moved["detections/0/masks"][1, 3, 4] = 0.6
    result = compared(moved, double, double)
    assert any(problem.startswith("boxes, px 0.004 from float64") for problem in result["problems"])
    assert any(problem.startswith("masks 0.6 from float64") for problem in result["problems"])
    assert any(problem.startswith("1 mask pixels differ, at up to 0.5") for problem in result["problems"])
    # PyTorch as far away as that is no reason to complain, unless the tolerance is reached.
    double["detections/0/masks"][:] = 0.5 - 1e-5
    ours = {**side(heads), "detections/0/masks": double["detections/0/masks"] + np.float32(2e-5)}
    single = {**side(heads), "detections/0/masks": double["detections/0/masks"] - np.float32(1e-5)}
    result = compared(ours, single, double)
    assert result["problems"] == [] and result["flipped_pixels"] > 1000
