"""The layers against NumPy in float64 and the released numbers."""

import jittor as jt
import numpy as np
import pytest

from jrdp.config import ModelConfig
from jrdp.models.fpn import FPN
from jrdp.models.layers import Conv, FrozenBatchNorm, GroupNorm, resize_like, use_half_convolutions
from jrdp.models.resnet import Bottleneck
from jrdp.models.state import assign_state


def plain_conv(x, weight, bias=None, stride=1, groups=1):
    """A convolution with padding kernel // 2, by loops over the kernel, float64."""
    n, channels, height, width = x.shape
    out, per_group, kernel, _ = weight.shape
    pad = kernel // 2
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1
    y = np.zeros((n, out, rows, columns))
    for g in range(groups):
        mine = slice(g * out // groups, (g + 1) * out // groups)
        given = x[:, g * per_group : (g + 1) * per_group]
        for i in range(kernel):
            for j in range(kernel):
                window = given[:, :, i : i + stride * rows : stride, j : j + stride * columns : stride]
                y[:, mine] += np.einsum("oc,nchw->nohw", weight[mine, :, i, j].astype(np.float64), window)
    return y if bias is None else y + bias[:, None, None]


@pytest.mark.parametrize("kernel, stride, groups", [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 2, 4), (7, 2, 1)])
def test_conv(kernel, stride, groups):
    rng = np.random.default_rng(0)
    conv = Conv(8, 12, kernel, stride=stride, groups=groups)
    conv.bias.assign(rng.standard_normal(12).astype(np.float32))
    x = rng.standard_normal((2, 8, 11, 14)).astype(np.float32)
    expected = plain_conv(x, conv.weight.numpy(), conv.bias.numpy(), stride, groups)
    np.testing.assert_allclose(conv(jt.array(x)).numpy(), expected, atol=1e-5)


def test_half_convolution_rounds_its_inputs_and_nothing_else():
    rng = np.random.default_rng(2)
    block = jt.nn.Sequential(Conv(8, 12, 3), GroupNorm(12, groups=4))
    conv = block[0]
    conv.weight.assign(rng.standard_normal(conv.weight.shape).astype(np.float32))
    conv.bias.assign(np.full(12, 1e-4, np.float32))  # float16 would lose it beside a result of order 10
    x = rng.standard_normal((1, 8, 5, 6)).astype(np.float32)
    exact = conv(jt.array(x)).numpy()
    use_half_convolutions(block)
    variable = jt.array(x)
    y = conv(variable)
    gradients = jt.grad((y * y).sum(), [variable, conv.weight])
    found = [value.numpy() for value in (y, *gradients)]
    assert {str(value.dtype) for value in found} == {"float32"} and conv.weight.dtype == "float32"
    rounded = [value.astype(np.float16).astype(np.float32) for value in (x, conv.weight.numpy())]
    expected = plain_conv(*rounded, conv.bias.numpy())
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    assert np.abs(found[0] - exact).max() > 1e-4  # it did compute in float16
    assert block(variable).dtype == "float32"
    # The gradient of sum(y^2) along a direction, by differences of the exact convolution.
    for value, gradient, move in ((x, found[1], 0), (conv.weight.numpy(), found[2], 1)):
        direction = rng.standard_normal(value.shape)
        ends = []
        for step in (1e-3, -1e-3):
            moved = [x.astype(np.float64), conv.weight.numpy().astype(np.float64)]
            moved[move] = moved[move] + step * direction
            ends.append((plain_conv(*moved, conv.bias.numpy()) ** 2).sum())
        slope = (ends[0] - ends[1]) / 2e-3
        assert abs((gradient * direction).sum() - slope) < 1e-2 * np.abs(gradient * direction).sum()
    use_half_convolutions(block, half=False)
    np.testing.assert_array_equal(conv(jt.array(x)).numpy(), exact)


@pytest.mark.parametrize("in_1x1", [True, False])
def test_where_a_bottleneck_halves_the_map(in_1x1):
    block = Bottleneck(16, 8, 32, stride=2, groups=4, stride_in_1x1=in_1x1)
    assert (block.conv1.stride, block.conv2.stride, block.conv3.stride) == ((2, 1, 1) if in_1x1 else (1, 2, 1))
    assert block.conv2.groups == 4 and block.downsample[0].stride == 2
    assert ModelConfig(backbone={"name": "x101"}).backbone.strides_in_1x1 is False
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 16, 9, 10)).astype(np.float32)
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    w1, w2, w3 = (conv.weight.numpy() for conv in (block.conv1, block.conv2, block.conv3))
    y = relu(plain_conv(x, w1, stride=block.conv1.stride))
    y = relu(plain_conv(y, w2, stride=block.conv2.stride, groups=4))
    y = relu(plain_conv(y, w3) + plain_conv(x, block.downsample[0].weight.numpy(), stride=2))
    np.testing.assert_allclose(block(jt.array(x)).numpy(), y, atol=1e-5)


def test_frozen_batch_norm_has_no_epsilon():
    norm = FrozenBatchNorm(2)
    values = {"weight": [1.5, -0.5], "bias": [0.1, 0.2], "running_mean": [0.3, -0.4], "running_var": [1e-6, 2.0]}
    values = {name: np.array(value) for name, value in values.items()}
    assign_state(norm, values)
    x = np.random.default_rng(3).standard_normal((2, 2, 3, 4)).astype(np.float32)
    w, b, mean, var = (value[:, None, None] for value in values.values())
    np.testing.assert_allclose(norm(jt.array(x)).numpy(), (x - mean) * w / np.sqrt(var) + b, rtol=2e-6, atol=1e-4)


def test_group_norm_and_its_gradients(golden):
    ops = np.load(golden / "ops.npz")
    norm = GroupNorm(128)
    assign_state(norm, {"weight": ops["gn/w"], "bias": ops["gn/b"]})
    x = jt.array(ops["gn/x"])
    y = norm(x)
    grads = jt.grad((y * jt.array(ops["gn/gy"])).sum(), [x, norm.weight, norm.bias])
    np.testing.assert_allclose(y.numpy(), ops["gn/y"], atol=1e-5)
    for found, name in zip(grads, ("gx", "gw", "gb")):
        np.testing.assert_allclose(found.numpy(), ops[f"gn/{name}"], atol=2e-5, err_msg=name)


@pytest.mark.parametrize("mean, std, tolerance", [(0.0, 1.0, 1e-5), (100.0, 0.01, 1e-3), (-1000.0, 1.0, 1e-4)])
def test_group_norm_with_a_mean_far_above_the_spread(mean, std, tolerance):
    """The tolerance is in standard deviations; float32 keeps the input itself to 8e-4 of one when the mean is 100."""
    rng = np.random.default_rng(2)
    x = (mean + std * rng.standard_normal((2, 64, 24, 36))).astype(np.float32)
    grouped = x.astype(np.float64).reshape(2, 32, -1)
    centred = grouped - grouped.mean(2, keepdims=True)
    expected = (centred / np.sqrt(grouped.var(2, keepdims=True) + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(GroupNorm(64)(jt.array(x)).numpy(), expected, atol=tolerance)
    if mean == 100:
        assert np.abs(jt.nn.GroupNorm(32, 64)(jt.array(x)).numpy() - expected).max() > 1, "Jittor's own would do"


@pytest.mark.parametrize("height, width", [(7, 5), (4, 3), (2, 2), (1, 1), (26, 18), (32, 32)])
def test_bilinear(golden, height, width):
    ops = np.load(golden / "ops.npz")
    found = resize_like(jt.array(ops["resample/x"]), jt.zeros((1, 1, height, width))).numpy()
    np.testing.assert_allclose(found, ops[f"resample/bilinear_{height}x{width}"], atol=1e-5)


def test_the_fpn_upsamples_to_the_nearest(golden):
    ops = np.load(golden / "ops.npz")
    fpn = FPN((8, 8, 8))
    x, twice = jt.array(ops["resample/x"]), jt.array(ops["resample/nearest_x2"])
    np.testing.assert_array_equal(fpn._upsample(x, twice).numpy(), ops["resample/nearest_x2"])
    fpn.upsample = "bilinear"
    found = fpn._upsample(x, twice).numpy()
    np.testing.assert_allclose(found, ops["resample/bilinear_26x18"], atol=1e-5)


def test_sums_in_lanes_are_the_convolution_with_less_rounding():
    numbers = np.random.default_rng(3)
    conv = Conv(128, 4, 3)
    conv.weight.assign((numbers.normal(size=(4, 128, 3, 3)) * 0.01 + 0.008).astype(np.float32))
    conv.bias.assign(np.arange(4, dtype=np.float32))
    x = np.maximum(numbers.normal(size=(2, 128, 5, 6)), 0).astype(np.float32)
    exact, given = plain_conv(x, conv.weight.numpy(), conv.bias.numpy()), jt.array(x)
    plain, lanes = conv(given), conv.in_lanes(given)
    rounding = [np.linalg.norm(y.numpy() - exact) / np.linalg.norm(exact) for y in (plain, lanes)]
    assert rounding[1] < 1e-7 and rounding[1] < rounding[0]
    wanted, found = (jt.grad((y * y).sum(), [given, conv.weight, conv.bias]) for y in (plain, lanes))
    for one, other in zip(wanted, found):
        np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=0, atol=1e-5 * float(np.abs(one.numpy()).max()))
