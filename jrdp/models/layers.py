"""The few layers that the network is built from, and how their weights start.

Jittor compiles a kernel for each way in which shapes are broadcast, and a dimension of length 1 that is not stretched
is another way than a longer one. So that no batch and no picture size compiles anything anew, what has one number a
channel is broadcast over named dimensions (`per_channel`), and what depends on sizes is handed over in arrays.

Every tensor is an attribute named as in the released checkpoints (`weight`, `bias`, ...). Initial weights are drawn
from NumPy's global generator, which `jt.set_global_seed` seeds, so that they are the same on every device.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Callable, Dict, Iterator, List, Optional

import jittor as jt
import numpy as np
from jittor import nn

from jrdp.ops import frozen_norm, group_norm

Init = Callable[[tuple], np.ndarray]
Stages = Optional[Dict[str, jt.Var]]

_watchers: List[List[jt.Var]] = []
_left_out = ContextVar("initial weights are left out", default=False)


@contextmanager
def without_initial_weights() -> Iterator[None]:
    """Networks built within start with zeros: for those whose every tensor is read from a file.

    It saves a third of a second, and the host's random numbers go on as if nothing had been built.
    """
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def _unless_left_out(draw: Init) -> Init:
    @wraps(draw)
    def drawn(shape: tuple) -> np.ndarray:
        return np.zeros(shape, np.float32) if _left_out.get() else draw(shape)

    return drawn


@_unless_left_out
def kaiming_uniform(shape: tuple) -> np.ndarray:
    """He et al.'s uniform initialisation for a linear layer (a = 1): the variance is 1 / fan_in."""
    bound = np.sqrt(3.0 / np.prod(shape[1:]))
    return np.random.uniform(-bound, bound, shape).astype(np.float32)


@_unless_left_out
def kaiming_normal_fan_out(shape: tuple) -> np.ndarray:
    """He et al.'s normal initialisation before a ReLU, by the number of outputs: the variance is 2 / fan_out."""
    fan_out = shape[0] * np.prod(shape[2:])
    return (np.sqrt(2.0 / fan_out) * np.random.standard_normal(shape)).astype(np.float32)


@_unless_left_out
def small_normal(shape: tuple) -> np.ndarray:
    """Normal with standard deviation 0.01, as in the FCOS head."""
    return (0.01 * np.random.standard_normal(shape)).astype(np.float32)


class Conv(nn.Module):
    """A convolution with "same" padding (kernel // 2): `[N, in, H, W]` -> `[N, out, ceil(H/s), ceil(W/s)]`.

    The bias, when there is one, starts at `bias_value`. While `in_float16` is set (`use_half_convolutions`), input and weight
    are rounded to float16 for the convolution; the weight itself, the bias and the result stay float32.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        init: Init = kaiming_uniform,
        bias_value: float = 0.0,
    ):
        self.in_float16 = False
        self.convolve = nn.conv2d  # or another way (`convolve_by`)
        self.stride, self.padding, self.groups = stride, kernel // 2, groups
        self.weight = jt.array(init((out_channels, in_channels // groups, kernel, kernel)))
        self.bias = jt.array(np.full(out_channels, bias_value, np.float32)) if bias else None

    def execute(self, x: jt.Var) -> jt.Var:
        if not self.in_float16:
            return self.convolve(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        y = self.without_bias(x)
        return y if self.bias is None else y + self.bias.broadcast(y, [0, 2, 3])

    def in_lanes(self, x: jt.Var, lanes: int = 8) -> jt.Var:
        """The same, the products of each output added in `lanes` sums side by side: on a CPU a fifth of the rounding.

        oneDNN adds them one after the other. `lanes` divides the input channels.
        """
        if self.in_float16:
            return self(x)
        out, within, height, width = self.weight.shape
        weight = self.weight.reshape(out, lanes, within // lanes, height, width).permute(1, 0, 2, 3, 4)
        weight = weight.reshape(lanes * out, within // lanes, height, width)
        y = nn.conv2d(x, weight, None, self.stride, self.padding, 1, lanes)
        y = y.reshape(y.shape[0], lanes, out, *y.shape[2:]).sum(1)
        return y if self.bias is None else y + self.bias.broadcast(y, [0, 2, 3])

    def without_bias(self, x: jt.Var) -> jt.Var:
        """The same less the bias, for whoever adds it together with something else."""
        x, weight = (x.float16(), self.weight.float16()) if self.in_float16 else (x, self.weight)
        y = self.convolve(x, weight, None, self.stride, self.padding, 1, self.groups)
        return y.float32() if self.in_float16 else y


def convolve_by(network: nn.Module, convolve: Callable[..., jt.Var] = nn.conv2d) -> None:
    """Let every convolution of `network` compute by what takes the arguments of `nn.conv2d` (`jrdp/fast` has some)."""
    for module in network.modules():
        if isinstance(module, Conv):
            module.convolve = convolve


def use_half_convolutions(network: nn.Module, half: bool = True) -> None:
    """Mixed precision: every convolution of `network` in float16, norms, resizing, RoIAlign and losses in float32.

    Jittor's own mixed precision (`auto_mixed_precision_level`) makes every product of two arrays float16, those in the
    losses and in group norm's variance too, and its pooling does not compile in float16.
    """
    for module in network.modules():
        if isinstance(module, Conv):
            module.in_float16 = half


class FrozenBatchNorm(nn.Module):
    """Batch norm as a fixed affine map with no epsilon (convention 11): w / sqrt(var) * (x - mean) + b.

    Its four tensors `[C]` are never trained. While `measuring` is set, a forward pass first takes over mean and variance
    from its input `[N, C, H, W]`, which a network without ImageNet weights needs once (`engine/start.py`).
    """

    def __init__(self, channels: int):
        self.measuring = False
        self.weight = jt.array(np.ones(channels, np.float32)).stop_grad()
        self.bias = jt.array(np.zeros(channels, np.float32)).stop_grad()
        self.running_mean = jt.array(np.zeros(channels, np.float32)).stop_grad()
        self.running_var = jt.array(np.ones(channels, np.float32)).stop_grad()

    def execute(self, x: jt.Var, add: Optional[jt.Var] = None, rectify: bool = False) -> jt.Var:
        """`[N, C, H, W]`; then `add` is added, then a ReLU where `rectify` is set."""
        if self.measuring:
            values = x.numpy()
            self.running_mean.assign(values.mean((0, 2, 3)))
            self.running_var.assign(values.var((0, 2, 3)) + np.float32(1e-5))  # a dead channel has none
        if jt.flags.use_cuda:  # one launch; on a CPU Jittor makes one loop of what follows
            constants = self.weight, self.bias, self.running_mean, self.running_var
            y = frozen_norm(x, *constants, add, rectify)
            return note_relu(y) if rectify else y
        scale = self.weight / jt.sqrt(self.running_var)
        shift = self.bias - self.running_mean * scale
        y = x * per_channel(scale, x) + per_channel(shift, x)
        y = y if add is None else y + add
        return relu(y) if rectify else y


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He, 2018) of `[N, C, H, W]`, with learnt `weight` and `bias` `[C]`."""

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-5):
        self.groups, self.eps = groups, eps
        self.weight = jt.array(np.ones(channels, np.float32))
        self.bias = jt.array(np.zeros(channels, np.float32))

    def execute(self, x: jt.Var, rectify: bool = False) -> jt.Var:
        """`[N, C, H, W]`, with a ReLU behind it where `rectify` is set."""
        y = group_norm(x, self.weight, self.bias, self.groups, self.eps, relu=rectify)
        return note_relu(y) if rectify else y


def per_channel(values: jt.Var, x: jt.Var) -> jt.Var:
    """`values` `[C]` in the shape of x `[N, C, H, W]`."""
    return values.broadcast(x, [0, 2, 3])


def relu(x: jt.Var) -> jt.Var:
    """max(x, 0) of `[N, C, H, W]`, C > 1. Jittor's own compares with a scalar, stretched another way when W is 1."""
    return note_relu(x * (x > per_channel(jt.zeros([x.shape[1]]), x)))


def relus_are_watched() -> bool:
    return bool(_watchers)


def note_relu(y: jt.Var) -> jt.Var:
    """Show `y`, what a ReLU gave, to those who watch; returns it."""
    for seen in _watchers:
        seen.append(y)
    return y


@contextmanager
def watching_relus() -> Iterator[List[jt.Var]]:
    """A list of what every ReLU returns while the block runs, in the order of computation.

    The outputs are noted, not the inputs: those are computed in any case, so that watching fuses no kernel differently
    and changes no bit; an output is positive where the input is.
    """
    seen: List[jt.Var] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.pop()  # blocks end in the opposite order


class ReLU(nn.Module):
    def execute(self, x: jt.Var) -> jt.Var:
        return relu(x)


class ConvNormReLU(nn.Sequential):
    """Convolution, group norm, ReLU, once or several times; norm and ReLU are one operator."""

    def execute(self, x: jt.Var) -> jt.Var:
        for conv, norm in self.pairs():
            x = norm(conv(x), rectify=True)
        return x

    def pairs(self) -> list[tuple[Conv, GroupNorm]]:
        """Each convolution with its norm, in order."""
        layers = list(self.layers.values())
        return list(zip(layers[::3], layers[1::3]))


def resize_like(x: jt.Var, like: jt.Var) -> jt.Var:
    """`[N, C, h, w]` at the height and width of `like`: bilinear between pixel centres (align_corners=False), no
    antialiasing."""
    n, c, h, w = x.shape
    size = like.shape[2:]
    shape = [n, c, *size]
    (top, bottom), (share_top, share_bottom) = _between(h, size[0], shape, "i2")
    (left, right), (share_left, share_right) = _between(w, size[1], shape, "i3")
    corners = [
        [x.reindex(shape, ["i0", "i1", "@e0(i2)", "@e1(i3)"], extras=[row, column]) for row in (top, bottom)]
        for column in (left, right)
    ]
    at_left, at_right = [share_top * above + share_bottom * below for above, below in corners]
    return at_left * share_left + at_right * share_right


def _between(length: int, wanted: int, shape: list, index: str) -> tuple[list[jt.Var], list[jt.Var]]:
    """The two pixels of `length` that each of `wanted` lies between, int32 `[wanted + 1]`, and their shares in `shape`.

    The last entry of an array is not used: Jittor would take an array of one number for a constant of the kernel.
    """
    # On a CPU nothing has to be sent, and arrays that are always new keep Jittor's fused kernels the same at every step.
    pixels, shares = _tables(length, wanted) if jt.flags.use_cuda else _tables.__wrapped__(length, wanted)
    return list(pixels), [share.reindex(shape, [index]) for share in shares]


@lru_cache(maxsize=256)
def _tables(length: int, wanted: int) -> tuple[tuple[jt.Var, jt.Var], tuple[jt.Var, jt.Var]]:
    """`_taps` as constants where they are computed with, so that they are sent to a GPU once; never trained."""
    pixels, shares = _taps(length, wanted)
    return tuple(jt.array(p).stop_grad() for p in pixels), tuple(jt.array(s).stop_grad() for s in shares)


def _taps(length: int, wanted: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    scale = np.float32(length / wanted)
    position = np.maximum(scale * (np.arange(wanted + 1, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    first = np.minimum(position.astype(np.int32), length - 1)
    second = np.minimum(first + 1, length - 1)
    share = np.minimum(position - first, np.float32(1))
    return (first, second), (1 - share, share)


def record_stage(stages: Stages, name: str, x: jt.Var) -> jt.Var:
    """Record `x` as the named stage where somebody asked for stages; returns `x`."""
    if stages is not None:
        stages[name] = x
    return x
