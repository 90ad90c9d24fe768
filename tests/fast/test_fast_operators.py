"""The engine's operators against plain NumPy in float64."""

import itertools
import subprocess

import jittor as jt
import numpy as np
import pytest

from jrdp.fast import operators
from jrdp.fast.layers import Convolution, fold_batch_norm
from jrdp.ops import group_norm as plain_group_norm

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def relative(found, wanted):
    found = found.numpy() if isinstance(found, jt.Var) else found
    assert found.shape == wanted.shape
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-12)


def convolve(x, weight, bias, stride, groups):
    """`[N, H, W, C]`, `[O, C / groups, k, k]` -> `[N, OH, OW, O]`, float64."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    n, h, w, c = x.shape
    o, per_group, k, _ = weight.shape
    pad = k // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    oh, ow = (h + 2 * pad - k) // stride + 1, (w + 2 * pad - k) // stride + 1
    out = np.zeros((n, oh, ow, o)) + bias
    for g in range(groups):
        into = slice(g * o // groups, (g + 1) * o // groups)
        for a, b in itertools.product(range(k), range(k)):
            seen = padded[:, a : a + stride * oh : stride, b : b + stride * ow : stride]
            seen = seen[:, :oh, :ow, g * per_group : (g + 1) * per_group]
            out[..., into] += seen @ weight[into, :, a, b].T
    return out


CONVOLUTIONS = [  # n, h, w, in, out, kernel, stride, groups
    (1, 9, 14, 64, 64, 1, 1, 1),
    (2, 9, 14, 64, 128, 1, 2, 1),
    (1, 33, 47, 3, 64, 7, 2, 1),
    (1, 1, 1, 32, 32, 3, 1, 1),
    (3, 17, 11, 32, 64, 3, 1, 1),
    (1, 16, 16, 48, 32, 3, 2, 1),
    (2, 12, 20, 256, 256, 3, 1, 32),
    (1, 13, 10, 512, 512, 3, 2, 32),
    (1, 8, 9, 64, 1, 3, 1, 1),
    (1, 8, 9, 64, 4, 3, 1, 1),
    (1, 32, 5, 128, 2, 1, 1, 1),
]


@pytest.mark.parametrize("winograd", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case, winograd):
    n, h, w, c, o, kernel, stride, groups = case
    weight, bias = normal(o, c // groups, kernel, kernel), normal(o)
    x = normal(n, h, w, c)
    layer = Convolution(weight, bias, stride, groups, winograd)
    wanted = convolve(x, weight, bias, stride, groups)
    assert relative(layer(jt.array(x)).numpy()[..., :o], wanted) < 5e-6
    assert relative(layer(jt.array(x), relu=True).numpy()[..., :o], np.maximum(wanted, 0)) < 5e-6
    assert relative(layer(jt.array(x)).numpy()[..., :o], wanted + 0.01 * np.abs(wanted).max()) > 1e-3  # can fail
    if o % 16 == 0:
        addend = normal(*wanted.shape)
        assert relative(layer(jt.array(x), relu=True, add=jt.array(addend)), np.maximum(wanted + addend, 0)) < 5e-6


@pytest.mark.parametrize("height, width", [(8, 10), (7, 9), (2, 2)])
def test_half_size_addend_is_doubled_by_nearest_neighbour(height, width):
    weight, bias, x = normal(64, 32, 1, 1), normal(64), normal(2, height, width, 32)
    coarse = normal(2, (height + 1) // 2, (width + 1) // 2, 64)
    doubled = coarse.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]
    found = Convolution(weight, bias)(jt.array(x), add=jt.array(coarse))
    assert relative(found, convolve(x, weight, bias, 1, 1) + doubled) < 5e-6


TILED = [(1, 16, 12, 32, 64), (1, 13, 19, 16, 32), (3, 9, 22, 48, 96), (7, 32, 32, 128, 128)]


@pytest.mark.parametrize("n, h, w, c, o", TILED)
def test_winograd_is_used_and_agrees_with_the_direct_convolution(n, h, w, c, o, monkeypatch):
    weight, bias, x = normal(o, c, 3, 3), normal(o), normal(n, h, w, c)
    called = []
    monkeypatch.setattr(operators, "winograd", lambda *a, run=operators.winograd: called.append(1) or run(*a))
    found = Convolution(weight, bias)(jt.array(x), relu=True)
    assert called
    assert relative(found, np.maximum(convolve(x, weight, bias, 1, 1), 0)) < 5e-6


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("broken", [np.nan, -np.nan, np.inf, -np.inf])
def test_winograd_carries_what_is_not_a_number(broken, relu):
    """Its transforms subtract infinities from each other; what a ReLU lets through of that is not zero."""
    weight, bias, x = normal(32, 32, 3, 3), normal(32), normal(1, 16, 24, 32)
    packed = operators.winograd_pack(weight)
    whole = operators.winograd(jt.array(x), packed, jt.array(bias), relu).numpy()
    x[0, 5, 9, 3] = broken
    found = operators.winograd(jt.array(x), packed, jt.array(bias), relu).numpy()
    assert np.isnan(found[0, 4:7, 8:11]).all()
    np.testing.assert_array_equal(found[0, 8:], whole[0, 8:])  # other tiles


def test_maps_that_do_not_fit_are_refused():
    layer = Convolution(normal(32, 16, 1, 1), None)
    with pytest.raises(ValueError, match="takes 16 channels, not 32"):
        layer(jt.array(normal(1, 4, 4, 32)))
    with pytest.raises(ValueError, match="neither that size nor half of it"):
        layer(jt.array(normal(1, 4, 4, 16)), add=jt.array(normal(1, 3, 4, 32)))


WINOGRAD_PROGRAM = """
#include <cstdio>
#include "winograd.h"
int main(int, char** path) {
    const int n = 2, h = 18, w = 21, ci = 48, co = 64;
    std::vector<float> x(n * h * w * ci), weights(co * ci * 9), bias(co), packed(36 * co * ci), out(n * h * w * co);
    FILE* f = fopen(path[1], "rb");
    size_t got = fread(x.data(), 4, x.size(), f) + fread(weights.data(), 4, weights.size(), f) +
                 fread(bias.data(), 4, bias.size(), f);
    if (got != x.size() + weights.size() + bias.size()) return 1;
    jrdp_fast::winograd_pack(weights.data(), co, ci, packed.data());
    jrdp_fast::winograd(x.data(), packed.data(), bias.data(), false, n, h, w, ci, co, out.data());
    fwrite(out.data(), 4, out.size(), fopen(path[2], "wb"));
    return 0;
}
"""


@pytest.mark.parametrize("lanes", [8, 16])
def test_winograd_for_either_vector_length(lanes, tmp_path):
    """The arrangement for AVX2 and the one for AVX-512 are right; the compiler can do both on any processor."""
    x, weight, bias = normal(2, 18, 21, 48), normal(64, 48, 3, 3), normal(64)
    (tmp_path / "in").write_bytes(x.tobytes() + weight.tobytes() + bias.tobytes())
    (tmp_path / "main.cc").write_text(WINOGRAD_PROGRAM)
    flags = ["-std=c++14", "-O2", "-fopenmp", f"-DJRDP_LANES={lanes}", "-Wno-psabi", f"-I{operators.KERNELS}"]
    subprocess.run(["g++", *flags, str(tmp_path / "main.cc"), "-o", str(tmp_path / "main")], check=True)
    subprocess.run([str(tmp_path / "main"), str(tmp_path / "in"), str(tmp_path / "out")], check=True)
    found = np.frombuffer((tmp_path / "out").read_bytes(), np.float32).reshape(2, 18, 21, 64)
    assert relative(found, convolve(x, weight, bias, 1, 1)) < 5e-6


def test_frozen_batch_norm_is_folded_without_epsilon():
    weight, x = normal(32, 16, 1, 1), normal(1, 4, 5, 16)
    norm = {"weight": normal(32), "bias": normal(32), "running_mean": normal(32)}
    norm["running_var"] = np.full(32, 1e-6, np.float32)  # an epsilon of 1e-5 would change this threefold
    plain = convolve(x, weight, 0, 1, 1)
    wanted = (plain - norm["running_mean"]) * (norm["weight"] / np.sqrt(1e-6)) + norm["bias"]
    assert relative(Convolution(*fold_batch_norm(weight, norm))(jt.array(x)), wanted) < 5e-6


def group_normalise(x, weight, bias, groups, eps):
    x = x.astype(np.float64)
    n, h, w, c = x.shape
    grouped = x.reshape(n, h * w, groups, c // groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean(axis=(1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * weight + bias


NORMED = [(1, 40, 60, 128), (1, 3, 4, 128), (1, 1, 1, 64), (11, 8, 8, 128), (2, 37, 5, 256)]


@pytest.mark.parametrize("n, h, w, c", NORMED)
def test_group_norm(n, h, w, c):
    x, weight, bias = normal(n, h, w, c), normal(c), normal(c)
    wanted = group_normalise(x, weight, bias, 32, 1e-5)
    arrays = [jt.array(a) for a in (x, weight, bias)]
    assert relative(operators.group_norm(*arrays, 32, 1e-5, relu=False), wanted) < 2e-6
    assert relative(operators.group_norm(*arrays, 32, 1e-5, relu=True), np.maximum(wanted, 0)) < 2e-6
    assert relative(operators.group_norm(*arrays, 32, 1e-1, relu=False), wanted) > 1e-3  # another epsilon is seen


def test_group_norm_with_a_mean_far_above_the_spread():
    x = (100 + 0.01 * RNG.standard_normal((1, 20, 30, 128))).astype(np.float32)
    one, zero = np.ones(128, np.float32), np.zeros(128, np.float32)
    wanted = group_normalise(x, one, zero, 32, 1e-5)
    found = operators.group_norm(*[jt.array(a) for a in (x, one, zero)], 32, 1e-5, relu=False)
    assert relative(found, wanted) < 1e-4  # E[x^2] - E[x]^2 in float32 is off by far more than its own size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("broken", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n, h, w, c", [(2, 9, 14, 128), (9, 4, 4, 64)])
def test_group_norm_carries_what_is_not_finite_as_the_plain_one(n, h, w, c, broken, relu, dtype):
    x, weight, bias = normal(n, h, w, c), normal(c), normal(c)
    arrays = [jt.array(weight), jt.array(bias)]
    whole = operators.group_norm(jt.array(x), *arrays, 32, 1e-5, relu, dtype).float32().numpy()
    x[1, h // 2, w // 2, c - 3] = broken
    found = operators.group_norm(jt.array(x), *arrays, 32, 1e-5, relu, dtype).float32().numpy()
    plain = plain_group_norm(jt.array(x.transpose(0, 3, 1, 2)), *arrays, 32, 1e-5, relu=relu).numpy()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(plain.transpose(0, 2, 3, 1)))
    first = (c - 3) // (c // 32) * (c // 32)
    assert np.isnan(found[1, :, :, first : first + c // 32]).all() and np.isnan(found).sum() == h * w * c // 32
    np.testing.assert_array_equal(found[~np.isnan(found)], whole[~np.isnan(found)])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [1e18, 1e19, 1e20, 1e30, 1e37])
def test_group_norm_of_numbers_whose_squares_no_float32_holds(size, relu):
    weight, bias = normal(128), normal(128)
    for mean, x in ((0, normal(2, 19, 23, 128)), (-3, normal(9, 6, 7, 128))):
        x = (x + np.float32(mean)) * np.float32(size)
        x[:, 3] *= np.float32(1e-10)  # beside small ones
        x[0, :, :, 64:] /= np.float32(size)  # and only in some groups
        wanted = group_normalise(x, weight, bias, 32, 1e-5)
        wanted = np.maximum(wanted, 0) if relu else wanted
        arrays = [jt.array(a) for a in (x, weight, bias)]
        assert relative(operators.group_norm(*arrays, 32, 1e-5, relu), wanted) < 2e-6
        nchw = plain_group_norm(jt.array(x.transpose(0, 3, 1, 2)), *arrays[1:], 32, 1e-5, relu=relu).numpy()
        assert relative(operators.group_norm(*arrays, 32, 1e-5, relu), nchw.transpose(0, 2, 3, 1)) < 2e-6


@pytest.mark.parametrize("h, w", [(8, 12), (7, 9), (1, 1), (2, 5)])
def test_max_pool(h, w):
    x = normal(2, h, w, 16) - 5  # negative, so that zeros from the padding would show
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    oh, ow = (h + 1) // 2, (w + 1) // 2
    windows = [padded[:, a : a + 2 * oh - 1 : 2, b : b + 2 * ow - 1 : 2] for a in range(3) for b in range(3)]
    np.testing.assert_array_equal(operators.max_pool(jt.array(x)).numpy(), np.max(windows, axis=0))


def axis_matrix(target, source):
    """Weights `[target, source]` of bilinear interpolation between pixel centres."""
    matrix = np.zeros((target, source))
    for i in range(target):
        at = max(0.0, (i + 0.5) * source / target - 0.5)
        low = min(int(at), source - 1)
        high = min(low + 1, source - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, high] += at - low
    return matrix


def resize(x, h, w):
    x = np.einsum("yi,nijc->nyjc", axis_matrix(h, x.shape[1]), x.astype(np.float64))
    return np.einsum("xj,nyjc->nyxc", axis_matrix(w, x.shape[2]), x)


FINER = [[(10, 15)], [(40, 60), (20, 30)], [(33, 17), (17, 9), (9, 5)], [(80, 8), (40, 4), (20, 2), (10, 1)]]


@pytest.mark.parametrize("attend", [True, False])
@pytest.mark.parametrize("sizes", FINER, ids=len)
def test_resize_concat(sizes, attend):
    h, w = sizes[-1][0] // 2, max(1, sizes[-1][1] // 2)
    level, logits = normal(2, h, w, 32), normal(2, h, w, 32)
    finer = [normal(2, *size, 32) for size in sizes]
    factor = 1 / (1 + np.exp(-logits.astype(np.float64))) if attend else 1
    wanted = np.concatenate([*[factor * resize(x, h, w) for x in finer], level], axis=3)
    found = operators.resize_concat([jt.array(x) for x in finer], jt.array(level), jt.array(logits) if attend else None)
    assert relative(found, wanted) < 5e-6


def test_attention_far_from_zero_is_zero_or_one():
    """As in networks that nearly diverged: exp of it is beyond float32."""
    logits = np.float32([0, -30, -88, -89, -104, -1e4, -3e38, 88, 89, 1e4, 3e38]).repeat(32).reshape(1, 1, 11, 32)
    level, finer = normal(1, 1, 11, 32), normal(1, 2, 22, 32)
    found = operators.resize_concat([jt.array(finer)], jt.array(level), jt.array(logits)).numpy()[..., :32]
    share = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    np.testing.assert_allclose(found, share * resize(finer, 1, 11), rtol=1e-5, atol=1e-6)
    assert np.abs(found[share < 1e-30]).max() < 1e-37  # numbers below 1.2e-38, or zeros, by how a processor divides
    assert not found[share < 1e-50].any()


@pytest.mark.parametrize("attend", [False, True])
def test_resize_concat_carries_what_is_not_a_number(attend):
    """In the attention, in a finer map and in the level itself; an infinite attention is zero or one."""
    level, finer, logits = normal(1, 4, 6, 32), normal(1, 8, 12, 32), normal(1, 4, 6, 32)
    logits[0, 0, :4, 5] = np.nan, -np.nan, np.inf, -np.inf
    finer[0, 7, 11, 2], level[0, 2, 2, 3] = np.nan, np.nan
    inputs = jt.array(level), jt.array(logits) if attend else None
    found = operators.resize_concat([jt.array(finer)], *inputs).numpy()
    broken = [(0, 0, 0, 5), (0, 0, 1, 5)] if attend else []
    assert set(zip(*np.nonzero(np.isnan(found)))) == {*broken, (0, 3, 5, 2), (0, 2, 2, 32 + 3)}
    if attend:
        resized = resize(finer, 4, 6)[0, 0, 2, 5]
        np.testing.assert_allclose(found[0, 0, 2:4, 5], [resized, 0], rtol=1e-6)


def test_roi_align_carries_what_is_not_a_number():
    features, coarse, roi = normal(1, 12, 20, 16), normal(1, 2, 2, 16), jt.array(np.float32([[0, 0, 0, 63, 63]]))
    features[0, 1, 1, 4] = coarse[0, 1, 1, 7] = np.nan
    found = operators.roi_align(jt.array(features), roi, 4, 1 / 8, coarse=jt.array(coarse)).numpy()
    assert np.isnan(found[0, 0, 0, 4]) and np.isnan(found[0, 3, 3, 7]) and not np.isnan(found[..., :4]).any()


def test_resize_concat_refuses_more_maps_than_it_has_inputs_for():
    with pytest.raises(ValueError, match="1 to 4"):
        operators.resize_concat([jt.zeros((1, 2, 2, 8))] * 5, jt.zeros((1, 2, 2, 8)))


def pool_roi(image, box, size, scale, sampling=2):
    """`[h, w, c]` and (x1, y1, x2, y2) -> `[size, size, c]`, sample by sample in float64."""
    h, w, c = image.shape
    x1, y1, x2, y2 = [float(np.float32(v) * np.float32(scale)) for v in box]
    bin_h, bin_w = max(y2 - y1, 1.0) / size, max(x2 - x1, 1.0) / size
    out = np.zeros((size, size, c))
    for py, px, sy, sx in itertools.product(range(size), range(size), range(sampling), range(sampling)):
        y, x = y1 + (py + (sy + 0.5) / sampling) * bin_h, x1 + (px + (sx + 0.5) / sampling) * bin_w
        if y < -1 or y > h or x < -1 or x > w:
            continue
        y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
        y0, x0 = int(y), int(x)
        ya, xa = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
        fy, fx = y - y0, x - x0
        out[py, px] += (1 - fy) * ((1 - fx) * image[y0, x0] + fx * image[y0, xa])
        out[py, px] += fy * ((1 - fx) * image[ya, x0] + fx * image[ya, xa])
    return out / sampling**2


ROIS = np.array(
    [
        [0, 0, 0, 159, 95],
        [1, 10.3, 20.7, 80.1, 33.3],
        [1, 100, 50, 100, 50],  # no area
        [0, 60, 40, 20, 30],  # corners swapped
        [0, 150, 90, 400, 300],  # beyond the map
        [1, -300, -200, -100, -90],  # wholly outside
        [0, -5, -5, 12, 9],
    ],
    np.float32,
)


@pytest.mark.parametrize("size, scale", [(4, 1 / 16), (8, 1 / 8), (7, 1 / 8)])
def test_roi_align(size, scale):
    features = normal(2, round(96 * scale), round(160 * scale), 32)
    wanted = np.stack([pool_roi(features[int(roi[0])].astype(np.float64), roi[1:], size, scale) for roi in ROIS])
    rois = jt.array(ROIS)
    assert relative(operators.roi_align(jt.array(features), rois, size, scale), wanted) < 1e-5
    coarse = normal(len(ROIS), 4, 4, 32)
    found = operators.roi_align(jt.array(features), rois, size, scale, coarse=jt.array(coarse))
    assert relative(found, wanted + resize(coarse, size, size)) < 1e-5
    assert relative(operators.roi_align(jt.array(features), rois, size, scale * 1.01), wanted) > 1e-3  # can fail


def test_roi_align_of_no_roi_and_of_one():
    features = jt.array(normal(1, 12, 20, 16))
    assert operators.roi_align(features, jt.zeros((0, 5)), 4, 1 / 8).numpy().shape == (0, 4, 4, 16)
    assert operators.roi_align(features, jt.array(ROIS[:1]), 4, 1 / 8).numpy().shape == (1, 4, 4, 16)


@pytest.mark.parametrize("image", [-1, 2, float("nan")])
def test_roi_of_an_image_outside_the_batch_is_refused(image):
    rois = ROIS[:2].copy()
    rois[1, 0] = image
    with pytest.raises(RuntimeError, match="outside the batch"):
        operators.roi_align(jt.array(normal(2, 12, 20, 16)), jt.array(rois), 4, 1 / 8).numpy()


def test_no_shape_of_the_network_falls_back_to_the_reference_implementation():
    for n, h, w, c, o, kernel, stride, groups in CONVOLUTIONS:
        shape = operators.ConvShape(n, h, w, c, max(o, 16), kernel, stride, groups, True, False)
        assert not operators.is_slow(shape), shape
