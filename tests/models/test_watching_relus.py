"""What `compare gradients` learns of the ReLUs: their outputs, in order, and nothing changes by being watched."""

import jittor as jt
import numpy as np

from jrdp.models.layers import ReLU, relu, watching_relus


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
