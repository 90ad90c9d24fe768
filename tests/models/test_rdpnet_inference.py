"""The whole network against what the released code computes with the same weights, stage by stage."""

import jittor as jt
import numpy as np
import pytest
from golden_pictures import PICTURES, picture_batch, run

from jrdp.models.fcos_decode import Detections
from jrdp.models.layers import GroupNorm

STAGE_TOLERANCE = 1e-4  # relative L2
BOX_TOLERANCE = 0.01  # network pixels
SCORE_TOLERANCE = 1e-4


def stage_errors(stages: dict, expected) -> dict[str, float]:
    """Relative L2 error of every stage of the golden file, the worse of its sample and its norm."""
    names = {key[: -len("/shape")] for key in expected.files if key.endswith("/shape")}
    names = {name for name in names if not name.startswith(("input", "decoded", "resized", "det"))}
    assert names == set(stages)
    errors = {}
    for name, found in stages.items():
        sample, norm = expected[f"{name}/sample"].astype(np.float64), expected[f"{name}/stats"][2]
        assert found.shape == tuple(expected[f"{name}/shape"]), name
        error = np.linalg.norm(found.sample - sample) / np.linalg.norm(sample)
        errors[name] = max(error, abs(found.norm - norm) / norm)
    return errors


def check_stages(stages: dict, expected) -> None:
    wrong = {name: f"{e:.1e}" for name, e in stage_errors(stages, expected).items() if not e <= STAGE_TOLERANCE}
    assert not wrong


def check_detections(instances, expected) -> None:
    assert len(instances) == len(expected["det/scores"])
    assert np.abs(instances.boxes - expected["det/boxes_net"]).max() <= BOX_TOLERANCE
    assert np.abs(instances.scores - expected["det/scores"]).max() <= SCORE_TOLERANCE


@pytest.mark.parametrize("name", PICTURES)
def test_every_stage_is_the_released_one(name, forward, golden):
    check_stages(forward(name).stages, np.load(golden / "r50" / f"infer_{name}.npz"))


@pytest.mark.parametrize("name", PICTURES)
def test_detections_are_the_released_ones(name, forward, golden):
    expected = np.load(golden / "r50" / f"infer_{name}.npz")
    found = forward(name).instances
    check_detections(found, expected)
    assert found.mask_probabilities.shape == (len(found), 32, 32)
    assert found.mask_probabilities.dtype == found.boxes.dtype == found.scores.dtype == np.float32
    assert tuple(found.size) == forward(name).batch.sizes[0]
    probabilities = found.mask_probabilities.reshape(-1)
    sample = expected["det/mask_prob/sample"]
    picks = (np.arange(len(sample)) * probabilities.size) // len(sample)
    assert np.abs(probabilities[picks] - sample).max() <= SCORE_TOLERANCE


def test_stages_come_in_the_order_of_computation(forward):
    levels = range(3, 8)
    assert list(forward(PICTURES[0]).stages) == [
        *("stem", "C2", "C3", "C4", "C5"),
        *(f"P{k}" for k in levels),
        *(f"att_logit_P{k}" for k in range(4, 8)),
        *(f"RP{k}" for k in levels),
        *(f"{what}_P{k}" for k in levels for what in ("cls_logits", "bbox_reg", "centerness")),
        *(f"mask_inner_{k}" for k in range(1, 6)),
        *(f"mask_roi_{k}" for k in range(1, 6)),
        *(f"mask_conv_{k}" for k in range(1, 5)),
        "mask_logits",
    ]


def test_the_check_notices_swapped_channels(r50, golden):
    result = run(r50, picture_batch(golden, PICTURES[0], channel_order="rgb"))
    with pytest.raises(AssertionError):
        check_stages(result.stages, np.load(golden / "r50" / f"infer_{PICTURES[0]}.npz"))


def test_the_check_notices_another_group_norm_epsilon(r50, golden):
    norms = [module for module in r50.modules() if isinstance(module, GroupNorm)]
    assert len(norms) == 8 + 9
    try:
        for norm in norms:
            norm.eps = 1e-3
        result = run(r50, picture_batch(golden, PICTURES[0]))
    finally:
        for norm in norms:
            norm.eps = 1e-5
    expected = np.load(golden / "r50" / f"infer_{PICTURES[0]}.npz")
    with pytest.raises(AssertionError):
        check_stages(result.stages, expected)


def test_the_check_notices_a_square_root_in_the_score(forward, golden):
    found = forward(PICTURES[0]).instances.select(slice(None))
    found.scores = np.sqrt(found.scores)
    with pytest.raises(AssertionError):
        check_detections(found, np.load(golden / "r50" / f"infer_{PICTURES[0]}.npz"))


def test_two_pictures_at_once_are_as_each_alone(r50, forward, golden):
    """A and C have the same size, and each level of both has candidates of its own."""
    together = r50.detect(picture_batch(golden, PICTURES[0], PICTURES[2]))
    for found, name in zip(together, (PICTURES[0], PICTURES[2])):
        alone = forward(name).instances
        # Whether a level without anything above the threshold gives its best is decided over the batch.
        kept = [np.flatnonzero(np.abs(alone.boxes - box).max(axis=1) < BOX_TOLERANCE) for box in found.boxes]
        assert all(len(rows) == 1 for rows in kept)
        rows = np.concatenate(kept)
        assert len(rows) >= len(alone) - 4
        assert np.abs(alone.scores[rows] - found.scores).max() <= SCORE_TOLERANCE
        assert np.abs(alone.mask_probabilities[rows] - found.mask_probabilities).max() <= 1e-3


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_an_image_without_detections(r50, monkeypatch, golden, counts):
    batch = picture_batch(golden, PICTURES[0], PICTURES[2])
    box = np.array([[10, 20, 60, 90]], np.float32)
    found = [Detections(box.repeat(n, axis=0), np.full(n, 0.5, np.float32)) for n in counts]
    monkeypatch.setattr(r50, "_detections", lambda output, batch: found)
    instances = r50.detect(batch)
    assert [len(each) for each in instances] == list(counts)
    assert [each.mask_probabilities.shape for each in instances] == [(n, 32, 32) for n in counts]


def test_unpadded_images_are_refused(r50, golden):
    batch = picture_batch(golden, PICTURES[0])
    batch.images = batch.images[:, :, :-1]
    with pytest.raises(ValueError, match="multiples of 32"):
        r50.detect(batch)


def test_detection_leaves_the_parameters_trainable(r50, forward):
    forward(PICTURES[0])
    parameter = r50.rpn.head.cls_logits.bias
    assert jt.grad((parameter * 2.0).sum(), parameter).numpy().tolist() == [2.0]
