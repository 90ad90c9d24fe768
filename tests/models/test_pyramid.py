"""Every pyramid against its equation, in NumPy."""

import jittor as jt
import numpy as np
import pytest
from test_model_layers import plain_conv

from jrdp.config import PyramidConfig
from jrdp.errors import UserError
from jrdp.models.layers import Conv
from jrdp.models.pyramid import build_pyramid
from jrdp.models.state import named_tensors

IN_CHANNELS = (8, 12, 16)
SIZES = ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))  # of P3..P7 for an input of 64x96


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, c, *size)).astype(np.float32) for c, size in zip(IN_CHANNELS, SIZES)]


def resize(x, size):
    """Bilinear, align_corners=False, without antialiasing."""

    def weights(old, new):
        matrix = np.zeros((new, old))
        for k in range(new):
            at = max((k + 0.5) * old / new - 0.5, 0)
            low = int(at)
            matrix[k, low] += 1 - (at - low)
            matrix[k, min(low + 1, old - 1)] += at - low
        return matrix

    return np.einsum("yh,nchw,xw->ncyx", weights(x.shape[2], size[0]), x, weights(x.shape[3], size[1]))


class Plain:
    """The layers of a pyramid by name, in float64."""

    def __init__(self, pyramid):
        self.tensors = {name: value.numpy().astype(np.float64) for name, value in named_tensors(pyramid).items()}

    def __call__(self, name, x, stride=1):
        if f"{name}.0.weight" in self.tensors:
            return self(f"{name}.1", self(f"{name}.0", x))
        return plain_conv(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], stride)

    def fpn(self, c3, c4, c5, nearest=True):
        up = (lambda x: x.repeat(2, 2).repeat(2, 3)) if nearest else (lambda x: resize(x, np.multiply(2, x.shape[2:])))
        top5 = self("fpn_inner4", c5)
        top4 = self("fpn_inner3", c4) + up(top5)
        top3 = self("fpn_inner2", c3) + up(top4)
        p3, p4, p5 = self("fpn_layer2", top3), self("fpn_layer3", top4), self("fpn_layer4", top5)
        p6 = self("top_blocks.p6", p5, 2)
        return [p3, p4, p5, p6, self("top_blocks.p7", np.maximum(p6, 0), 2)]


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def pa(plain, levels):
    path = [levels[0]]
    for k, level in enumerate(levels[1:]):
        path.append(relu(plain(f"pa_out.{k}", relu(plain(f"pa_down.{k}", path[-1], 2)) + level)))
    return path


def at(x, like):
    """Pixel repetition, or the maximum over the pixels that fall on one, by a power of two."""
    height, width = like.shape[2:]
    if x.shape[2] < height or x.shape[3] < width:
        factor = next(f for f in (2, 4, 8, 16) if x.shape[2] * f >= height and x.shape[3] * f >= width)
        return x.repeat(factor, 2).repeat(factor, 3)[:, :, :height, :width]
    if x.shape == like.shape:
        return x
    factor = next(f for f in (2, 4, 8, 16) if -(-x.shape[2] // f) <= height and -(-x.shape[3] // f) <= width)
    rows = [x[:, :, factor * i : factor * (i + 1)].max(axis=2) for i in range(height)]
    x = np.stack(rows, axis=2)
    return np.stack([x[:, :, :, factor * i : factor * (i + 1)].max(axis=3) for i in range(width)], axis=3)


def nas_fpn(plain, levels):
    p3, p4, p5, p6, p7 = levels

    def cell(k, x):
        return plain(f"nas_cells.{k}", relu(x))

    def gp(a, b, like):
        a, b = at(a, like), at(b, like)
        return b + sigmoid(b.max(axis=(2, 3), keepdims=True)) * a

    first = cell(0, gp(p6, p4, p4))
    second = cell(1, first + p4)
    n3 = cell(2, at(second, p3) + p3)
    n4 = cell(3, at(n3, p4) + second)
    n5 = cell(4, gp(n4, n3, p5) + p5)
    n7 = cell(5, gp(n5, second, p7) + p7)
    return [n3, n4, n5, cell(6, gp(n7, n5, p6)), n7]


def pooled(x):
    """Maximum over 3x3, stride 2, nothing outside the map."""
    height, width = x.shape[2:]
    y = np.empty((*x.shape[:2], -(-height // 2), -(-width // 2)))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            y[:, :, i, j] = x[:, :, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2].max(axis=(2, 3))
    return y


def bifpn(plain, levels):
    last = len(levels) - 1

    def fuse(name, *maps):
        weight = relu(plain.tensors[f"{name}.weight"])
        x = sum(w * x for w, x in zip(weight, maps)) / (weight.sum() + 1e-4)
        x = x * sigmoid(x)
        w, b = (plain.tensors[f"{name}.depthwise.{what}"] for what in ("weight", "bias"))
        return plain(f"{name}.pointwise", plain_conv(x, w, b, groups=256))

    between = {last: levels[last]}
    for i in range(last - 1, -1, -1):
        between[i] = fuse(f"bifpn_down.{last - 1 - i}", levels[i], at(between[i + 1], levels[i]))
    out = [between[0]]
    for i in range(1, last):
        out.append(fuse(f"bifpn_up.{i - 1}", levels[i], between[i], pooled(out[-1])))
    return [*out, fuse(f"bifpn_up.{last - 1}", levels[last], pooled(out[-1]))]


def expected_levels(plain, config, levels):
    """Eq. 3-8 of the paper, and the equations of the others."""
    count = 3 if config.levels == "p3-p5" else 5
    others = {"none": lambda plain, levels: levels, "pa": pa, "nas_fpn": nas_fpn, "bifpn": bifpn}
    if config.enhancement in others:
        return others[config.enhancement](plain, levels[:count]) + levels[count:]
    if config.enhancement == "top_down_regularized":
        upside_down = expected_levels(plain, PyramidConfig(levels=config.levels), levels[:count][::-1])
        return upside_down[::-1] + levels[count:]
    refined = [plain("refine_block_1", levels[0])]
    for i in range(1, count):
        finer = [resize(x, levels[i].shape[2:]) for x in refined]
        if config.enhancement == "progressive":
            finer = finer[-1:]
        if config.enhancement == "regularized":
            attention = 1 / (1 + np.exp(-plain(f"att_block_{i}", levels[i])))
            finer = [attention * x for x in finer]
        refined.append(plain(f"refine_block_{i + 1}", np.concatenate([*finer, levels[i]], axis=1)))
    return refined + levels[count:]


def random_biases(pyramid):
    rng = np.random.default_rng(1)
    for name, value in named_tensors(pyramid).items():
        if name.endswith("bias"):
            value.assign(rng.standard_normal(value.shape).astype(np.float32))
        elif len(value.shape) == 1:  # the weights of BiFPN, some of them negative
            value.assign((1 + rng.standard_normal(value.shape)).astype(np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"enhancement": "none"},
        {"enhancement": "none", "upsample": "bilinear"},
        {"enhancement": "progressive"},
        {"enhancement": "progressive", "levels": "p3-p5", "fusion": "3x3"},
        {"enhancement": "dense"},
        {"enhancement": "dense", "levels": "p3-p5"},
        {"enhancement": "regularized", "levels": "p3-p5"},
        {"enhancement": "regularized", "fusion": "3x3", "upsample": "bilinear"},
        {"enhancement": "top_down_regularized"},
        {"enhancement": "top_down_regularized", "levels": "p3-p5"},
        {"enhancement": "pa"},
        {"enhancement": "pa", "levels": "p3-p5"},
        {"enhancement": "nas_fpn"},
        {"enhancement": "bifpn"},
        {"enhancement": "bifpn", "levels": "p3-p5"},
    ],
    ids=lambda options: " ".join(options.values()),
)
def test_equation(options, maps):
    config = PyramidConfig(**options)
    np.random.seed(0)
    pyramid = build_pyramid(config, IN_CHANNELS)
    random_biases(pyramid)
    plain = Plain(pyramid)
    expected = expected_levels(plain, config, plain.fpn(*maps, nearest=config.upsample == "nearest"))
    found = pyramid(*[jt.array(x) for x in maps])
    for level, (x, wanted) in enumerate(zip(found, expected), 3):
        error = np.linalg.norm(x.numpy() - wanted) / np.linalg.norm(wanted)
        assert error <= 5e-6, f"P{level}"


def test_the_stages_are_named(maps):
    stages = {}
    build_pyramid(PyramidConfig(levels="p3-p5"), IN_CHANNELS)(*[jt.array(x) for x in maps], stages)
    assert [name for name in stages if name.startswith("att")] == ["att_logit_P4", "att_logit_P5"]
    assert [tuple(stages[f"RP{k}"].shape) for k in range(3, 8)] == [(1, 256, *size) for size in SIZES]


def test_nas_fpn_needs_all_levels():
    with pytest.raises(UserError, match="levels must be p3-p7"):
        build_pyramid(PyramidConfig(enhancement="nas_fpn", levels="p3-p5"), IN_CHANNELS)


def test_one_fusion_convolution():
    pyramid = build_pyramid(PyramidConfig(fusion="3x3"), IN_CHANNELS)
    assert isinstance(pyramid.refine_block_5, Conv)
    assert tuple(pyramid.refine_block_5.weight.shape) == (256, 1280, 3, 3)
