"""The training losses and gradients against the released ones."""

import json

import jittor as jt
import numpy as np
import pytest
from golden_pictures import picture_batch

from jrdp.config import ModelConfig
from jrdp.models.rdpnet import RDPNet, match
from jrdp.models.state import named_tensors, trainable_names, trainable_parameters
from jrdp.structures import ImageBatch, Targets, check_targets

LOSSES = ["loss_cls", "loss_reg", "loss_centerness", "loss_mask"]


def golden_targets(released) -> list[Targets]:
    targets = []
    for i in range(4):
        boxes = released[f"b1/gt{i}/boxes"]
        polygons = [
            [released[key].astype(np.float64) for key in released.files if key.startswith(f"b1/gt{i}/poly_{k}_")]
            for k in range(len(boxes))
        ]
        width, height = released[f"b1/gt{i}/size_wh"]
        targets.append(Targets(boxes, polygons, [None] * len(boxes), (int(height), int(width))))
    return targets


@pytest.fixture(scope="module")
def step(r50, golden):
    """One step on the four pictures: losses, gradients by name, and what the mask loss was given."""
    released = np.load(golden / "r50" / "train.npz")
    record = json.loads((golden / "r50" / "train.json").read_text())
    batch = picture_batch(golden, *[name[: -len(".png")] for name in record["files"]])
    assert batch.images.shape == tuple(released["b1/input/shape"])
    seen = {}
    choose = r50.mask_targets

    def spy(found, targets):
        seen["proposals"] = found
        seen["rois"], seen["masks"] = choose(found, targets)
        return seen["rois"], seen["masks"]

    r50.mask_targets = spy
    try:
        losses = r50.losses(batch, golden_targets(released))
    finally:
        del r50.mask_targets
    names = trainable_names(r50)
    tensors = named_tensors(r50)
    grads = jt.grad(sum(losses.values()), [tensors[name] for name in names])
    values = jt.fetch_sync([*losses.values(), *grads])
    assert list(losses) == LOSSES
    seen["losses"] = {name: float(value[0]) for name, value in zip(LOSSES, values)}
    seen["grads"] = dict(zip(names, values[4:]))
    return seen, released, record


def check_losses(found: dict, record: dict) -> None:
    for name, value in record["steps"][0]["losses"].items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_losses(step):
    seen, _, record = step
    check_losses(seen["losses"], record)
    with pytest.raises(AssertionError):
        check_losses({**seen["losses"], "loss_mask": seen["losses"]["loss_mask"] * 1.0001}, record)


def test_gradient_norms(step):
    seen, _, record = step
    assert len(record["grad_l2"]) == 157
    for name, norm in record["grad_l2"].items():
        found = np.linalg.norm(seen["grads"][name].astype(np.float64))
        if norm:
            assert found == pytest.approx(norm, rel=1e-3), name
        else:  # levels without a positive, and the scale of no level
            assert name.startswith("rpn.head.scales") and found == 0, name


def test_gradient_samples(step):
    seen, released, _ = step
    keys = [key for key in released.files if key.startswith("grad/")]
    assert len(keys) == 44
    for key in keys:
        grad, sample = seen["grads"][key[len("grad/") :]].reshape(-1), released[key]
        picks = (np.arange(len(sample)) * grad.size) // len(sample)
        assert np.abs(grad[picks] - sample).max() <= 3e-3 * np.abs(grad).max(), key


def test_proposals_andmask_targets(step):
    seen, released, _ = step
    targets = golden_targets(released)
    for i, (found, target) in enumerate(zip(seen["proposals"], targets)):
        expected = {name: released[f"b1/prop{i}/{name}"] for name in ("boxes", "scores", "matched_idx", "mask_label")}
        boxes = np.concatenate([found.boxes, target.boxes])  # the ground truth comes last
        np.testing.assert_allclose(boxes, expected["boxes"], atol=0.01)
        np.testing.assert_allclose(found.scores, expected["scores"][: len(found.scores)], atol=1e-4)
        matched, positive = match(target.boxes, boxes)
        np.testing.assert_array_equal(positive, expected["mask_label"] == 1)
        np.testing.assert_array_equal(matched[positive], expected["matched_idx"][positive])
        mine = seen["rois"][:, 0] == i
        np.testing.assert_array_equal(seen["rois"][mine, 1:], boxes[positive])
        bits = np.packbits(seen["masks"][mine].reshape(positive.sum(), -1), axis=1)
        wrong = np.unpackbits(bits ^ released[f"b1/prop{i}/mask_target_bits"], axis=1).sum(axis=1)
        assert wrong.max() <= 2, "a vertex may round to the other side"


def small_batch(boxes: list) -> tuple[ImageBatch, list[Targets]]:
    """The same small picture for every list of boxes; each box is filled by its instance's polygon."""
    rng = np.random.default_rng(5)
    picture = (60 * rng.standard_normal((1, 3, 64, 96))).astype(np.float32)
    n = len(boxes)
    batch = ImageBatch(picture.repeat(n, axis=0), [(64, 96)] * n, [(64, 96)] * n, list(range(n)))
    targets = []
    for each in boxes:
        each = np.array(each, np.float32).reshape(-1, 4)
        polygons = [[np.array([x1, y1, x2, y1, x2, y2], np.float64)] for x1, y1, x2, y2 in each]
        targets.append(Targets(each, polygons, [None] * len(each), (64, 96)))
    return batch, targets


@pytest.mark.parametrize("boxes", [[[]], [[], []]])
def test_without_any_ground_truth_only_classification_learns(r50, boxes):
    losses = r50.losses(*small_batch(boxes))
    assert losses["loss_cls"].item() > 0
    parameters = trainable_parameters(r50)
    grads = jt.grad(losses["loss_reg"] + losses["loss_centerness"] + losses["loss_mask"], list(parameters.values()))
    values = jt.fetch_sync([losses[name] for name in LOSSES[1:]] + grads)
    assert all((value == 0).all() for value in values)


def test_an_image_without_ground_truth_beside_one_with_some(r50):
    losses = r50.losses(*small_batch([[[10, 8, 60, 50]], []]))
    assert all(np.isfinite(loss.item()) and loss.item() > 0 for loss in losses.values())


def test_two_processes_make_the_losses_of_one(r50):
    """Each has one of two images; the mean over processes of what each computes is what one computes of both."""
    boxes = [[[10, 8, 90, 60], [20, 20, 50, 62]], [[4, 4, 80, 40]]]
    together = {name: loss.item() for name, loss in r50.losses(*small_batch(boxes)).items()}
    counts = []

    def note(mine):
        counts.append(mine)
        return mine

    for each in boxes:
        r50.losses(*small_batch([each]), all_reduce=note)
    mean = np.mean(counts, axis=0)
    apart = [r50.losses(*small_batch([each]), all_reduce=lambda mine: mean) for each in boxes]
    for name, value in together.items():
        assert np.mean([losses[name].item() for losses in apart]) == pytest.approx(value, rel=1e-4), name


def test_the_single_level_head_trains():
    model = RDPNet(ModelConfig(mask={"head": "single_level"}, pyramid={"enhancement": "none"}))
    losses = model.losses(*small_batch([[[10, 8, 90, 60]]]))
    names = [name for name in trainable_parameters(model) if name.startswith("roi_heads")]
    grads = jt.grad(losses["loss_mask"], [named_tensors(model)[name] for name in names])
    assert np.isfinite(losses["loss_mask"].item())
    assert all(np.abs(grad.numpy()).max() > 0 for grad in grads)


def test_matching():
    truth = np.array([[0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 39, 39]], np.float32)
    boxes = np.array([[0, 0, 9, 4], [0, 0, 9, 3.9], [20, 20, 39, 39], [50, 50, 60, 60]], np.float32)
    matched, positive = match(truth, boxes)
    assert positive.tolist() == [True, False, True, False], "an IoU of 0.5 is enough"
    assert matched[:3].tolist() == [0, 0, 2]
    matched, positive = match(truth[:0], boxes)
    assert not positive.any() and len(matched) == 4


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"boxes": [[59, 39, 20, 10]]}, "box 0, .* is not x1, y1, x2, y2"),
        ({"boxes": [[20, 10, np.nan, 39]]}, "box 0, .* is not x1, y1, x2, y2"),
        ({"boxes": [20, 10, 59, 39]}, r"boxes are \[4\], not \[G, 4\]"),
        ({"size": (96, 64)}, r"its size \(96, 64\) is not the image's, \(64, 96\)"),
        ({"polygons": []}, "1 boxes, 0 polygons and 1 bitmaps"),
        ({"bitmaps": [None]}, "instance 0 has neither polygons nor a bitmap"),
        ({"bitmaps": [np.ones((30, 40), np.uint8)]}, r"the bitmap of instance 0 is \[30, 40\] up to 1, not \[64, 96\] of 0 and 1"),
        ({"bitmaps": [np.full((64, 96), 255, np.uint8)]}, r"the bitmap of instance 0 is \[64, 96\] up to 255, not"),
    ],
)
def test_what_is_no_ground_truth_of_the_batch_is_refused(changes, words):
    """Each of these trained on something else, or failed somewhere inside."""
    batch = ImageBatch(np.zeros((2, 3, 64, 96), np.float32), [(64, 96)] * 2, [(64, 96)] * 2, [0, 1])
    nothing = Targets(np.zeros((0, 4), np.float32), [], [], (64, 96))
    good = {"boxes": [[20, 10, 59, 39]], "polygons": [None], "bitmaps": [np.ones((64, 96), bool)], "size": (64, 96)}
    check_targets([Targets(**good), nothing], batch)
    with pytest.raises(ValueError, match=r"targets\[1\]: " + words):
        check_targets([nothing, Targets(**{**good, **changes})], batch)
    for few in ([], [nothing], [nothing] * 3):
        with pytest.raises(ValueError, match=f"{len(few)} targets for a batch of 2 images"):
            check_targets(few, batch)
