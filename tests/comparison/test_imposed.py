"""The twin with decisions from elsewhere: what it notices. Needs torch alone."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from jrdp.comparison.choices import MAPS, Decisions, pooling_choice  # noqa: E402
from jrdp.comparison.twin import imposed, train  # noqa: E402
from jrdp.comparison.twin.detect import as_rois, proposals  # noqa: E402
from jrdp.comparison.twin.model import Twin, Variant  # noqa: E402
from jrdp.config import ModelConfig  # noqa: E402
from jrdp.structures import Targets  # noqa: E402

SIZE = (60, 64)


@pytest.fixture(scope="module")
def case():
    """A network in float64, one image with two boxes, and the network's own decisions about it."""
    torch.manual_seed(3)
    model = Twin(ModelConfig()).double()
    for module in model.modules():  # keep activations of order one without trained batch norms
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=(1.5 / module.weight[0].numel()) ** 0.5)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    boxes = np.array([[4, 4, 40, 44], [30, 20, 60, 55]], np.float32)
    polygons = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32)] for x1, y1, x2, y2 in boxes]
    targets = [Targets(boxes, polygons, [None, None], SIZE)]
    relus = []
    real = torch.nn.functional.relu

    def seen(x, inplace=False):
        relus.append((x > 0).numpy())
        return real(x)

    gt = [torch.as_tensor(boxes).double()]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "relu", seen)
        trunk = model.trunk(images)
        maps = {f"{n}_P{k}": trunk.stages[f"{n}_P{k}"].float() for n in MAPS for k in imposed.LEVELS}
        found = proposals(imposed.Trunk(maps), [SIZE], model.config.fcos)
        together = torch.cat([found[0][0], gt[0].float()])
        index, iou = train.match(together, gt[0].float())
        rois = as_rois([together[iou >= 0.5]])
        model.masks(trunk.pyramid, rois.double())
    masks = train.project_masks(targets[0], index[iou >= 0.5].numpy(), rois[:, 1:].numpy(), 32)
    stem = model.backbone.body.stem
    with torch.no_grad():
        first = real(stem.bn1(stem.conv1(images))).numpy()
    positive, smaller = [], []
    for level, stride, (low, high) in zip(imposed.LEVELS, imposed.STRIDES, imposed.LEVEL_RANGES):
        reg = trunk.stages[f"bbox_reg_P{level}"]
        points = imposed.locations(*reg.shape[2:], stride, reg)
        inside, distances = train.assign(points, gt[0], low, high)
        positive.append(inside.numpy())
        smaller.append((reg[0].flatten(1).T[inside] < distances[inside]).numpy())
    given = Decisions(
        relus, [pooling_choice(first)], np.concatenate(smaller), np.concatenate(positive)[None],
        {name: value.numpy() for name, value in maps.items()},
        [(boxes.numpy(), scores.numpy()) for boxes, scores in found], rois.numpy(), masks,
    )
    return model, images, targets, given


def imposed_gradients(case, given):
    model, images, targets, _ = case
    model.zero_grad(set_to_none=True)
    losses, trunk, mode = imposed.imposed_losses(model, images, targets, given)
    sum(losses.values()).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.item() for name, value in losses.items()}, grads, trunk, mode


def test_a_networks_own_decisions_change_nothing(case):
    model, images, targets, given = case
    model.zero_grad(set_to_none=True)
    losses = train.losses(model, images, [SIZE], targets)
    sum(losses.values()).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    values, grads, trunk, mode = imposed_gradients(case, given)
    assert values == pytest.approx({name: value.item() for name, value in losses.items()}, rel=1e-6)
    for name, value in wanted.items():
        assert torch.allclose(grads[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max())), name
    own = imposed.own_choices(mode)
    rows = imposed.relu_rows(mode, own) + imposed.other_rows(mode, own)
    assert len(rows) > 90 and not any(row["given"] or row["other"] for row in rows)
    checks = imposed.check_choices(model, trunk, [SIZE], targets, given)
    assert checks["locations"] == checks["rois"] == 0 and checks["positives"] >= 2
    assert [row["alone"] for row in checks["proposals"]] == [0]


def test_a_wrong_sign_is_counted_where_it_is(case):
    *_, given = case
    wrong = [mask.copy() for mask in given.relus]
    wrong[5].flat[7] ^= True
    *_, mode = imposed_gradients(case, Decisions(**{**vars(given), "relus": wrong}))
    own = imposed.own_choices(mode)
    rows = imposed.relu_rows(mode, own)
    assert rows[5]["given"] >= 1 and rows[5]["place"].startswith("backbone.body.layer1.")
    assert rows[5]["given_largest"] > 0 and not any(row["given"] for row in rows[:5])


def test_another_suppression_and_another_score_are_noticed(case):
    model, images, targets, given = case
    *_, trunk, _ = imposed_gradients(case, given)
    boxes, scores = given.proposals[0]
    changed = Decisions(**{**vars(given), "proposals": [(boxes[1:], scores[1:])]})
    assert imposed.check_choices(model, trunk, [SIZE], targets, changed)["proposals"][0]["alone"] == 1
    model.variant = Variant(sqrt_score=True)
    try:
        assert imposed.check_choices(model, trunk, [SIZE], targets, given)["proposals"][0]["score"] > 1e-3
    finally:
        model.variant = Variant()
