"""Concatenation against NumPy's, values and gradients, on the CPU and with the CUDA kernel in the shim."""

import jittor as jt
import numpy as np
import pytest

from jrdp.ops import join
from jrdp.ops.joining import KERNELS

SHAPES = [
    ([(2, 3, 4, 5)], 1),
    ([(2, 3, 4, 5), (2, 1, 4, 5)], 1),
    ([(1, 2, 1, 1), (1, 3, 1, 1), (1, 1, 1, 1)], 1),
    ([(2, 4, 7), (2, 4, 1), (2, 4, 0), (2, 4, 3), (2, 4, 2)], 2),
    ([(0, 3, 2), (4, 3, 2), (1, 3, 2)], 0),
    ([(300, 33), (300, 1)], 1),
]


@pytest.mark.parametrize("shapes, dim", SHAPES)
@pytest.mark.parametrize("kernels", [KERNELS, KERNELS.shimmed()], ids=["cpu", "shim"])
def test_equals_numpy(shapes, dim, kernels):
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    parts = [jt.array(array) for array in arrays]
    joined = join(parts, dim, kernels)
    expected = np.concatenate(arrays, axis=dim)
    assert np.array_equal(joined.numpy(), expected)
    gradient = random.standard_normal(expected.shape).astype(np.float32)
    found = jt.grad((joined * jt.array(gradient)).sum(), parts)
    ends = np.cumsum([shape[dim] for shape in shapes])[:-1]
    for back, wanted in zip(found, np.split(gradient, ends, axis=dim)):
        assert np.array_equal(back.numpy(), wanted)


def test_refuses_what_does_not_go_together():
    x = jt.ones((2, 3, 4))
    with pytest.raises(ValueError, match="part 1: shape"):
        join([x, jt.ones((2, 3, 5))], dim=1)
    with pytest.raises(ValueError, match="part 1: dtype"):
        join([x, x.int32()], dim=1)
    with pytest.raises(ValueError, match="1 to 5 parts, got 6"):
        join([x] * 6, dim=1)
