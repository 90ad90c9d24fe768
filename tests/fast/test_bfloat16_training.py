"""Training's convolutions in bfloat16 and both their gradients, against plain NumPy in float64 on numbers that NumPy has
rounded; and a network that trains with them."""

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from jrdp.config import load_config
from jrdp.engine import precision
from jrdp.engine.convolutions import convolutions_as_defined, convolutions_of_training, refuse_unfit_arithmetic
from jrdp.errors import UserError
from jrdp.fast import bfloat16
from jrdp.models.layers import Conv
from test_bfloat16 import rounded
from test_training import normal, relative


def products(x, weight, dy, stride, groups):
    """Output, gradient of x and gradient of weight of a convolution with "same" padding, in float64, NCHW."""
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    out, within, k, _ = weight.shape
    pad, (oh, ow) = k // 2, dy.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y, dpadded, dweight = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for g in range(groups):
        o, c = (slice(g * size, (g + 1) * size) for size in (out // groups, within))
        for a in range(k):
            for b in range(k):
                rows, columns = slice(a, a + stride * (oh - 1) + 1, stride), slice(b, b + stride * (ow - 1) + 1, stride)
                window, w = padded[:, c, rows, columns], weight[o, :, a, b]
                y[:, o] += np.einsum("nchw,oc->nohw", window, w, optimize=True)
                dpadded[:, c, rows, columns] += np.einsum("nohw,oc->nchw", dy[:, o], w, optimize=True)
                dweight[o, :, a, b] = np.einsum("nohw,nchw->oc", dy[:, o], window, optimize=True)
    return y, dpadded[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]], dweight


def results(convolve, x, weight, dy, stride, groups):
    inputs = jt.array(x), jt.array(weight)
    y = convolve(*inputs, None, stride, weight.shape[2] // 2, 1, groups)
    return [v.numpy() for v in (y, *jt.grad((y * jt.array(dy)).sum(), list(inputs)))]


SHAPES = [  # n, h, w, in, out, kernel, stride, groups
    (2, 9, 14, 64, 128, 1, 1, 1),
    (2, 9, 14, 64, 128, 1, 2, 1),
    (1, 33, 47, 3, 64, 7, 2, 1),
    (1, 1, 1, 32, 32, 3, 1, 1),
    (3, 17, 11, 32, 64, 3, 1, 1),
    (2, 15, 16, 48, 40, 3, 2, 1),
    (2, 12, 20, 256, 256, 3, 1, 32),  # ResNeXt's
    (1, 13, 10, 512, 512, 3, 2, 32),
    (2, 8, 9, 64, 1, 3, 1, 1),
    (2, 8, 9, 64, 4, 3, 1, 1),
    (5, 16, 16, 128, 2, 1, 1, 1),
    (2, 70, 65, 65, 70, 1, 1, 1),  # maps and channels that fill no tile of the transposition
]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_convolution_and_both_gradients(case):
    n, h, w, c, o, kernel, stride, groups = case
    x, weight = normal(n, c, h, w), normal(o, c // groups, kernel, kernel)
    dy = normal(n, o, (h - 1) // stride + 1, (w - 1) // stride + 1)
    wanted = products(rounded(x), rounded(weight), rounded(dy), stride, groups)
    exact = products(x, weight, dy, stride, groups)
    plain = results(nn.conv2d, x, weight, dy, stride, groups)
    for name, found, right, unrounded, float32 in zip(
        ("output", "input", "weight"), results(bfloat16.convolve, x, weight, dy, stride, groups), wanted, exact, plain
    ):
        assert found.dtype == np.float32 and found.shape == right.shape
        assert relative(found, right) < 2e-6, name
        # Neither is this float32's result, nor float32's this one.
        assert relative(found, unrounded) > 5e-4 and relative(float32, right) > 5e-4, name
        assert relative(float32, unrounded) < 1e-5, name


def test_no_rois_have_an_output_and_gradients_too():
    x, weight = np.zeros((0, 32, 8, 8), np.float32), normal(16, 32, 3, 3)
    y, dx, dweight = results(bfloat16.convolve, x, weight, np.zeros((0, 16, 8, 8), np.float32), 1, 1)
    assert y.shape == (0, 16, 8, 8) and dx.shape == x.shape
    assert dweight.shape == weight.shape and not dweight.any()


def test_what_is_not_a_number_stays_none():
    x, weight = normal(1, 32, 6, 6), normal(32, 32, 1, 1)
    x[0, 3, 2, 2] = np.nan
    y = bfloat16.convolve(jt.array(x), jt.array(weight)).numpy()
    assert np.isnan(y[0, :, 2, 2]).all() and np.isnan(y).sum() == 32


@pytest.mark.parametrize("h, w, kernel", [(2, 1, 3), (1, 1, 3), (3, 1, 7), (1, 2, 3), (8, 1, 3), (1, 8, 3)])
def test_small_maps_do_not_depend_on_what_was_computed_before(h, w, kernel):
    """oneDNN's scratch memory is then full of what is not a number, and its strided gradient of weights would read of it."""
    x, weight, dy = normal(2, 64, h, w), normal(64, 64, kernel, kernel), normal(2, 64, (h + 1) // 2, (w + 1) // 2)
    wanted = products(rounded(x), rounded(weight), rounded(dy), 2, 1)
    for size, channels, stride in ((16, 128, 1), (12, 64, 2)):
        nothing = [np.full(s, np.nan, np.float32) for s in ((2, channels, size, size), (channels, channels, 3, 3))]
        results(bfloat16.convolve, *nothing, np.full((2, channels, size // stride, size // stride), np.nan, np.float32), stride, 1)
        for found, right in zip(results(bfloat16.convolve, x, weight, dy, 2, 1), wanted):
            assert relative(found, right) < 2e-6


def test_other_convolutions_are_refused():
    x, weight = jt.array(normal(1, 32, 6, 6)), jt.array(normal(32, 32, 3, 3))
    for padding, dilation in ((0, 1), (1, 2)):
        with pytest.raises(ValueError, match='"same" padding and no dilation'):
            bfloat16.convolve(x, weight, None, 1, padding, dilation)


def test_a_network_trains_that_way_and_predicts_plainly():
    class Two(nn.Module):
        def __init__(self):
            self.first, self.second = Conv(32, 32, 3), Conv(32, 64, 3, stride=2, bias=False)

        def execute(self, x):
            return self.second(self.first(x))

    network, x = Two(), jt.array(normal(2, 32, 40, 40))
    train = load_config(None, ["train.precision=bfloat16"]).train

    def outcome():
        y = network(x)
        return [y.numpy(), *(g.numpy() for g in jt.grad((y * y).sum(), [network.first.weight, network.first.bias]))]

    plain = outcome()
    with convolutions_of_training(network, train):
        half, again = outcome(), outcome()
        with convolutions_as_defined(network, train):
            inside = outcome()
    after = outcome()
    for a, b in zip(half, plain):
        assert 5e-4 < relative(a, b) < 1e-2
    for same, first in ((again, half), (inside, plain), (after, plain)):
        assert all(np.array_equal(a, b) for a, b in zip(same, first))


def test_settings_that_cannot_be_had_are_refused(monkeypatch):
    for others, words in (
        (["train.engine=fast"], "engine: fast has no effect with precision: bfloat16"),
        (["train.amp=true"], "amp is for a GPU and precision: bfloat16 for a CPU"),
    ):
        with pytest.raises(UserError, match=words):
            load_config(None, ["train.precision=bfloat16", *others])
    train = load_config(None, ["train.precision=bfloat16"]).train
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda home: None)
    with pytest.raises(UserError, match=r"train.precision=bfloat16 .*neither AMX nor AVX512_BF16\); use --set train.pre"):
        refuse_unfit_arithmetic(train)
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda home: "AMX")
    refuse_unfit_arithmetic(train)
