"""Group normalisation as one operator."""

from __future__ import annotations

import jittor as jt

from .compile import Kernels, need_float32

KERNELS = Kernels(cpu="group_norm.h", cuda="group_norm.cuh")

_SIZES = 'in{x}_shape0, in{x}_shape1, in{x}_shape2 * in{x}_shape3, data["groups"]'
_FORWARD = f'group_norm_forward(in0_p, in1_p, in2_p, {_SIZES.format(x=0)}, data["eps"], data["relu"] != 0, out0_p, out1_p);'
_BACKWARD = (
    f'group_norm_backward(in0_p, in1_p, in2_p, in3_p, in4_p, {_SIZES.format(x=1)}, data["relu"] != 0, '
    "out0_p, out1_p, out2_p, out3_p);"
)


def group_norm(x, weight, bias, groups: int, eps: float = 1e-5, kernels: Kernels = KERNELS, relu: bool = False):
    """Group normalisation (Wu and He, 2018) of `[N, C, H, W]`, differentiable in all three; N may be 0.

    Jittor's own takes the variance as E[x^2] - E[x]^2, which loses every digit when the mean is large against the
    spread. Here the mean is taken off first.

    Args:
        x: Var [N, C, H, W] float32.
        weight, bias: Vars [C] float32.
        groups: divides C.
        eps: added to the variance.
        relu: whether negative results become zero.

    Returns:
        Var [N, C, H, W] float32.

    Raises:
        ValueError: wrong shapes or dtypes.
    """
    need_float32("x", x, "N", "C", "H", "W")
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups: {groups} does not divide {channels} channels")
    for name, value in (("weight", weight), ("bias", bias)):
        need_float32(name, value, channels)
    return _GroupNorm.apply(x, weight, bias, groups, eps, relu, kernels)


class _GroupNorm(jt.Function):
    def execute(self, x, weight, bias, groups, eps, relu, kernels):
        data = {"groups": groups, "eps": eps, "relu": relu}
        shapes = [x.shape, [2, x.shape[0], groups]]
        y, statistics = kernels.run(_FORWARD, [x, weight, bias], shapes, ["float32"] * 2, data)
        self.saved = x, y, weight, statistics, groups, relu, kernels
        return y

    def grad(self, dy):
        x, y, weight, statistics, groups, relu, kernels = self.saved
        n, c = x.shape[:2]
        inputs, shapes = [dy, x, y, weight, statistics], [x.shape, [c], [c], [2, n, c]]
        gradients = kernels.run(_BACKWARD, inputs, shapes, ["float32"] * 4, {"groups": groups, "relu": relu})
        return (*gradients[:3], None, None, None, None)
