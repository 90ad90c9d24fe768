"""Convolutions of a training by Winograd's algorithm and as products of matrices, against plain sums in float64, and a network that trains with them."""

import os
import subprocess
import sys

import numpy as np
import pytest

import jittor as jt
from jittor import nn

from jrdp.config import load_config
from jrdp.engine.convolutions import convolutions_as_defined, convolutions_of_training
from jrdp.fast import operators, training
from jrdp.models.layers import Conv

OFFSETS = [(a, b) for a in range(3) for b in range(3)]


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def expected(x, weight, dy):
    """Output, gradient of x and gradient of weight of the 3x3 convolution of stride 1 and padding 1, in float64."""
    h, w = x.shape[2:]
    x, weight, dy = (a.astype(np.float64) for a in (x, weight, dy))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y, dpadded, dweight = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for a, b in OFFSETS:
        window = padded[:, :, a : a + h, b : b + w]
        y += np.einsum("nchw,oc->nohw", window, weight[:, :, a, b], optimize=True)
        dpadded[:, :, a : a + h, b : b + w] += np.einsum("nohw,oc->nchw", dy, weight[:, :, a, b], optimize=True)
        dweight[:, :, a, b] = np.einsum("nohw,nchw->oc", dy, window, optimize=True)
    return y, dpadded[:, :, 1:-1, 1:-1], dweight


def relative(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def worst_of(convolution, x, weight, dy, wanted):
    """The largest relative difference of a convolution's output and gradients from `wanted`."""
    inputs = jt.array(x), jt.array(weight)
    y = convolution(*inputs)
    found = [y, *jt.grad((y * jt.array(dy)).sum(), list(inputs))]
    assert [tuple(each.shape) for each in found] == [value.shape for value in wanted]
    return max(relative(each.numpy(), value) for each, value in zip(found, wanted))


# Whole tiles, cut ones on either side, a map smaller than a tile, one pixel, and more tiles than are held at a time.
SIZES = [(2, 8, 12, 32, 64), (1, 13, 18, 64, 32), (3, 3, 2, 32, 32), (1, 1, 1, 32, 96), (2, 61, 66, 256, 256)]


@pytest.mark.parametrize("n, h, w, c, o", SIZES)
def test_convolution_and_both_gradients(n, h, w, c, o):
    x, weight, dy = normal(n, c, h, w), normal(o, c, 3, 3), normal(n, o, h, w)
    assert worst_of(training.winograd_convolution, x, weight, dy, expected(x, weight, dy)) < 1e-5


# More pixels than a part of a map holds, and not a multiple of it; odd channels; one pixel; one channel to many and back.
POINTWISE = [(2, 40, 61, 32, 48), (3, 7, 9, 5, 3), (1, 1, 1, 64, 2), (2, 33, 32, 1, 17), (1, 45, 46, 70, 1)]


@pytest.mark.parametrize("n, h, w, c, o", POINTWISE)
def test_pointwise_convolution_and_both_gradients(n, h, w, c, o):
    x, weight, dy = normal(n, c, h, w), normal(o, c, 1, 1), normal(n, o, h, w)
    exact = [a.astype(np.float64) for a in (x, weight[:, :, 0, 0], dy)]
    wanted = [
        np.einsum("nchw,oc->nohw", exact[0], exact[1]),
        np.einsum("nohw,oc->nchw", exact[2], exact[1]),
        np.einsum("nohw,nchw->oc", exact[2], exact[0])[:, :, None, None],
    ]
    assert worst_of(training.pointwise_convolution, x, weight, dy, wanted) < 1e-6


THREADS_PROGRAM = """
import sys, numpy as np
from jrdp.machine import runtime
runtime.own_process(); runtime.start("cpu")
import jittor as jt
from jrdp.fast.training import pointwise_convolution, winograd_convolution
rng = np.random.default_rng(0)
x, w, dy = (jt.array(rng.standard_normal(s).astype(np.float32)) for s in ((2, 64, 20, 23), (32, 64, 3, 3), (2, 32, 20, 23)))
y = winograd_convolution(x, w)
thin = w[:, :, :1, :1]
z = pointwise_convolution(x, thin)
found = [y, *jt.grad((y * dy).sum(), [x, w]), z, *jt.grad((z * dy).sum(), [x])]
np.savez(sys.argv[1], *[each.numpy() for each in found])
"""


def test_the_number_of_threads_changes_no_bit(tmp_path):
    results = []
    for threads in ("1", "2"):
        out = tmp_path / f"{threads}.npz"
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", THREADS_PROGRAM, str(out)], env=environment, check=True, capture_output=True)
        results.append(np.load(out))
    one, two = results
    assert len(one.files) == 5
    assert all(np.array_equal(one[name], two[name]) for name in one.files)


PROGRAM = """
#include <cstdio>
#include "winograd_training.h"
int main(int, char** path) {
    const int n = 2, h = 18, w = 21, ci = 32, co = 64;
    std::vector<float> x(n * h * w * ci), dy(n * h * w * co), weights(co * ci * 9), dx(x.size()), y(dy.size()), dw(weights.size());
    FILE* f = fopen(path[1], "rb");
    if (fread(x.data(), 4, x.size(), f) + fread(dy.data(), 4, dy.size(), f) + fread(weights.data(), 4, weights.size(), f) !=
        x.size() + dy.size() + weights.size()) return 1;
    jrdp_fast::winograd_for_training(x.data(), weights.data(), false, n, h, w, ci, co, y.data());
    jrdp_fast::winograd_for_training(dy.data(), weights.data(), true, n, h, w, co, ci, dx.data());
    jrdp_fast::winograd_weight_gradient(x.data(), dy.data(), n, h, w, ci, co, dw.data());
    f = fopen(path[2], "wb");
    for (auto* v : {&y, &dx, &dw}) fwrite(v->data(), 4, v->size(), f);
    return fclose(f);
}
"""


@pytest.mark.parametrize("lanes", [8, 16])
def test_either_vector_length(lanes, tmp_path):
    x, dy, weight = normal(2, 32, 18, 21), normal(2, 64, 18, 21), normal(64, 32, 3, 3)
    last = [np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, dy)]
    (tmp_path / "in").write_bytes(b"".join(a.tobytes() for a in (*last, weight)))
    (tmp_path / "main.cc").write_text(PROGRAM)
    flags = ["-std=c++14", "-O2", "-fopenmp", f"-DJRDP_LANES={lanes}", "-Wno-psabi", f"-I{operators.KERNELS}"]
    subprocess.run(["g++", *flags, str(tmp_path / "main.cc"), "-o", str(tmp_path / "main")], check=True)
    subprocess.run([str(tmp_path / "main"), str(tmp_path / "in"), str(tmp_path / "out")], check=True)
    found = np.frombuffer((tmp_path / "out").read_bytes(), np.float32)
    y, dx, dweight = expected(x, weight, dy)
    wanted = [y.transpose(0, 2, 3, 1), dx.transpose(0, 2, 3, 1), dweight]
    for part, value in zip(np.split(found, np.cumsum([v.size for v in wanted])[:-1]), wanted):
        assert relative(part, value.ravel()) < 1e-5


@pytest.mark.parametrize(
    "shape, weight, stride, taken",
    [
        ((2, 32, 24, 24), (32, 32, 3, 3), 1, "winograd_convolution"),
        ((2, 32, 24, 24), (32, 32, 3, 3), 2, None),
        ((2, 32, 24, 24), (32, 32, 1, 1), 1, "pointwise_convolution"),
        ((2, 32, 24, 24), (1, 32, 1, 1), 1, "pointwise_convolution"),
        ((2, 32, 24, 24), (32, 32, 1, 1), 2, None),
        ((2, 32, 24, 24), (1, 32, 3, 3), 1, None),  # a head with one channel
        ((1, 32, 8, 8), (32, 32, 3, 3), 1, None),  # a few tiles
        ((2, 24, 24, 24), (32, 24, 3, 3), 1, None),
    ],
)
def test_what_does_not_pay_stays_the_plain_convolution(shape, weight, stride, taken, monkeypatch):
    called = []
    for name in ("winograd_convolution", "pointwise_convolution"):
        run = getattr(training, name)
        monkeypatch.setattr(training, name, lambda *a, name=name, run=run: called.append(name) or run(*a))
    x, w, bias = jt.array(normal(*shape)), jt.array(normal(*weight)), jt.array(normal(weight[0]))
    found = training.convolve(x, w, bias, stride, weight[2] // 2)
    assert called == ([taken] if taken else [])
    assert relative(found.numpy(), nn.conv2d(x, w, bias, stride, weight[2] // 2).numpy()) < 1e-5


def test_a_network_trains_that_way_and_predicts_plainly():
    class Two(nn.Module):
        def __init__(self):
            self.first, self.second = Conv(32, 32, 3), Conv(32, 64, 3, stride=2)

        def execute(self, x):
            return self.second(self.first(x))

    network, x = Two(), jt.array(normal(2, 32, 40, 40))
    train = load_config(None, ["train.engine=fast"]).train

    def outcome():
        y = network(x)
        return [y.numpy(), *(g.numpy() for g in jt.grad((y * y).sum(), [network.first.weight, network.first.bias]))]

    plain = outcome()
    with convolutions_of_training(network, train):
        fast = outcome()
        assert network.first.convolve is training.convolve
        with convolutions_as_defined(network, train):
            inside = outcome()
        assert network.first.convolve is training.convolve
    after = outcome()
    assert all(relative(a, b) < 1e-5 for a, b in zip(fast, plain))
    assert not np.array_equal(fast[0], plain[0])
    for same in (inside, after):
        assert all(np.array_equal(a, b) for a, b in zip(same, plain))
