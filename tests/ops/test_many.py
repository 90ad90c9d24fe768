"""SGD and the report for all parameters at once, against NumPy, the CUDA kernels in the shim and on a GPU."""

import jittor as jt
import numpy as np
import pytest

from jrdp.ops import many

# More arrays than one launch takes, arrays of several blocks, of one number, and empty ones at begin, middle and end.
SHAPES = [(0,), (3, 2), (1,), (5000,), (0, 4), *[(k % 7 + 1,) for k in range(64)], (2, 4096), (0,)]


def arrays(seed, shapes=SHAPES):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def test_sgd(where):
    weights, gradients, momenta = arrays(0), arrays(1), arrays(2)
    given = [[jt.array(a) for a in part] for part in (weights, gradients, momenta)]
    new_weights, new_momenta = many.sgd(*given, 0.1, 0.9, 0.05, kernels=where(many.KERNELS))
    found = [[a.numpy() for a in part] for part in (new_weights, new_momenta)]
    for w, g, v, new_w, new_v in zip(weights, gradients, momenta, *found):
        expected = np.float64(0.9) * v + (np.float64(0.05) * w + g)
        assert new_w.shape == w.shape
        np.testing.assert_allclose(new_v, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(new_w, w - 0.1 * expected, rtol=0, atol=1e-6)
    for part, before in zip(given, (weights, gradients, momenta)):
        assert all(np.array_equal(a.numpy(), b) for a, b in zip(part, before))


def test_memory(allocated):
    given = [[jt.array(a) for a in arrays(k, [(3, 2), (4,)])] for k in range(3)]
    many.sgd(*given, 0.1, 0.9, 0.05, kernels=many.KERNELS.shimmed())
    many.report([jt.array([1.5])], given[0], kernels=many.KERNELS.shimmed())
    assert allocated == [[6, 4, 6, 4], [3]]  # weights and momenta; a number for each entry


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_report(value, where):
    given = arrays(3)
    given[1][2, 1] = given[3][4999] = given[67][0] = given[69][1, 4095] = value
    given[2][0] = np.finfo(np.float32).max  # a large number is a number
    told = many.report([jt.array([1.5]), jt.array([value])], [jt.array(a) for a in given], kernels=where(many.KERNELS)).numpy()
    assert told[0] == 1.5 and (told[1] == value or (np.isnan(told[1]) and np.isnan(value)))
    assert np.flatnonzero(told[2:]).tolist() == [1, 3, 67, 69]


def test_report_without_arrays(where):
    assert many.report([jt.array([2.0])], [], kernels=where(many.KERNELS)).numpy().tolist() == [2.0]


def test_bad_arguments():
    one = jt.ones((2,))
    with pytest.raises(ValueError, match="1 weights, 0 gradients, 1 momenta"):
        many.sgd([one], [], [one], 1, 1, 1)
    with pytest.raises(ValueError, match=r"array 1 is float32 \[3\], expected float32 \[2\]"):
        many.sgd([one], [jt.ones((3,))], [one], 1, 1, 1)
    with pytest.raises(ValueError, match=r"array 2 is int32 \[2\], expected float32 \[2\]"):
        many.sgd([one], [one], [one.int32()], 1, 1, 1)
    with pytest.raises(ValueError, match="2 weights, 2 gradients, 1 momenta"):
        many.sgd([one] * 2, [one] * 2, [one], 1, 1, 1)
    with pytest.raises(ValueError, match=r"entry 1 is int32 \[2\]"):
        many.report([jt.ones((1,))], [one.int32()])
    with pytest.raises(ValueError, match=r"entry 63 is float32 \[2\]"):  # 64 numbers are not too many
        many.report([jt.ones((1,))] * 63 + [one], [])
    with pytest.raises(ValueError, match=r"entry 0 is float32 \[2\]"):
        many.report([one], [])
    with pytest.raises(ValueError, match="at most 64 numbers, got 65"):
        many.report([jt.ones((1,))] * 65, [])
