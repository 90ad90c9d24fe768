"""The FCOS losses, values and gradients, against the released ones and float64."""

import json

import jittor as jt
import numpy as np
import pytest

from jrdp.models.fcos import HeadOutput, LossCounts, bce_with_logits, fcos_losses, flatten, sigmoid_focal_loss
from jrdp.models.fcos_targets import assign_targets, locations
from jrdp.models.shapes import STRIDES


def released_case(golden, output=None):
    ops = np.load(golden / "ops.npz")
    output = output or HeadOutput(
        *[[jt.array(ops[f"losses/{what}_P{k}"]) for k in range(3, 8)] for what in ("cls", "reg", "ctr")]
    )
    points = [locations(*x.shape[2:], stride) for x, stride in zip(output.logits, STRIDES)]
    boxes = [ops[f"targets/{case}/boxes"] for case in ("nested", "range_bounds")]
    targets = assign_targets(points, boxes)
    counts = LossCounts(len(boxes), targets.positive.sum(), targets.centerness.sum(), 0)
    return ops, output, fcos_losses(output, targets, counts)


def test_released_losses_and_gradients(golden):
    ops, output, losses = released_case(golden)
    expected = json.loads((golden / "ops.json").read_text())["losses"]
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-6), name
    variables = [*output.logits, *output.distances, *output.centerness]
    grads = jt.grad(sum(losses.values()), variables)
    names = [f"{what}_P{k}" for what in ("gcls", "greg", "gctr") for k in range(3, 8)]
    for name, grad in zip(names, grads):
        released = ops[f"losses/{name}"]
        assert np.abs(grad.numpy() - released).max() <= 1e-5 * max(np.abs(released).max(), 1e-6), name


def test_answers_given_together_are_those_that_count(golden):
    """Each level's own are then there to be looked at; gradients go through what is given of all levels together."""
    _, output, losses = released_case(golden)
    together = tuple(flatten(levels) for levels in output[:3])
    nothing = [[0 * level for level in levels] for levels in output[:3]]
    for name, loss in released_case(golden, HeadOutput(*nothing, together))[2].items():
        assert loss.item() == losses[name].item(), name


def test_no_positive_location_in_the_first_image(golden):
    expected = json.loads((golden / "ops.json").read_text())["losses_no_positive_first_image"]
    ops = np.load(golden / "ops.npz")
    output = HeadOutput(
        *[[jt.array(ops[f"losses/{what}_P{k}"][:1]) for k in range(3, 8)] for what in ("cls", "reg", "ctr")]
    )
    points = [locations(*x.shape[2:], stride) for x, stride in zip(output.logits, STRIDES)]
    targets = assign_targets(points, [np.array(expected["gt"], np.float32)])
    assert not targets.positive.any()
    losses = fcos_losses(output, targets, LossCounts(1, 0, 0, 0))
    assert losses["loss_cls"].item() == pytest.approx(expected["loss_cls"], rel=1e-6)
    assert losses["loss_reg"].item() == losses["loss_centerness"].item() == 0
    for grad in jt.grad(losses["loss_reg"] + losses["loss_centerness"], [*output.distances, *output.centerness]):
        assert (grad.numpy() == 0).all()


@pytest.mark.parametrize("positive", [0, 1])
def test_released_focal_loss(golden, positive):
    """The golden values come from log(1 - p) in float32, which is wrong by up to 1e-3 for large logits."""
    ops = np.load(golden / "ops.npz")
    logits = jt.array(ops["focal/x"])
    loss = sigmoid_focal_loss(logits, jt.array(np.full(logits.shape, positive, np.float32)))
    grad = jt.grad(loss.sum(), logits)
    np.testing.assert_allclose(loss.numpy(), ops[f"focal/t{positive}/loss"], rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(grad.numpy(), ops[f"focal/t{positive}/grad"], rtol=1e-3, atol=1e-6)
    x = ops["focal/x"].astype(np.float64)
    p = 1 / (1 + np.exp(-x))
    exact = -0.25 * (1 - p) ** 2 * np.log(p) if positive else 0.75 * p**2 * np.logaddexp(0, x)
    np.testing.assert_allclose(loss.numpy(), exact, rtol=1e-5, atol=1e-7)


def test_focal_loss_of_extreme_logits_is_finite():
    x = np.array([-1e4, -300, -88, -87, -30, 0, 30, 87, 88, 300, 1e4], np.float32)
    logits = jt.array(x)
    for positive in (0.0, 1.0):
        loss = sigmoid_focal_loss(logits, jt.array(np.full(x.shape, positive, np.float32)))
        grad = jt.grad(loss.sum(), logits).numpy()
        p = 1 / (1 + np.exp(-x.astype(np.float64).clip(-700, 700)))
        if positive:
            expected = -0.25 * (1 - p) ** 2 * np.log(np.maximum(p, np.finfo(np.float32).tiny))
        else:
            expected = 0.75 * p**2 * np.logaddexp(0, x.astype(np.float64))
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5, atol=1e-9)
        assert np.isfinite(grad).all()
        assert np.abs(grad[[0, -1]]).tolist() == pytest.approx([0.25, 0] if positive else [0, 0.75], abs=1e-6)


@pytest.mark.parametrize("wanted", [0.0, 0.3, 1.0])
def test_binary_cross_entropy(wanted):
    x = np.array([-300, -40, -2, -1e-3, 0, 1e-3, 2, 40, 300], np.float32)
    logits = jt.array(x)
    loss = bce_with_logits(logits, jt.array(np.full(x.shape, wanted, np.float32)))
    grad = jt.grad(loss.sum(), logits)
    x = x.astype(np.float64)
    np.testing.assert_allclose(loss.numpy(), np.logaddexp(0, x) - wanted * x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grad.numpy(), 1 / (1 + np.exp(-x)) - wanted, atol=1e-6)
