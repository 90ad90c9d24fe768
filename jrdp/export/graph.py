"""An ONNX graph that grows operator by operator; values are the names of its edges."""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18  # the first whose Resize takes the two axes of a map alone
IR_VERSION = 8  # of the same release, so that runtimes of that age read the file
GROUPS, EPS = 32, 1e-5  # of every group norm of the network

_ELEMENTS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}


class Graph:
    """Nodes and constants of a graph under construction, with the layers of this network as methods.

    tensors: released name -> float32 array, the checkpoint.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._names: dict[tuple, str] = {}  # small constants that are in the graph already
        self._count = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, name: str | None = None, **attributes) -> str | list[str]:
        """Append an operator; returns the name of its output, or the names where it has several.

        name: of the output, for one that is an output of the graph.
        """
        self._count += 1
        names = [name or f"{kind.lower()}_{self._count}" + (f"_{k}" if outputs > 1 else "") for k in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{self._count}", **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value, dtype: str = "float32") -> str:
        """A constant of the graph; small ones are stored once."""
        array = np.asarray(value, dtype)
        key = (dtype, array.shape, array.tobytes()) if array.size <= 64 else None
        if key in self._names:
            return self._names[key]
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        if key is not None:
            self._names[key] = name
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(list(values), "int64")

    def tensor(self, name: str) -> np.ndarray:
        """A tensor of the checkpoint."""
        return self._tensors[name]

    def size(self, x: str, start: int, end: int) -> str:
        """Dimensions `start`..`end` - 1 of x as an int64 vector."""
        return self.op("Shape", x, start=start, end=end)

    def cast(self, x: str, dtype: str) -> str:
        return self.op("Cast", x, to=_ELEMENTS[dtype])

    def conv(
        self, x: str, weight: np.ndarray, bias: np.ndarray | None = None, stride: int = 1, groups: int = 1
    ) -> str:
        """A convolution with "same" padding (kernel // 2)."""
        kernel = weight.shape[2]
        inputs = [x, self.constant(weight)] + ([] if bias is None else [self.constant(bias)])
        return self.op(
            "Conv", *inputs, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=[kernel // 2] * 4, group=groups
        )

    def layer(self, x: str, name: str, stride: int = 1) -> str:
        """The convolution `name` of the checkpoint, with its bias where it has one."""
        return self.conv(x, self.tensor(f"{name}.weight"), self._tensors.get(f"{name}.bias"), stride)

    def frozen(self, x: str, name: str, norm: str, stride: int = 1, groups: int = 1) -> str:
        """A convolution with its frozen batch norm (no epsilon, as released) folded into weight and bias."""
        scale, bias, mean, var = (
            self.tensor(f"{norm}.{part}").astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(var)
        weight = self.tensor(f"{name}.weight") * scale[:, None, None, None]
        return self.conv(x, weight.astype(np.float32), (bias - mean * scale).astype(np.float32), stride, groups)

    def normalised(self, x: str, name: str, norm: str) -> str:
        """A convolution, group norm, ReLU.

        Group norm is instance norm over `[N, 32, pixels of the group]`, then a factor and a shift a channel.
        """
        x = self.layer(x, name)
        grouped = self.op("Reshape", x, self.integers(0, GROUPS, -1))
        ones, zeros = self.constant(np.ones(GROUPS)), self.constant(np.zeros(GROUPS))
        grouped = self.op("InstanceNormalization", grouped, ones, zeros, epsilon=EPS)
        x = self.op("Reshape", grouped, self.op("Shape", x))
        weight, bias = (self.constant(self.tensor(f"{norm}.{part}").reshape(-1, 1, 1)) for part in ("weight", "bias"))
        return self.op("Relu", self.op("Add", self.op("Mul", x, weight), bias))

    def exact_sigmoid(self, x: str) -> str:
        """The sigmoid as `fcos_decode.sigmoid` computes it: no two logits become one only because they are small.

        ONNX Runtime's own takes every logit below -18 for -18, and which of a level's locations is the best would be lost.
        """
        small = self.op("Exp", self.op("Neg", self.op("Abs", x)))
        one = self.constant(1)
        above = self.op("Where", self.op("GreaterOrEqual", x, self.constant(0)), one, small)
        return self.op("Div", above, self.op("Add", one, small))

    def resize_like(self, x: str, like: str) -> str:
        """Bilinear between pixel centres, without antialiasing, to height and width of `like`."""
        return self.op(
            "Resize", x, "", "", self.size(like, 2, 4), axes=[2, 3], mode="linear",
            coordinate_transformation_mode="half_pixel",
        )

    def double(self, x: str, mode: str) -> str:
        """Twice the height and width, mode "nearest" or "bilinear"."""
        scales = self.constant([1, 1, 2, 2])
        if mode == "nearest":
            return self.op(
                "Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        return self.op("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")

    def model(self, inputs: Sequence[tuple], outputs: Sequence[tuple], metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The finished model; inputs and outputs are (name, dtype, shape), a shape has numbers and names."""
        described = [
            [helper.make_tensor_value_info(name, _ELEMENTS[dtype], shape) for name, dtype, shape in values]
            for values in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, "rdpnet", *described, initializer=self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="jrdp")
        model.ir_version = IR_VERSION
        helper.set_model_props(model, dict(metadata))
        return model
