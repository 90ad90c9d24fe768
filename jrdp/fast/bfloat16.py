"""Training on a CPU with convolutions in bfloat16 by oneDNN: input, weights and the gradient of the output are rounded to it,
products are summed in float32, and the output and both gradients are float32. Maps stay NCHW outside, and the weights that
are learnt float32.

`convolve` stands in for the plain convolution (`train.precision: bfloat16`).
"""

from __future__ import annotations

import jittor as jt

from jrdp.fast.operators import ConvShape, to_nchw, to_nhwc, training_convolution
from jrdp.machine.importing import is_forked


def convolve(x, weight, bias=None, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1) -> jt.Var:
    """`nn.conv2d` with the same arguments for a square kernel, "same" padding and no dilation, in bfloat16."""
    if (padding, dilation) != (weight.shape[2] // 2, 1) or weight.shape[2] != weight.shape[3]:
        raise ValueError('a convolution in bfloat16 has a square kernel, "same" padding and no dilation')
    y = _Convolution.apply(x, weight, stride, groups)
    return y if bias is None else y + bias.broadcast(y, [0, 2, 3])


class _Convolution(jt.Function):
    def execute(self, x, weight, stride, groups):
        n, channels, h, w = x.shape
        sizes = n, h, w, channels, weight.shape[0], weight.shape[2], stride, groups
        self.shape = ConvShape(*sizes, relu=False, add=False, bfloat16=True, one_thread=is_forked())
        self.saved = to_nhwc(x, "bfloat16"), weight
        return to_nchw(training_convolution(self.shape, "forward", *self.saved))

    def grad(self, dy):
        # Each of these is an operator of its own, so that Jittor computes only what is asked for.
        (x, weight), dy = self.saved, to_nhwc(dy, "bfloat16")
        dx = to_nchw(training_convolution(self.shape, "input gradient", dy, weight))
        return dx, training_convolution(self.shape, "weight gradient", x, dy), None, None
