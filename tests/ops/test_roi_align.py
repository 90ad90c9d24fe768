"""RoIAlign on the CPU, and its CUDA kernels through the shim: goldens, NumPy reference, gradients, edges, bad input."""

import gc
from dataclasses import replace

import jittor as jt
import numpy as np
import ops_reference as reference
import pytest

from jrdp.ops import multilevel_roi_align, roi_align, roi_pooling

PLAN = roi_pooling._Plan(reference.SIZES, reference.SCALES, 2, True, roi_pooling.KERNELS)

# Each variant is another text: the CPU kernels, and the two backward kernels of CUDA run on the CPU.
VARIANTS = {
    "cpu": lambda plan: plan,
    "cuda gather": lambda plan: plan.shimmed(),
    "cuda atomics": lambda plan: replace(plan.shimmed(), deterministic=False),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def pool(features, rois, plan):
    """-> pooled arrays, and a function from gradients of these to gradients of the features."""
    variables = [jt.array(feature) for feature in features]
    pooled = roi_pooling._pool(variables, jt.array(rois), plan)

    def backward(gradients):
        loss = sum((y * jt.array(g)).sum() for y, g in zip(pooled, gradients))
        return [gradient.numpy() for gradient in jt.grad(loss, variables)]

    return [y.numpy() for y in pooled], backward


def network_features(random, images, channels):
    return [random.standard_normal((images, channels, h, w)).astype(np.float32) for h, w in reference.MAPS]


def assert_like_reference(rois, plan, images, channels, seed=0, aligned=False):
    random = np.random.default_rng(seed)
    features = network_features(random, images, channels)
    pooled, backward = pool(features, rois, plan)
    gradients = [random.standard_normal(y.shape).astype(np.float32) for y in pooled]
    results = backward(gradients)
    for level, feature in enumerate(features):
        how = (rois, plan.sizes[level], plan.scales[level], plan.sampling, aligned)
        np.testing.assert_allclose(pooled[level], reference.roi_align_forward(feature, *how), rtol=0, atol=1e-4)
        expected = reference.roi_align_backward(gradients[level], feature.shape, *how)
        np.testing.assert_allclose(results[level], expected, rtol=0, atol=2e-5 * max(np.abs(expected).max(), 1))


def golden_case(numbers, index):
    case = {name: numbers[f"roi/{index:02d}/{name}"] for name in ("x", "rois", "y", "gy", "gx", "scale_pooled_sr")}
    scale, size, sampling = case["scale_pooled_sr"]
    return case, roi_pooling._Plan((int(size),), (scale,), int(sampling), True, roi_pooling.KERNELS)


def test_equals_the_released_operator(golden, variant):
    with np.load(golden / "ops.npz") as numbers:
        for index in range(40):
            case, plan = golden_case(numbers, index)
            (pooled,), backward = pool([case["x"]], case["rois"], variant(plan))
            np.testing.assert_allclose(pooled, case["y"], rtol=0, atol=5e-6, err_msg=f"roi/{index}")
            gradient = backward([case["gy"]])[0]
            near = 1e-5 * np.abs(case["gx"]).max()
            np.testing.assert_allclose(gradient, case["gx"], rtol=0, atol=near, err_msg=f"roi/{index}")


def test_reference_equals_the_released_operator_and_aligned_does_not(golden):
    with np.load(golden / "ops.npz") as numbers:
        for index in range(40):
            case, plan = golden_case(numbers, index)
            how = (case["rois"], plan.sizes[0], plan.scales[0], plan.sampling)
            assert np.abs(reference.roi_align_forward(case["x"], *how) - case["y"]).max() < 1e-5
            assert np.abs(reference.roi_align_forward(case["x"], *how, aligned=True) - case["y"]).max() > 1e-2


def test_five_levels_batch_of_two(variant):
    # 20 channels leave the CUDA kernels' last group of eight half empty.
    rois = reference.random_rois(np.random.default_rng(1), count=11, images=2)
    assert_like_reference(rois, variant(PLAN), images=2, channels=20)


def test_boxes_on_and_over_the_border_and_degenerate(variant):
    assert_like_reference(reference.EDGE_ROIS, variant(PLAN), images=2, channels=3)


def test_adaptive_sampling(variant):
    plan = roi_pooling._Plan(reference.SIZES, reference.SCALES, 0, True, roi_pooling.KERNELS)
    rois = reference.random_rois(np.random.default_rng(2), count=4, images=2)
    assert_like_reference(rois, variant(plan), images=2, channels=3)


def test_one_box(variant):
    assert_like_reference(np.array([[0, 13, 21, 200, 177]], np.float32), variant(PLAN), images=1, channels=9)


def test_equal_boxes_add_their_gradients(variant):
    rois = np.repeat(np.array([[0, 13, 21, 200, 177]], np.float32), 10, axis=0)
    assert_like_reference(rois, variant(PLAN), images=1, channels=2)


def test_zero_boxes(variant):
    features = network_features(np.random.default_rng(3), 2, 4)
    pooled, backward = pool(features, np.zeros((0, 5), np.float32), variant(PLAN))
    assert [y.shape for y in pooled] == [(0, 4, size, size) for size in reference.SIZES]
    for gradient, feature in zip(backward(pooled), features):
        assert gradient.shape == feature.shape
        assert not gradient.any()


def test_unused_levels_get_zero_gradients():
    random = np.random.default_rng(4)
    features = [jt.array(feature) for feature in network_features(random, 1, 3)]
    rois = reference.random_rois(random, 5, 1)
    pooled = multilevel_roi_align(features, rois, reference.SIZES, reference.SCALES)
    gradients = [gradient.numpy() for gradient in jt.grad(pooled[1].sum(), features)]
    assert [gradient.any() for gradient in gradients] == [False, True, False, False, False]


def test_finite_differences(variant):
    # Linear in the features, so that a step of any length gives the derivative; the gradient is contracted with it.
    random = np.random.default_rng(5)
    features, steps = network_features(random, 1, 3), network_features(random, 1, 3)
    rois = reference.random_rois(random, 3, 1)
    plan = variant(PLAN)
    pooled, backward = pool(features, rois, plan)
    weights = [random.standard_normal(y.shape).astype(np.float32) for y in pooled]
    gradients = backward(weights)
    for level in range(len(features)):
        values = []
        for sign in (1, -1):
            moved = list(features)
            moved[level] = features[level] + sign * steps[level]
            there, _ = pool(moved, rois, plan)
            values.append(sum(float((y.astype(np.float64) * w).sum()) for y, w in zip(there, weights)))
        slope = float((gradients[level].astype(np.float64) * steps[level]).sum())
        assert (values[0] - values[1]) / 2 == pytest.approx(slope, rel=1e-4, abs=1e-3)


def test_aligned_variant_would_be_noticed():
    rois = reference.random_rois(np.random.default_rng(1), count=3, images=1)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_like_reference(rois, PLAN, images=1, channels=2, aligned=True)


def test_same_result_every_time():
    random = np.random.default_rng(6)
    features, rois = network_features(random, 2, 16), reference.random_rois(random, 40, 2)
    weights = None
    results = []
    for _ in range(3):
        pooled, backward = pool(features, rois, PLAN)
        weights = weights or [random.standard_normal(y.shape).astype(np.float32) for y in pooled]
        results.append(backward(weights))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other))


def test_single_level_is_one_level_of_many():
    random = np.random.default_rng(7)
    features, rois = network_features(random, 2, 4), reference.random_rois(random, 6, 2)
    variables = [jt.array(feature) for feature in features]
    together = multilevel_roi_align(variables, jt.array(rois), reference.SIZES, reference.SCALES, 2)
    for level, (size, scale) in enumerate(zip(reference.SIZES, reference.SCALES)):
        alone = roi_align(variables[level], jt.array(rois), size, scale, 2)
        np.testing.assert_array_equal(alone.numpy(), together[level].numpy())


def test_three_levels():
    random = np.random.default_rng(8)
    features, rois = network_features(random, 1, 4)[:3], reference.random_rois(random, 6, 1)
    plan = roi_pooling._Plan(reference.SIZES[:3], reference.SCALES[:3], 2, True, roi_pooling.KERNELS)
    pooled, _ = pool(features, rois, plan)
    for level, feature in enumerate(features):
        expected = reference.roi_align_forward(feature, rois, plan.sizes[level], plan.scales[level], 2)
        np.testing.assert_allclose(pooled[level], expected, rtol=0, atol=1e-4)


def test_boxes_as_an_array_and_what_is_left_out(monkeypatch):
    random = np.random.default_rng(9)
    features = [jt.array(feature) for feature in network_features(random, 2, 3)]
    given = multilevel_roi_align(features, jt.array(reference.EDGE_ROIS), reference.SIZES, reference.SCALES, 2, True)
    numbers, code = [], jt.code
    monkeypatch.setattr(jt, "code", lambda *args, data, **more: numbers.append(data) or code(*args, data=data, **more))
    as_array = multilevel_roi_align(features, reference.EDGE_ROIS, reference.SIZES, reference.SCALES)
    alone = roi_align(features[1], reference.EDGE_ROIS.tolist(), reference.SIZES[1], reference.SCALES[1])
    for one, other in zip([*as_array, alone], [*given, given[1]]):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    jt.grad(as_array[0].sum() + alone.sum(), features)
    assert [entry["sampling"] for entry in numbers] == [2] * 4
    assert [entry["deterministic"] for entry in numbers[2:]] == [1, 1]  # unless somebody asks for atomic additions


@pytest.mark.parametrize("sampling", [0, 1])
def test_sampling(sampling):
    feature = np.random.default_rng(10).standard_normal((1, 2, 20, 30)).astype(np.float32)
    found = roi_align(jt.array(feature), [[0, 8, 16, 200, 120]], 3, 0.125, sampling).numpy()
    expected = reference.roi_align_forward(feature, np.array([[0, 8, 16, 200, 120]]), 3, 0.125, sampling)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("far", [2**24, -(2**24)])
def test_how_far_a_corner_may_be(far):
    roi_align(jt.zeros((1, 2, 4, 4)), [[0, 1, 2, far, 40]], 4, 0.125).numpy()
    with pytest.raises(ValueError, match="rois: box 0 is not finite or too large"):
        roi_align(jt.zeros((1, 2, 4, 4)), [[0, 1, 2, np.sign(far) * (2**24 + 2), 40]], 4, 0.125)  # the next float32


BOX = [0, 1, 2, 30, 40]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"features": np.zeros((1, 2, 4, 4), np.float32)}, r"features\[0\]: expected a float32 Var .* got float32"),
        ({"features": jt.zeros((2, 4, 4))}, r"features\[0\]: .* got float32 \[2, 4, 4\]"),
        ({"features": jt.zeros((1, 2, 4, 4), "float64")}, r"features\[0\]: .* got float64"),
        ({"features": [1, 2]}, r"features\[0\]: expected a float32 Var \[N, C, H, W\], got list"),
        ({"features": jt.zeros((1, 2, 0, 4))}, r"features\[0\]: empty"),
        ({"features": jt.zeros((0, 2, 4, 4))}, r"features\[0\]: empty"),
        ({"rois": np.zeros((3, 4), np.float32)}, r"rois: expected float32 \[R, 5\] .* got float32 \[3, 4\]"),
        ({"rois": np.zeros(5, np.float32)}, r"rois: expected float32 \[R, 5\] .* got float32 \[5\]"),
        ({"rois": jt.zeros((3, 4))}, r"rois: expected float32 \[R, 5\] .* got float32 \[3, 4\]"),
        ({"rois": jt.zeros(5)}, r"rois: expected float32 \[R, 5\] .* got float32 \[5\]"),
        ({"sampling_ratio": 1.5}, "sampling_ratio: must be a whole number of at least 0, got 1.5"),
        ({"rois": jt.zeros((3, 5), "int32")}, r"rois: .* got int32"),
        ({"rois": [BOX, [0, 1, np.nan, 30, 40]]}, "rois: box 1 is not finite"),
        ({"rois": [BOX, BOX, [0, 1, 2, np.inf, 40]]}, "rois: box 2 is not finite"),
        ({"rois": [BOX, [1, 1, 2, 30, 40]]}, "rois: box 1 has batch index 1, the batch has 1 images"),
        ({"rois": [[-1, 1, 2, 30, 40]]}, "rois: box 0 has batch index -1"),
        ({"output_size": 0}, "output_sizes: must be positive, got 0"),
        ({"output_size": 2.5}, "output_sizes: must be whole"),
        ({"spatial_scale": -1.0}, "spatial_scales: must be positive"),
        ({"spatial_scale": float("nan")}, "spatial_scales: must be positive"),
        ({"spatial_scale": float("inf")}, "spatial_scales: must be positive"),
        ({"sampling_ratio": -1}, "sampling_ratio: must be"),
    ],
)
def test_bad_arguments(changes, message):
    arguments = {"features": jt.zeros((1, 2, 4, 4)), "rois": [BOX], "output_size": 4, "spatial_scale": 0.125, **changes}
    with pytest.raises(ValueError, match=message):
        roi_align(**arguments)


def test_bad_levels():
    with pytest.raises(ValueError, match=r"features\[1\]: \[N, C\] is"):
        multilevel_roi_align([jt.zeros((1, 2, 4, 4)), jt.zeros((1, 3, 4, 4))], [BOX], (4, 4), (0.125, 0.25))
    with pytest.raises(ValueError, match="spatial_scales: 1 values for 2 levels"):
        multilevel_roi_align([jt.zeros((1, 2, 4, 4))] * 2, [BOX], (4, 4), (0.125,))
    with pytest.raises(ValueError, match="1 to 8 levels are supported, got 0"):
        multilevel_roi_align([], [BOX], (), ())
    with pytest.raises(ValueError, match="1 to 8 levels are supported, got 9"):
        multilevel_roi_align([jt.zeros((1, 2, 4, 4))] * 9, [BOX], (4,) * 9, (0.125,) * 9)
    with pytest.raises(ValueError, match="output_sizes: 7 values for 8 levels"):  # eight are not too many
        multilevel_roi_align([jt.zeros((1, 2, 4, 4))] * 8, [BOX], (4,) * 7, (0.125,) * 8)


BAD_BOXES = [[0, 1, np.nan, 30, 40], [0, 1, 2, np.inf, 40], [1, 1, 2, 30, 40], [-1, 1, 2, 30, 40]]


@pytest.mark.parametrize("box", BAD_BOXES)
def test_bad_box_in_a_var(box):
    pooled = roi_align(jt.ones((1, 2, 4, 4)), jt.array(np.array([BOX, box], np.float32)), 4, 0.125)
    with pytest.raises(RuntimeError) as caught:
        pooled.numpy()
    text = str(caught.value)
    # Jittor computes whatever is alive and pending, so what cannot be computed must go before the next test.
    del caught, pooled
    gc.collect()
    assert "rois: box 1 has a coordinate that is not finite or too large, or a batch index outside 0..0" in text


@pytest.mark.parametrize("box", BAD_BOXES)
def test_bad_box_on_cuda_pools_zeros(box):
    # These kernels cannot raise; they leave its neighbours and all memory alone.
    for plan in (VARIANTS["cuda gather"](PLAN), VARIANTS["cuda atomics"](PLAN)):
        features = [np.ones((1, 2, *shape), np.float32) for shape in reference.MAPS]
        pooled, backward = pool(features, np.array([BOX, box], np.float32), plan)
        for level in pooled:
            np.testing.assert_allclose(level[0], 1, rtol=1e-6)
            assert not level[1].any()
        from_bad_box_only = [np.concatenate([np.zeros_like(y[:1]), np.ones_like(y[:1])]) for y in pooled]
        assert not any(gradient.any() for gradient in backward(from_bad_box_only))
