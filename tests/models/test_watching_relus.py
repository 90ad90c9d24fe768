"""What `compare gradients` learns of the ReLUs: their outputs, in order, and nothing changes by being watched."""

import jittor as jt
import numpy as np

from jrdp.models.layers import Conv, ConvNormReLU, FrozenBatchNorm, GroupNorm, ReLU, relu, watching_relus


def test_outputs_are_seen_in_order_while_the_block_runs():
    x = np.random.default_rng(5).standard_normal((2, 3, 4, 5)).astype(np.float32)
    x[0, 0, 0, 0] = 0
    before = relu(jt.array(x)).numpy()
    with watching_relus() as seen:
        first = relu(jt.array(x))
        second = ReLU()(first - 1.0)
    relu(jt.array(x))
    assert len(seen) == 2
    assert np.array_equal(seen[0].numpy(), before) and np.array_equal(before, np.maximum(x, 0))
    assert np.array_equal(seen[0].numpy() > 0, x > 0)
    assert np.array_equal(seen[1].numpy(), second.numpy())


def test_watchers_nest_and_leave_nothing_behind():
    x = jt.array(np.ones((1, 2, 1, 1), np.float32))
    with watching_relus() as outer:
        with watching_relus() as inner:
            relu(x)
        relu(x)
    assert (len(outer), len(inner)) == (2, 1)
    try:
        with watching_relus() as broken:
            raise KeyError
    except KeyError:
        relu(x)
    assert broken == []


def test_relus_within_other_operators_are_seen():
    random = np.random.default_rng(6)
    x = jt.array(random.standard_normal((2, 4, 5, 6)).astype(np.float32))
    block, norm = ConvNormReLU(Conv(4, 8, 3), GroupNorm(8, 2), ReLU()), FrozenBatchNorm(4)
    with watching_relus() as seen:
        first, second = block(x), norm(x, add=x, rectify=True)
        norm(x)
        block[1](first)
    assert len(seen) == 2
    assert np.array_equal(seen[0].numpy(), first.numpy()) and np.array_equal(seen[1].numpy(), second.numpy())
    np.testing.assert_allclose(second.numpy(), np.maximum(2 * x.numpy(), 0), atol=1e-6)
    plain = block[2](block[1](block[0](x))).numpy()
    np.testing.assert_allclose(first.numpy(), plain, atol=1e-6)
