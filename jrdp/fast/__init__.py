"""Inference on a CPU, several times faster than the plain network and equal to it: `FastNetwork`. And training with fewer
multiplications (`training.py`).

The plain network (`jrdp.models`) is the definition; this is the same arithmetic in another memory layout (NHWC, so that
all channels of a pixel lie together), with batch norms folded into the convolutions, weights packed once, and one
operator where the plain network has several. With `dtype="bfloat16"` its convolutions multiply in bfloat16 and add in
float32, for processors with AMX.

    network.py    the released names -> layers -> instances
    layers.py     convolution and group norm with their weights
    operators.py  the C++ in kernels/ as Jittor operators
    training.py   3x3 and 1x1 convolutions of the plain network and their gradients, by Winograd's algorithm and as products
    bfloat16.py   convolutions of the plain network and their gradients in bfloat16
"""

from jrdp.fast.network import FastNetwork, supports

__all__ = ["FastNetwork", "supports"]
