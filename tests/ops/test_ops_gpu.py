"""The operators on a GPU, through their public faces, against the NumPy reference and the CPU."""

import jittor as jt
import numpy as np
import ops_reference as reference
import pytest

from jrdp.config import FcosConfig
from jrdp.models.fcos_decode import decode, decode_vars
from jrdp.ops import group_norm, join, multilevel_roi_align, nms, paste_masks

pytestmark = pytest.mark.gpu


def pool_and_back(features, rois, deterministic, device):
    with jt.flag_scope(use_cuda=int(device == "cuda")):
        variables = [jt.array(feature) for feature in features]
        pooled = multilevel_roi_align(variables, rois, reference.SIZES, reference.SCALES, 2, deterministic)
        random = np.random.default_rng(1)
        weights = [random.standard_normal(level.shape).astype(np.float32) for level in pooled]
        gradients = jt.grad(sum((level * jt.array(weight)).sum() for level, weight in zip(pooled, weights)), variables)
        return [value.numpy() for value in [*pooled, *gradients]]


@pytest.mark.parametrize("deterministic", [True, False])
def test_roi_align_equals_reference_and_cpu(deterministic):
    random = np.random.default_rng(0)
    features = [random.standard_normal((2, 20, *shape)).astype(np.float32) for shape in reference.MAPS]
    rois = np.concatenate([reference.random_rois(random, 100, 2), reference.EDGE_ROIS])
    on_gpu = pool_and_back(features, rois, deterministic, "cuda")
    on_cpu = pool_and_back(features, rois, deterministic, "cpu")
    for gpu, cpu in zip(on_gpu, on_cpu):
        np.testing.assert_allclose(gpu, cpu, rtol=0, atol=2e-5 * max(np.abs(cpu).max(), 1))
    for level, feature in enumerate(features):
        expected = reference.roi_align_forward(feature, rois, reference.SIZES[level], reference.SCALES[level], 2)
        np.testing.assert_allclose(on_gpu[level], expected, rtol=0, atol=1e-4)


def test_roi_align_gradient_is_deterministic():
    random = np.random.default_rng(2)
    features = [random.standard_normal((2, 128, *shape)).astype(np.float32) for shape in reference.MAPS]
    rois = reference.random_rois(random, 100, 2)
    first = pool_and_back(features, rois, True, "cuda")
    for _ in range(3):
        again = pool_and_back(features, rois, True, "cuda")
        assert all(np.array_equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("count", [0, 1, 64, 65, 1000, 5000])
def test_nms_equals_cpu(count):
    random = np.random.default_rng(count)
    low = random.integers(0, 200, (count, 2))
    boxes = np.concatenate([low, low + random.integers(0, 60, (count, 2))], axis=1).astype(np.float32)
    scores = (random.integers(0, max(count // 4, 2), count) / max(count, 1)).astype(np.float32)
    for threshold in (0.5, 0.6, 0.8):
        with jt.flag_scope(use_cuda=1):
            on_gpu = nms(boxes, scores, threshold)
        with jt.flag_scope(use_cuda=0):
            np.testing.assert_array_equal(on_gpu, nms(boxes, scores, threshold))


def share_found(boxes, scores, others, other_scores) -> float:
    """The share of `boxes` that `others` have too: corners within 0.01 pixels and scores within 1e-5."""
    if len(boxes) == 0:
        return 1.0
    near = np.abs(boxes[:, None] - others[None]).max(axis=2) <= 0.01
    near &= np.abs(scores[:, None] - other_scores[None]) <= 1e-5
    return float(near.any(axis=1).mean())


def decoded(device, levels, sizes, config):
    with jt.flag_scope(use_cuda=int(device == "cuda")):
        return decode_vars(*[[jt.array(level) for level in part] for part in levels], sizes, config)


@pytest.mark.parametrize("images, per_level, per_image", [(1, 1000, 100), (4, 1000, 100), (2, 30, 7), (1, 1, 1)])
def test_decoding_equals_numpy(images, per_level, per_image):
    """But for a candidate in a hundred: fast exponentials change the order of scores that are all but equal."""
    random = np.random.default_rng(images)
    levels = [
        [random.uniform(low, high, (images, channels, *shape)).astype(np.float32) for shape in reference.MAPS]
        for low, high, channels in ((-6, 0, 1), (1, 60, 4), (-2, 2, 1))
    ]
    config = FcosConfig(pre_nms_top_n=per_level, post_nms_top_n=per_image)
    sizes = [(320, 480), (311, 479), (300, 320), (97, 111)][:images]
    for found, expected in zip(decoded("cuda", levels, sizes, config), decode(*levels, sizes, config)):
        assert abs(len(found.boxes) - len(expected.boxes)) <= 1
        assert share_found(expected.boxes, expected.scores, found.boxes, found.scores) >= 0.98
        assert share_found(found.boxes, found.scores, expected.boxes, expected.scores) >= 0.98


def pasted(device, count):
    random = np.random.default_rng(count)
    low = random.uniform(-60, 700, (count, 2))
    boxes = np.concatenate([low, low + random.uniform(0, 300, (count, 2))], axis=1).astype(np.float32)
    probabilities = random.random((count, 32, 32)).astype(np.float32)
    with jt.flag_scope(use_cuda=int(device == "cuda")):
        return paste_masks(probabilities, boxes, 480, 720)


@pytest.mark.parametrize("count", [0, 1, 100])
def test_pasting_equals_the_cpu(count):
    on_gpu, on_cpu = pasted("cuda", count), pasted("cpu", count)
    assert on_gpu.shape == on_cpu.shape == (count, 480, 720)
    assert (on_gpu != on_cpu).sum() <= 1e-4 * max(on_cpu.sum(), 1)


def normalised(device, shape, groups):
    random = np.random.default_rng(sum(shape))
    x, dy = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    weight, bias = (random.standard_normal(shape[1]).astype(np.float32) for _ in range(2))
    with jt.flag_scope(use_cuda=int(device == "cuda")):
        variables = [jt.array(array) for array in (x, weight, bias)]
        y = group_norm(*variables, groups, 1e-5)
        return [value.numpy() for value in (y, *jt.grad((y * jt.array(dy)).sum(), variables))]


@pytest.mark.parametrize("shape, groups", [((2, 128, 7, 9), 32), ((3, 8, 1, 1), 4), ((1, 300, 5, 5), 3)])
def test_group_norm_equals_the_cpu(shape, groups):
    for gpu, cpu in zip(normalised("cuda", shape, groups), normalised("cpu", shape, groups)):
        np.testing.assert_allclose(gpu, cpu, rtol=0, atol=1e-4 * max(np.abs(cpu).max(), 1))


def test_joining_equals_numpy():
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((2, n, 33, 5)).astype(np.float32) for n in (3, 1, 0, 4)]
    with jt.flag_scope(use_cuda=1):
        parts = [jt.array(array) for array in arrays]
        joined = join(parts, 1)
        gradients = jt.grad((joined * joined).sum(), parts)
        found = [value.numpy() for value in (joined, *gradients)]
    np.testing.assert_array_equal(found[0], np.concatenate(arrays, axis=1))
    for back, array in zip(found[1:], arrays):
        np.testing.assert_array_equal(back, 2 * array)
