"""Frozen batch norm with what follows it in a residual network, as one operator; CUDA only.

`jrdp.models.layers.FrozenBatchNorm` is the definition. On a CPU Jittor fuses the same by itself.
"""

from __future__ import annotations

import jittor as jt

from .compile import Kernels, need_float32

KERNELS = Kernels(cpu=None, cuda="frozen_norm.cuh")

_SIZES = 'in0_shape0, in0_shape1, in0_shape2 * in0_shape3, data["relu"] != 0'
_FORWARD = (
    "frozen_norm_forward(in0_p, in1_p, in2_p, in3_p, in4_p, "
    f'data["add"] != 0 ? in5_p : nullptr, {_SIZES}, out0_p);'
)
_BACKWARD = f"frozen_norm_backward(in0_p, in1_p, in2_p, in3_p, {_SIZES}, out0_p, nullptr);"
_BACKWARD_ADD = f"frozen_norm_backward(in0_p, in1_p, in2_p, in3_p, {_SIZES}, out0_p, out1_p);"


def frozen_norm(x, weight, bias, mean, variance, add=None, relu: bool = False, kernels: Kernels = KERNELS):
    """weight * (x - mean) / sqrt(variance) + bias, then `add` is added, then a ReLU; differentiable in `x` and `add`.

    Args:
        x: Var [N, C, H, W] float32.
        weight, bias, mean, variance: Vars [C] float32, constants.
        add: Var like x, or None.
        relu: whether negative results become zero.

    Returns:
        Var [N, C, H, W] float32.

    Raises:
        ValueError: wrong shapes or dtypes.
    """
    need_float32("x", x, "N", "C", "H", "W")
    constants = {"weight": weight, "bias": bias, "mean": mean, "variance": variance}
    for name, value in constants.items():
        need_float32(name, value, x.shape[1])
    if add is not None:
        need_float32("add", add, *x.shape)
    operator = _FrozenNorm([value.stop_grad() for value in constants.values()], relu, kernels)
    # Without anything to differentiate by there must be nothing to go back through either.
    return operator(x, add) if _learns(x) or _learns(add) else operator.execute(x, add).stop_grad()


def _learns(value) -> bool:
    return value is not None and not value.is_stop_grad()


class _FrozenNorm(jt.Function):
    def __init__(self, constants: list, relu: bool, kernels: Kernels):
        self.constants, self.relu, self.kernels = constants, relu, kernels

    def execute(self, x, add):
        data = {"add": add is not None, "relu": self.relu}
        inputs = [x, *self.constants, x if add is None else add]
        self.adds = add is not None
        self.y = self.kernels.run(_FORWARD, inputs, [x.shape], ["float32"], data)[0]
        return self.y

    def grad(self, dy):
        weight, _, _, variance = self.constants
        inputs, shapes = [dy, self.y, weight, variance], [dy.shape] * (2 if self.adds else 1)
        source = _BACKWARD_ADD if self.adds else _BACKWARD
        gradients = self.kernels.run(source, inputs, shapes, ["float32"] * len(shapes), {"relu": self.relu})
        return gradients[0], gradients[1] if self.adds else None
