"""Group normalisation against NumPy in float64, value and gradients, on the CPU and with the CUDA kernels in the shim."""

import jittor as jt
import numpy as np
import pytest

from jrdp.ops import group_norm
from jrdp.ops.normalization import KERNELS

EPS = 1e-5


def reference(x, weight, bias, dy, groups, relu=False):
    """The result and the three gradients of sum(dy * y), in float64."""
    x, weight, bias, dy = (array.astype(np.float64) for array in (x, weight, bias, dy))
    n, c, h, w = x.shape
    split = x.reshape(n, groups, -1)
    mean, variance = split.mean(axis=2, keepdims=True), split.var(axis=2, keepdims=True)
    scale = 1 / np.sqrt(variance + EPS)
    normal = ((split - mean) * scale).reshape(x.shape)
    per_channel = (slice(None), None, None)
    y = normal * weight[per_channel] + bias[per_channel]
    if relu:
        dy, y = np.where(y > 0, dy, 0), np.maximum(y, 0)
    given = (dy * weight[per_channel]).reshape(n, groups, -1)
    along = normal.reshape(n, groups, -1)
    dx = scale * (given - given.mean(axis=2, keepdims=True) - along * (given * along).mean(axis=2, keepdims=True))
    return y, dx.reshape(x.shape), (dy * normal).sum((0, 2, 3)), dy.sum((0, 2, 3))


def run(x, weight, bias, dy, groups, kernels, relu=False):
    variables = [jt.array(array) for array in (x, weight, bias)]
    y = group_norm(*variables, groups, EPS, kernels, relu)
    gradients = jt.grad((y * jt.array(dy)).sum(), variables)
    return [value.numpy() for value in (y, *gradients)]


def numbers(shape, mean=0.0, spread=1.0):
    random = np.random.default_rng(sum(shape))
    x = (mean + spread * random.standard_normal(shape)).astype(np.float32)
    weight, bias = (random.standard_normal(shape[1]).astype(np.float32) for _ in range(2))
    return x, weight, bias, random.standard_normal(shape).astype(np.float32)


@pytest.fixture(params=["cpu", "shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request):
    with jt.flag_scope(use_cuda=int(request.param == "cuda")):
        yield KERNELS.shimmed() if request.param == "shim" else KERNELS


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "shape, groups", [((2, 8, 5, 7), 4), ((1, 32, 1, 1), 8), ((3, 6, 1, 9), 1), ((2, 5, 3, 3), 5), ((1, 4, 40, 33), 2)]
)
def test_equals_the_reference(shape, groups, kernels, relu):
    given = numbers(shape)
    for found, expected in zip(run(*given, groups, kernels, relu), reference(*given, groups, relu)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * max(np.abs(expected).max(), 1))


def test_a_mean_that_is_large_against_the_spread(kernels):
    given = numbers((2, 8, 6, 7), mean=100.0, spread=0.01)
    found, expected = run(*given, 4, kernels), reference(*given, 4)
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=2e-3)
    naive = given[0].reshape(2, 4, -1)
    variance = (naive * naive).mean(axis=2) - naive.mean(axis=2) ** 2
    assert np.abs(variance - naive.var(axis=2)).max() > 1e-4  # as E[x^2] - E[x]^2 the spread is lost


@pytest.mark.parametrize("relu", [False, True])
def test_a_spread_whose_square_is_no_float(relu):
    """What a network comes to that is trained too fast. On a CPU only: CUDA's kernels square in float, as PyTorch's do."""
    given = numbers((2, 8, 6, 7), spread=3e21)
    for found, expected in zip(run(*given, 4, KERNELS, relu), reference(*given, 4, relu)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_no_spread_at_all(kernels):
    x, weight, bias, dy = numbers((1, 4, 3, 3))
    y = run(np.full_like(x, 7.25), weight, bias, dy, 2, kernels)[0]
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], x.shape))


def test_no_image(kernels):
    y, dx, dweight, dbias = run(*numbers((0, 4, 3, 3)), 2, kernels)
    assert y.shape == dx.shape == (0, 4, 3, 3)
    assert not dweight.any() and not dbias.any()


def test_memory(allocated):
    variables = [jt.array(value) for value in numbers((3, 8, 5, 7))[:3]]
    y = group_norm(*variables, 4, EPS, KERNELS.shimmed())
    jt.grad(y.sum(), variables)
    # Mean and scale of each image and group; two sums of each image and channel.
    assert allocated == [[840, 2 * 3 * 4], [840, 8, 8, 2 * 3 * 8]]


def test_another_eps_would_be_noticed(kernels, monkeypatch):
    given = numbers((2, 8, 5, 7), spread=0.01)
    for eps in (0.5, 1e-3):
        monkeypatch.setitem(globals(), "EPS", eps)
        for found, expected in zip(run(*given, 4, kernels), reference(*given, 4)):
            np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * max(np.abs(expected).max(), 1))
    wrong = run(*given, 4, kernels)[0]
    monkeypatch.undo()
    assert np.abs(run(*given, 4, kernels)[0] - wrong).max() > 1e-3


def test_what_is_not_a_number_stays_so_behind_the_relu(kernels):
    x, weight, bias, dy = numbers((2, 4, 3, 3))
    x[1, 0, 0, 0] = np.nan
    y = run(x, weight, bias, dy, 2, kernels, relu=True)[0]
    assert np.isnan(y[1, :2]).all() and np.isfinite(y[0]).all() and np.isfinite(y[1, 2:]).all()


def test_bad_arguments():
    x, ones = jt.ones((1, 6, 2, 2)), jt.ones(6)
    with pytest.raises(ValueError, match="groups: 4 does not divide 6 channels"):
        group_norm(x, ones, ones, 4)
    with pytest.raises(ValueError, match="groups: 0 does not divide 6 channels"):
        group_norm(x, ones, ones, 0)
    with pytest.raises(ValueError, match=r"bias: expected float32 \[6\], got float32 \[5\]"):
        group_norm(x, ones, jt.ones(5), 3)
    with pytest.raises(ValueError, match=r"x: expected float32 \[N, C, H, W\]"):
        group_norm(ones, ones, ones, 3)


def test_the_eps_that_is_left_out():
    x, weight, bias, _ = (jt.array(value) for value in numbers((2, 8, 5, 7), spread=0.001))
    given, left_out = (group_norm(x, weight, bias, 4, *eps).numpy() for eps in ((1e-5,), ()))
    np.testing.assert_array_equal(left_out, given)
    assert (left_out < 0).any()  # nor is there a ReLU that nobody asked for
    assert np.abs(group_norm(x, weight, bias, 4, 1e-6).numpy() - given).max() > 0.1
