"""Frozen batch norm with shortcut and ReLU against NumPy in float64, value and gradients, the CUDA kernels in the shim and on
a GPU."""

import jittor as jt
import numpy as np
import pytest

from jrdp.ops import frozen_norm
from jrdp.ops.frozen_norm import KERNELS


def numbers(shape):
    random = np.random.default_rng(sum(shape))
    x, add, dy = (random.standard_normal(shape).astype(np.float32) for _ in range(3))
    weight, bias, mean = (random.standard_normal(shape[1]).astype(np.float32) for _ in range(3))
    return x, add, dy, weight, bias, mean, random.uniform(0.1, 3, shape[1]).astype(np.float32)


def reference(x, add, dy, weight, bias, mean, variance, relu):
    """The result and the gradients of sum(dy * y) by x and add, in float64; add may be None."""
    weight, bias, mean, variance = (v.astype(np.float64)[:, None, None] for v in (weight, bias, mean, variance))
    scale = weight / np.sqrt(variance)
    y = (x - mean) * scale + bias + (0 if add is None else add)
    if relu:
        dy, y = np.where(y > 0, dy, 0), np.maximum(y, 0)
    return y, dy * scale, dy


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 3, 40, 33), (3, 4, 1, 1), (1, 2, 32, 64)])
def test_equals_the_reference(shape, with_add, relu, where):
    x, add, dy, *constants = numbers(shape)
    wanted = [jt.array(x), *([jt.array(add)] if with_add else [])]
    fixed = [jt.array(value).stop_grad() for value in constants]
    y = frozen_norm(wanted[0], *fixed, wanted[1] if with_add else None, relu, where(KERNELS))
    found = [value.numpy() for value in [y, *jt.grad((y * jt.array(dy)).sum(), wanted)]]
    expected = reference(x, add if with_add else None, dy, *constants, relu)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * max(np.abs(other).max(), 1))
    assert len(found) == 2 + with_add


def test_memory_and_no_relu_that_nobody_asked_for(allocated):
    x, add, _, *constants = (jt.array(value) for value in numbers((2, 3, 5, 4)))
    y = frozen_norm(x, *constants, kernels=KERNELS.shimmed())
    jt.grad(y.sum(), [x])
    assert (y.numpy() < 0).any()
    jt.grad(frozen_norm(x, *constants, add, kernels=KERNELS.shimmed()).sum(), [x, add])
    assert allocated == [[120], [120], [120], [120, 120]]  # forth and back, without `add` and with it


def test_of_constants_is_a_constant(where):
    x, add, _, *constants = numbers((1, 2, 3, 3))
    fixed = [jt.array(value).stop_grad() for value in constants]
    assert frozen_norm(jt.array(x).stop_grad(), *fixed, None, True, where(KERNELS)).is_stop_grad()
    assert not frozen_norm(jt.array(x).stop_grad(), *fixed, jt.array(add), True, where(KERNELS)).is_stop_grad()


def test_what_is_not_a_number_stays_so(where):
    x, _, _, *constants = numbers((1, 2, 3, 3))
    x[0, 1, 2, 0] = np.nan
    y = frozen_norm(jt.array(x), *[jt.array(value) for value in constants], None, True, where(KERNELS)).numpy()
    assert np.isnan(y).sum() == 1 and np.isnan(y[0, 1, 2, 0])


def test_bad_arguments():
    x, ones = jt.ones((1, 6, 2, 2)), jt.ones(6)
    with pytest.raises(ValueError, match=r"variance: expected float32 \[6\], got float32 \[5\]"):
        frozen_norm(x, ones, ones, ones, jt.ones(5))
    with pytest.raises(ValueError, match=r"add: expected float32 \[1, 6, 2, 2\]"):
        frozen_norm(x, ones, ones, ones, ones, jt.ones((1, 6, 2, 1)))
