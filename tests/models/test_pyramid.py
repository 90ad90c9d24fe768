"""Every pyramid against its equation, in NumPy."""

import jittor as jt
import numpy as np
import pytest
from test_model_layers import plain_conv

from jrdp.config import PyramidConfig
from jrdp.errors import UserError
from jrdp.models.layers import Conv
from jrdp.models.pyramid import AVAILABLE, build_pyramid
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


def expected_levels(plain, config, levels):
    """Eq. 3-8 of the paper."""
    if config.enhancement == "none":
        return levels
    count = 3 if config.levels == "p3-p5" else 5
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


@pytest.mark.parametrize("enhancement", ["top_down_regularized", "pa", "nas_fpn", "bifpn"])
def test_what_is_not_there_is_said(enhancement):
    if enhancement in AVAILABLE:
        return
    with pytest.raises(UserError, match=f"{enhancement} is not implemented; available: none, progressive"):
        build_pyramid(PyramidConfig(enhancement=enhancement), IN_CHANNELS)


def test_one_fusion_convolution():
    pyramid = build_pyramid(PyramidConfig(fusion="3x3"), IN_CHANNELS)
    assert isinstance(pyramid.refine_block_5, Conv)
    assert tuple(pyramid.refine_block_5.weight.shape) == (256, 1280, 3, 3)
