"""Convolution and group norm with their weights, for maps `[N, H, W, C]`."""

from __future__ import annotations

from collections import OrderedDict
from typing import Mapping

import jittor as jt
import numpy as np

from jrdp.fast import operators
from jrdp.fast.operators import ConvShape
from jrdp.machine.importing import is_forked

GROUPS, EPS = 32, 1e-5  # of every group norm of the network
MAX_LAYOUTS = 2  # packed copies of one layer's weights: small and large pictures can want different ones
# Winograd pays from so many 4x4 output tiles, where fewer multiplications outweigh reading four times the weights,
# and for so many weights, where they still fit into the last cache.
WINOGRAD_TILES = 12
WINOGRAD_CHANNELS = 2**17  # input times output channels


class Convolution:
    """A convolution with "same" padding, bias, and whatever is fused into it.

    dtype: "float32", or "bfloat16" for products of bfloat16 that are summed in float32: the weights are rounded, maps come
        rounded, and results are kept rounded where nothing else is asked for.

    Weights are packed when a shape first needs them, and belong to this object: they go when it goes.
    """

    def __init__(
        self,
        weight: np.ndarray,
        bias: np.ndarray | None,
        stride: int = 1,
        groups: int = 1,
        winograd: bool = True,
        dtype: str = "float32",
    ):
        out_channels, self.in_channels, self.kernel, _ = weight.shape
        self.in_channels *= groups
        bias = np.zeros(out_channels, np.float32) if bias is None else bias
        # oneDNN's fast implementations write 8 or 16 channels at a time; heads of 1, 2, 4 channels get idle ones.
        self.used_channels = out_channels
        if out_channels < 16:
            weight = np.concatenate([weight, np.zeros((16 - out_channels, *weight.shape[1:]), np.float32)])
            bias = np.concatenate([bias, np.zeros(16 - out_channels, np.float32)])
        self.weight = np.asarray(weight, np.float32)  # [O, C / groups, k, k]
        self.bias = jt.array(np.asarray(bias, np.float32))
        self.stride, self.groups, self.dtype = stride, groups, dtype
        self.out_channels = len(self.weight)
        self.winograd = (
            winograd
            and dtype == "float32"
            and (self.kernel, stride, groups) == (3, 1, 1)
            and self.in_channels % 16 == 0
            and self.out_channels % 32 == 0
            and self.in_channels * self.out_channels <= WINOGRAD_CHANNELS
        )
        self._packed: OrderedDict[int, jt.Var] = OrderedDict()

    def __call__(
        self, x: jt.Var, relu: bool = False, add: jt.Var | None = None, out: str | None = None
    ) -> jt.Var:
        """`[N, H, W, C]` -> `[N, OH, OW, O]`; `add` is added before the ReLU (see `operators.convolution`).

        out: the result's dtype, None for this convolution's own.
        """
        n, h, w, channels = x.shape
        if channels != self.in_channels:
            raise ValueError(f"this convolution takes {self.in_channels} channels, not {channels}")
        if self.winograd and add is None and n * -(-h // 4) * -(-w // 4) >= WINOGRAD_TILES:
            return operators.winograd(x, self._winograd_weights(), self.bias, relu)
        sizes = n, h, w, self.in_channels, self.out_channels, self.kernel, self.stride, self.groups
        rounded = self.dtype == "bfloat16", (out or self.dtype) == "bfloat16"
        shape = ConvShape(*sizes, relu, add is not None, *rounded, one_thread=is_forked())
        return operators.convolution(shape, x, self._direct_weights(shape), self.bias, add)

    @property
    def packed_bytes(self) -> int:
        return sum(4 * int(packed.numel()) for packed in self._packed.values())

    def _winograd_weights(self) -> jt.Var:
        if _WINOGRAD not in self._packed:
            self._keep(_WINOGRAD, operators.winograd_pack(self.weight))
        return self._packed[_WINOGRAD]

    def _direct_weights(self, shape: ConvShape) -> jt.Var:
        layout = operators.weight_layout(shape).identity
        if layout not in self._packed:
            self._keep(layout, operators.pack_weights(shape, self.weight))
        self._packed.move_to_end(layout)
        return self._packed[layout]

    def _keep(self, layout: int, packed: jt.Var) -> None:
        packed.sync()
        self._packed[layout] = packed
        if len(self._packed) > MAX_LAYOUTS:
            self._packed.popitem(last=False)


_WINOGRAD = -1  # in the place of a layout's identity, which is not negative


class NormalisedConvolution:
    """Convolution, group norm in float32, ReLU: `[N, H, W, C]` -> `[N, H, W, O]`."""

    def __init__(self, convolution: Convolution, weight: np.ndarray, bias: np.ndarray):
        self.convolution = convolution
        self.weight, self.bias = jt.array(np.asarray(weight, np.float32)), jt.array(np.asarray(bias, np.float32))

    def __call__(self, x: jt.Var, out: str | None = None) -> jt.Var:
        """out: the result's dtype, None for the convolution's."""
        y = self.convolution(x, out="float32")
        return operators.group_norm(y, self.weight, self.bias, GROUPS, EPS, True, out or self.convolution.dtype)


def fold_batch_norm(weight: np.ndarray, norm: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[O, C, k, k]` and bias `[O]` of a convolution with the frozen batch norm (no epsilon) after it."""
    scale = norm["weight"].astype(np.float64) / np.sqrt(norm["running_var"].astype(np.float64))
    bias = norm["bias"] - norm["running_mean"] * scale
    folded = np.multiply(weight, scale[:, None, None, None], out=np.empty(weight.shape, np.float32), casting="same_kind")
    return folded, bias.astype(np.float32)
