"""The FCOS head level by level, which is the definition, against NumPy; and all levels on one canvas against that."""

import math

import jittor as jt
import numpy as np
import pytest

from jrdp.models.fcos import FcosHead, flatten
from jrdp.models.layers import watching_relus
from jrdp.ops import canvas

SIZES = [(8, 11), (4, 6), (2, 3), (2, 2), (1, 2)]
EPS = 1e-5  # of the group norms


def head_of(random):
    """Few channels, and weights that are none of those a head begins with."""
    head = FcosHead(8, 32)
    for name, parameter in head.named_parameters():
        if "weight" in name and parameter.ndim == 4:
            parameter.assign(random.normal(0, 0.1, parameter.shape).astype(np.float32))
        else:
            parameter.assign(random.uniform(0.2, 0.8, parameter.shape).astype(np.float32))
    return head


def convolved(x, conv):
    weight, bias = (value.numpy().astype(np.float64) for value in (conv.weight, conv.bias))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]


def towered(x, tower):
    """Four times convolution, group norm of 32 groups (of one channel each, here) and ReLU."""
    layers = list(tower)
    assert len(layers) == 12
    for conv, norm in zip(layers[::3], layers[1::3]):
        x = convolved(x, conv)
        x = (x - x.mean(axis=(2, 3), keepdims=True)) / np.sqrt(x.var(axis=(2, 3), keepdims=True) + EPS)
        weight, bias = norm.weight.numpy(), norm.bias.numpy()
        x = np.maximum(x * weight[:, None, None] + bias[:, None, None], 0)
    return x


def test_each_level_in_numpy():
    random = np.random.default_rng(1)
    head = head_of(random)
    maps = [random.standard_normal((2, 8, *size)).astype(np.float32) for size in SIZES]
    stages = {}
    output = head([jt.array(x) for x in maps], stages)
    assert output.together is None and len(stages) == 15
    for k, (x, logits, distances, centerness) in enumerate(zip(maps, *output[:3])):
        cls, box = towered(x, head.cls_tower), towered(x, head.bbox_tower)
        scale = head.scales[k].scale.item()
        np.testing.assert_allclose(logits.numpy(), convolved(cls, head.cls_logits), atol=1e-4)
        np.testing.assert_allclose(distances.numpy(), np.exp(scale * convolved(box, head.bbox_pred)), rtol=1e-4)
        np.testing.assert_allclose(centerness.numpy(), convolved(cls, head.centerness), atol=1e-4)
        for name, value in (("cls_logits", logits), ("bbox_reg", distances), ("centerness", centerness)):
            assert np.array_equal(stages[f"{name}_P{k + 3}"].numpy(), value.numpy())


def test_the_untrained_head_answers_one_in_a_hundred():
    head = FcosHead(64, 96)
    for conv in (*list(head.cls_tower)[::3], *list(head.bbox_tower)[::3], head.cls_logits, head.bbox_pred, head.centerness):
        assert conv.weight.numpy().std() == pytest.approx(0.01, rel=0.1)
        expected = -math.log(99) if conv is head.cls_logits else 0
        np.testing.assert_allclose(conv.bias.numpy(), expected, rtol=1e-6)
    assert [scale.scale.numpy().tolist() for scale in head.scales] == [[1]] * 6


def assert_near(found, expected, near=2e-5):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=near * max(np.abs(other).max(), 1))


def answers_of(execute, maps):
    """What the head says, level by level, and what its ReLUs give; and of all levels together."""
    with watching_relus() as relus:
        output = execute([jt.array(x) for x in maps])
    assert len(relus) == len(maps) * 8
    return [x.numpy() for x in (*sum(output[:3], []), *relus)], output.together


def test_the_canvas_answers_as_the_levels_do():
    """Its kernels on the CPU; values only, as each of them has a test of its gradient."""
    random = np.random.default_rng(2)
    head = head_of(random)
    maps = [random.standard_normal((1, 8, *size)).astype(np.float32) for size in [(3, 4), (2, 2), (1, 2), (1, 1), (1, 1)]]

    def on_canvas(features):
        return head._on_canvas(features, canvas.KERNELS.shimmed())

    found, together = answers_of(on_canvas, maps)
    expected, _ = answers_of(head._level_by_level, maps)
    assert_near(found, expected, 2e-4)  # norms of few pixels magnify what convolutions round, each processor in its own way
    for k, value in enumerate(together):
        np.testing.assert_array_equal(value.numpy()[0], np.concatenate([x.reshape(x.shape[1], -1) for x in found[5 * k : 5 * k + 5]], 1))
    unwatched = on_canvas([jt.array(x) for x in maps])
    assert_near([x.numpy() for x in sum(unwatched[:3], [])], found[:15])


@pytest.mark.gpu
def test_on_a_gpu_canvas_and_levels_agree():
    random = np.random.default_rng(0)
    with jt.flag_scope(use_cuda=1):
        head = head_of(random)
        parameters = head.parameters()
        maps = [random.standard_normal((2, 8, *size)).astype(np.float32) for size in SIZES]
        given = [random.standard_normal((2, c, sum(h * w for h, w in SIZES))).astype(np.float32) for c in (1, 4, 1)]

        def run(execute):
            features = [jt.array(x) for x in maps]
            with watching_relus() as relus:
                output = execute(features)
            together = output.together or [flatten(levels) for levels in output[:3]]
            loss = sum((x * jt.array(weight)).sum() for x, weight in zip(together, given))
            gradients = jt.grad(loss, [*features, *parameters[:-1]])  # the last scale is not used
            found = [*sum(output[:3], []), *relus, *gradients]
            return [x.numpy() for x in found], len(relus), output.together

        (plain, count, _), (on_one, same_count, together) = run(head._level_by_level), run(head.execute)
    assert count == same_count == 5 * 8 and together is not None
    assert len(plain) > 15 + 40 + 5
    assert_near(on_one, plain)
    assert any(np.abs(x).max() > 1e-3 for x in plain[-10:])  # there are gradients to compare
