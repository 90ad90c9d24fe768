"""Maps of several levels on one canvas, so that what all levels share is one launch for all of them; CUDA only.

`jrdp.models.fcos.FcosHead`, level by level, is the definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Sequence

import jittor as jt

from .compile import Kernels, need_float32

MAX_LEVELS = 8  # kCanvasMaxLevels in kernels/canvas.cuh
KERNELS = Kernels(cpu=None, cuda="canvas.cuh")


class Region(NamedTuple):
    """Where a level lies on the canvas, and the cell, zero around the level, whose upper left corner it is."""

    top: int
    left: int
    height: int
    width: int
    cell_height: int
    cell_width: int


@dataclass(frozen=True)
class Layout:
    """The canvas for levels of certain sizes: the first, largest one, and beside it the others, one below the other.

    Between two levels lies at least one row or column of zeros.
    """

    height: int
    width: int
    regions: tuple

    @staticmethod
    def of(sizes: Sequence[tuple[int, int]]) -> Layout:
        """For levels of these (height, width)."""
        if not 1 <= len(sizes) <= MAX_LEVELS:
            raise ValueError(f"a canvas holds 1 to {MAX_LEVELS} levels, got {len(sizes)}")
        (first_height, first_width), *others = sizes
        height = max(first_height, sum(h for h, _ in others) + len(others) - 1)
        beside = max((1 + w for _, w in others), default=0)  # with the column of zeros before them
        width = first_width + beside
        regions = [Region(0, 0, first_height, first_width, height, first_width + 1 if others else first_width)]
        top = 0
        for k, (h, w) in enumerate(others):
            cell = height - top if k == len(others) - 1 else h + 1
            regions.append(Region(top, first_width + 1, h, w, cell, beside - 1))
            top += cell
        return Layout(height, width, tuple(regions))

    @property
    def locations(self) -> int:
        return sum(region.height * region.width for region in self.regions)

    def level(self, canvas, number: int):
        """That level of a canvas [N, C, H, W] as a Var [N, C, h, w]."""
        region = self.regions[number]
        rows = slice(region.top, region.top + region.height)
        return canvas[:, :, rows, region.left : region.left + region.width]

    def source(self, height: str, width: str) -> str:
        """C++ that makes it, `layout`; height and width of the canvas are the expressions given."""
        numbers = [", ".join(f'data["{name}{k}"]' for name in Region._fields) for k in range(len(self.regions))]
        lines = [f"Canvas layout = canvas_of({height}, {width});", *[f"canvas_add(layout, {n});" for n in numbers]]
        return "\n".join(lines) + "\n"

    def data(self) -> dict:
        """The numbers for `source`."""
        return {f"{name}{k}": value for k, region in enumerate(self.regions) for name, value in region._asdict().items()}


def place(maps: Sequence, layout: Layout, kernels: Kernels = KERNELS):
    """Vars [N, C, h, w] float32, one a level -> the canvas [N, C, H, W], zero between them; differentiable."""
    sizes = [tuple(x.shape[2:]) for x in maps]
    if sizes != [(region.height, region.width) for region in layout.regions]:
        raise ValueError(f"maps: sizes {sizes} are not those of the canvas")
    if any(x.dtype != "float32" or x.shape[:2] != maps[0].shape[:2] for x in maps):
        raise ValueError("maps: expected float32 [N, C, h, w] of one N and C")
    return _Place(layout, kernels)(*maps)


class _Place(jt.Function):
    def __init__(self, layout: Layout, kernels: Kernels):
        self.layout, self.kernels = layout, kernels

    def execute(self, *maps):
        n, c = maps[0].shape[:2]
        self.shapes = [x.shape for x in maps]
        source = self.layout.source("out0_shape2", "out0_shape3") + _maps("in", len(maps))
        source += "canvas_place(layout, maps, out0_shape0 * out0_shape1, out0_p);"
        shape = [n, c, self.layout.height, self.layout.width]
        return self.kernels.run(source, list(maps), [shape], ["float32"], self.layout.data())[0]

    def grad(self, gradient):
        count = len(self.shapes)
        source = self.layout.source("in0_shape2", "in0_shape3") + _maps("out", count)
        source += "canvas_take(layout, maps, in0_shape0 * in0_shape1, in0_p);"
        return tuple(self.kernels.run(source, [gradient], self.shapes, ["float32"] * count, self.layout.data()))


def _maps(kind: str, count: int) -> str:
    return "CanvasMaps maps;\n" + "".join(f"maps.map[{k}] = (float*){kind}{k}_p;\n" for k in range(count))


def norm_relu(x, shift, weight, bias, groups: int, eps: float, layout: Layout, kernels: Kernels = KERNELS):
    """ReLU(group norm(x + shift)), each level by itself, zero between them; differentiable in all four.

    Args:
        x: Var [N, C, H, W] float32, a canvas; what is between the levels is not looked at.
        shift: Var [C] float32, the bias of the convolution before.
        weight, bias: Vars [C] float32.
        groups: divides C.
        eps: added to the variance.
    """
    need_float32("x", x, "N", "C", layout.height, layout.width)
    channels = x.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups: {groups} does not divide {channels} channels")
    for name, value in (("shift", shift), ("weight", weight), ("bias", bias)):
        need_float32(name, value, channels)
    return _Norm(groups, eps, layout, kernels)(x, shift, weight, bias)


class _Norm(jt.Function):
    def __init__(self, groups: int, eps: float, layout: Layout, kernels: Kernels):
        self.groups, self.eps, self.layout, self.kernels = groups, eps, layout, kernels

    def execute(self, x, shift, weight, bias):
        n = x.shape[0]
        source = self.layout.source("in0_shape2", "in0_shape3")
        source += 'canvas_norm_forward(layout, in0_p, in1_p, in2_p, in3_p, in0_shape0, in0_shape1, (int)data["groups"], '
        source += 'data["eps"], out0_p, out1_p);'
        shapes = [x.shape, [2, n * len(self.layout.regions) * self.groups]]
        data = {**self.layout.data(), "groups": self.groups, "eps": self.eps}
        y, statistics = self.kernels.run(source, [x, shift, weight, bias], shapes, ["float32"] * 2, data)
        self.saved = x, y, shift, weight, statistics
        return y

    def grad(self, dy):
        x, y, shift, weight, statistics = self.saved
        n, c = x.shape[:2]
        source = self.layout.source("in0_shape2", "in0_shape3")
        source += "canvas_norm_backward(layout, in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, in0_shape0, in0_shape1, "
        source += '(int)data["groups"], out0_p, out1_p, out2_p, out3_p, out4_p);'
        shapes = [x.shape, [c], [c], [c], [3, n * len(self.layout.regions), c]]
        data = {**self.layout.data(), "groups": self.groups}
        inputs = [dy, x, y, shift, weight, statistics]
        return tuple(self.kernels.run(source, inputs, shapes, ["float32"] * 5, data)[:4])


class Answers(NamedTuple):
    """What an FCOS head says: per level [N, c, h, w] without a gradient, and of all levels together [N, c, L] with one.

    c is 1 for logits and centerness, 4 for distances.
    """

    logits: list
    distances: list
    centerness: list
    together: tuple


def answers(cls, box, center, biases: Sequence, scales: Sequence, layout: Layout, kernels: Kernels = KERNELS) -> Answers:
    """From the last convolutions' results on the canvas to an FCOS head's answers.

    Logits are `cls` + bias, distances exp(scale * (`box` + bias)) with each level's own scale, centerness `center` + bias.

    Args:
        cls, box, center: Vars [N, 1, H, W], [N, 4, H, W], [N, 1, H, W] float32.
        biases: their Vars [1], [4], [1].
        scales: Vars [1], one a level.
    """
    levels = len(layout.regions)
    n = cls.shape[0]
    for name, value, channels in (("cls", cls, 1), ("box", box, 4), ("center", center, 1)):
        need_float32(name, value, n, channels, layout.height, layout.width)
    if len(scales) != levels or any(list(scale.shape) != [1] for scale in scales):
        raise ValueError(f"scales: expected {levels} Vars of one number")
    if [list(bias.shape) for bias in biases] != [[1], [4], [1]]:
        raise ValueError(f"biases: expected shapes [1], [4], [1], got {[list(bias.shape) for bias in biases]}")
    found = _Answers(layout, kernels)(cls, box, center, *biases, *scales)
    parts = [found[3 + levels * part : 3 + levels * (part + 1)] for part in range(3)]
    return Answers(*[[x.stop_grad() for x in part] for part in parts], tuple(found[:3]))


class _Answers(jt.Function):
    def __init__(self, layout: Layout, kernels: Kernels):
        self.layout, self.kernels = layout, kernels

    def execute(self, cls, box, center, *numbers):
        levels, n, locations = len(self.layout.regions), cls.shape[0], self.layout.locations
        source = self.layout.source("in0_shape2", "in0_shape3") + "CanvasAnswers answers;\n"
        for k in range(levels):
            source += f"answers.scale[{k}] = in{6 + k}_p;\n"
            for part, name in enumerate(("logits", "distances", "centerness")):
                source += f"answers.{name}[{k}] = out{3 + levels * part + k}_p;\n"
        source += "canvas_answers(layout, answers, in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, in0_shape0, out0_p, out1_p, out2_p);"
        shapes = [[n, channels, locations] for channels in (1, 4, 1)]
        shapes += [[n, channels, r.height, r.width] for channels in (1, 4, 1) for r in self.layout.regions]
        inputs = [cls, box, center, *numbers]
        found = self.kernels.run(source, inputs, shapes, ["float32"] * len(shapes), self.layout.data())
        self.saved = inputs, found[1]
        return found

    def grad(self, dlogits, ddistances, dcenterness, *_):
        (cls, box, center, *numbers), distances = self.saved
        levels = len(self.layout.regions)
        given = [
            jt.zeros([cls.shape[0], channels, self.layout.locations]) if gradient is None else gradient
            for gradient, channels in ((dlogits, 1), (ddistances, 4), (dcenterness, 1))
        ]
        source = self.layout.source("in4_shape2", "in4_shape3") + "CanvasAnswers answers;\nCanvasSums sums;\n"
        source += "sums.cls_bias = out3_p;\nsums.box_bias = out4_p;\nsums.center_bias = out5_p;\n"
        for k in range(levels):
            source += f"answers.scale[{k}] = in{6 + k}_p;\nsums.scale[{k}] = out{6 + k}_p;\n"
        source += "canvas_answers_backward(layout, answers, in0_p, in1_p, in2_p, in3_p, in4_p, in5_p, in4_shape0, "
        source += "out0_p, out1_p, out2_p, sums);"
        shapes = [cls.shape, box.shape, center.shape, *[number.shape for number in numbers]]
        inputs = [*given, distances, box, numbers[1], *numbers[3:]]
        return tuple(self.kernels.run(source, inputs, shapes, ["float32"] * len(shapes), self.layout.data()))
