"""Training on a CPU with less work: the 3x3 convolutions of stride 1 and their two gradients by Winograd's F(4x4, 3x3) (Lavin
and Gray, 2016) instead of oneDNN's direct convolutions, and those of 1x1 as products of matrices, where the maps lie.
Maps stay NCHW outside.

The plain convolution is the definition; `convolve` stands in for it where it is faster (`train.engine: fast`).
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jrdp.fast.operators import onednn_flags, onednn_home, run_kernel, to_nchw, to_nhwc

# Fewer 4x4 output tiles do not outweigh transforming the weights, which change at every step.
FEWEST_TILES = 48
MOST_WEIGHTS = 2**18  # input times output channels: beyond, the transformed weights fill every cache


def convolve(x, weight, bias=None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> jt.Var:
    """`nn.conv2d` with the same arguments, by Winograd's algorithm or as a product where that is faster."""
    if _is_pointwise(x, weight, stride, padding, groups):
        y = pointwise_convolution(x, weight)
    elif _pays(x, weight, stride, padding, dilation, groups):
        y = winograd_convolution(x, weight)
    else:
        return nn.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return y if bias is None else y + bias.broadcast(y, [0, 2, 3])


def winograd_convolution(x: jt.Var, weight: jt.Var) -> jt.Var:
    """The 3x3 convolution of stride 1 and padding 1: `[N, C, H, W]`, `[O, C, 3, 3]` -> `[N, O, H, W]`, float32.

    Differentiable in both. C and O are multiples of 32.
    """
    return _Winograd.apply(x, weight)


def pointwise_convolution(x: jt.Var, weight: jt.Var) -> jt.Var:
    """The 1x1 convolution of stride 1: `[N, C, H, W]`, `[O, C, 1, 1]` -> `[N, O, H, W]`, float32. Differentiable in both."""
    return _Pointwise.apply(x, weight)


def _is_pointwise(x, weight, stride, padding, groups) -> bool:
    return (
        (list(weight.shape[2:]), stride, padding, groups) == ([1, 1], 1, 0, 1)
        and x.dtype == weight.dtype == "float32"
        and onednn_home() is not None
    )


def _pays(x, weight, stride, padding, dilation, groups) -> bool:
    n, channels, h, w = x.shape
    out_channels, in_channels, *kernel = weight.shape
    return (
        (kernel, stride, padding, dilation, groups) == ([3, 3], 1, 1, 1, 1)
        and x.dtype == weight.dtype == "float32"
        and in_channels % 32 == 0
        and out_channels % 32 == 0
        and in_channels * out_channels <= MOST_WEIGHTS
        and n * -(-h // 4) * -(-w // 4) >= FEWEST_TILES
    )


class _Winograd(jt.Function):
    def execute(self, x, weight):
        self.saved = x, weight
        return to_nchw(_product(to_nhwc(x), weight, turned=False))

    def grad(self, dy):
        x, weight = self.saved
        dy = to_nhwc(dy)
        dx = to_nchw(_product(dy, weight, turned=True))
        return dx, _weight_gradient(to_nhwc(x), dy)


class _Pointwise(jt.Function):
    def execute(self, x, weight):
        self.saved = x, weight
        return _pointwise(x, weight, turned=False)

    def grad(self, dy):
        x, weight = self.saved
        return _pointwise(dy, weight, turned=True), _pointwise_weight_gradient(x, dy)


# Each of these is an operator of its own, so that Jittor computes only what is asked for: no gradient of a frozen weight
# and none of an input that nothing trained comes before.


def _product(x: jt.Var, weight: jt.Var, turned: bool) -> jt.Var:
    """x `[N, H, W, C]` and `[O, C, 3, 3]` -> `[N, H, W, O]`; turned: from `[N, H, W, O]` to `[N, H, W, C]`, transposed."""
    out_channels, in_channels = weight.shape[:2]
    if turned:
        out_channels, in_channels = in_channels, out_channels
    source = """
    jrdp_fast::winograd_for_training(in0_p, in1_p, data["turned"] != 0, in0_shape0, in0_shape1, in0_shape2, in0_shape3,
                                     out_shape3, out_p);"""
    return _run(source, (*x.shape[:3], out_channels), [x, weight], turned=turned)


def _weight_gradient(x: jt.Var, dy: jt.Var) -> jt.Var:
    source = """
    jrdp_fast::winograd_weight_gradient(in0_p, in1_p, in0_shape0, in0_shape1, in0_shape2, in0_shape3, in1_shape3, out_p);"""
    return _run(source, (dy.shape[3], x.shape[3], 3, 3), [x, dy])


def _pointwise(x: jt.Var, weight: jt.Var, turned: bool) -> jt.Var:
    """x `[N, C, H, W]` and `[O, C, 1, 1]` -> `[N, O, H, W]`; turned: from `[N, O, H, W]` to `[N, C, H, W]`, transposed."""
    source = """
    jrdp_fast::pointwise(in0_p, in1_p, data["turned"] != 0, in0_shape0, in0_shape1, in0_shape2 * in0_shape3, out_shape1, out_p);"""
    n, _, h, w = x.shape
    shape = (n, weight.shape[1 if turned else 0], h, w)
    return run_kernel("pointwise.h", source, shape, [x, weight], {"turned": turned}, onednn_flags())


def _pointwise_weight_gradient(x: jt.Var, dy: jt.Var) -> jt.Var:
    source = """
    jrdp_fast::pointwise_weight_gradient(in0_p, in1_p, in0_shape0, in0_shape1, in0_shape2 * in0_shape3, in1_shape1, out_p);"""
    return run_kernel("pointwise.h", source, (dy.shape[1], x.shape[1], 1, 1), [x, dy], {}, onednn_flags())


def _run(source: str, shape: tuple, inputs: list, **numbers: float) -> jt.Var:
    return run_kernel("winograd_training.h", source, shape, inputs, numbers)
