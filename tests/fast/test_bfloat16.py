"""Convolutions and maps in bfloat16, against plain NumPy in float64 on numbers that NumPy has rounded."""

import os
import subprocess
import sys

import jittor as jt
import numpy as np
import pytest

from jrdp.config import Config, ModelConfig, load_config
from jrdp import interchange
from jrdp.engine import precision
from jrdp.engine.network import for_prediction, refuse_unfit_engine
from jrdp.engine.predictor import build
from jrdp.engine.weights import config_of
from jrdp.errors import UserError
from jrdp.fast import FastNetwork, network, operators
from jrdp.fast.layers import Convolution
from jrdp.models.fcos_decode import Detections
from jrdp.models.rdpnet import RDPNet
from test_fast_network import LIMITED, golden_batch, noise_batch, stage_error
from test_fast_operators import CONVOLUTIONS, ROIS, convolve, normal, relative


def rounded(x):
    """To 8 binary digits, ties to even: bfloat16 in float32, without a look at bits."""
    digits, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.round(digits * 256), exponent - 8).astype(np.float32)


def kept(x):
    return operators.to_bfloat16(jt.array(x))


def assert_rounded(found, wanted):
    """`found` is `wanted` rounded, but for a neighbour here and there where float32 fell on the other side of a tie."""
    found = found.numpy()
    assert np.array_equal(found, rounded(found)) and not np.array_equal(found, wanted)
    assert (found == rounded(wanted)).mean() > 0.99
    np.testing.assert_allclose(found, wanted, rtol=2**-7, atol=1e-5)


def test_numbers_are_rounded_to_the_nearest_ties_to_even():
    limits = np.finfo(np.float32)
    x = np.concatenate([normal(1000), 2.0 ** np.arange(-100, 100, 7), 1 + np.arange(-600, 600) / 2**10])
    x = np.concatenate([x, -x, [0, limits.max, limits.min, np.inf]]).astype(np.float32)
    found = kept(x).numpy()
    wanted = np.append(rounded(x[:-3]), [np.inf, -np.inf, np.inf])  # the largest float32 is nearer to infinity
    assert np.array_equal(found, wanted)
    assert not np.array_equal(found, jt.array(x).bfloat16().numpy())  # Jittor's own cuts off
    for bits in (0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001):  # what is not a number does not become one
        one = kept(np.array([bits], np.uint32).view(np.float32)).numpy()
        assert np.isnan(one).all(), hex(bits)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution(case):
    n, h, w, c, o, kernel, stride, groups = case
    weight, bias, x = normal(o, c // groups, kernel, kernel), normal(o), normal(n, h, w, c)
    wanted = convolve(rounded(x), rounded(weight), bias, stride, groups)
    layer = Convolution(weight, bias, stride, groups, dtype="bfloat16")
    exact = layer(kept(x), out="float32")
    assert relative(exact.numpy()[..., :o], wanted) < 2e-6
    assert relative(layer(kept(x), relu=True, out="float32").numpy()[..., :o], np.maximum(wanted, 0)) < 2e-6
    # Neither is float32's result this one, nor this one float32's.
    assert relative(Convolution(weight, bias, stride, groups)(jt.array(x)).numpy()[..., :o], wanted) > 5e-4
    assert relative(exact.numpy()[..., :o], convolve(x, weight, bias, stride, groups)) > 5e-4

    half = layer(kept(x))
    assert half.dtype == "bfloat16"
    assert relative(half.numpy(), rounded(exact.numpy())) < 2e-4
    if o % 16 == 0:
        addend = normal(*wanted.shape)
        found = layer(kept(x), relu=True, add=kept(addend))
        assert relative(found, rounded(np.maximum(wanted + rounded(addend), 0))) < 5e-4
        found = layer(kept(x), add=jt.array(addend), out="float32")
        assert relative(found, wanted + addend) < 2e-6


def test_half_size_addend_is_doubled_by_nearest_neighbour():
    weight, bias, x, coarse = normal(64, 32, 1, 1), normal(64), normal(2, 7, 9, 32), normal(2, 4, 5, 64)
    doubled = rounded(coarse).repeat(2, axis=1).repeat(2, axis=2)[:, :7, :9]
    found = Convolution(weight, bias, dtype="bfloat16")(kept(x), add=kept(coarse))
    assert_rounded(found, convolve(rounded(x), rounded(weight), bias, 1, 1) + doubled)


def test_maps_of_other_numbers_are_refused():
    layer = Convolution(normal(32, 16, 1, 1), None, dtype="bfloat16")
    x = normal(1, 4, 4, 16)
    with pytest.raises(ValueError, match="takes bfloat16 and adds bfloat16"):
        layer(jt.array(x))
    with pytest.raises(ValueError, match="takes bfloat16 and adds bfloat16"):
        layer(kept(x), add=jt.array(normal(1, 4, 4, 32)))
    with pytest.raises(ValueError, match="takes float32"):
        Convolution(normal(32, 16, 1, 1), None)(kept(x))


def test_operators_between_convolutions_round_what_they_compute_in_float32():
    x, finer, logits = normal(2, 9, 13, 64), normal(2, 18, 26, 64), normal(2, 9, 13, 64)
    small = [jt.array(rounded(a)) for a in (x, finer)]
    assert np.array_equal(operators.max_pool(kept(x)).numpy(), operators.max_pool(small[0]).numpy())
    found = operators.resize_concat([kept(finer)], kept(x), jt.array(logits))
    assert_rounded(found, operators.resize_concat([small[1]], small[0], jt.array(logits)).numpy())
    found = operators.resize_concat([kept(finer)], kept(x))
    assert_rounded(found, operators.resize_concat([small[1]], small[0]).numpy())
    scale, shift = jt.array(normal(64)), jt.array(normal(64))
    for relu in (False, True):
        wanted = operators.group_norm(jt.array(x), scale, shift, 32, 1e-5, relu).numpy()
        assert_rounded(operators.group_norm(jt.array(x), scale, shift, 32, 1e-5, relu, "bfloat16"), wanted)
    rois, coarse = jt.array(ROIS), jt.array(normal(len(ROIS), 4, 4, 64))
    wanted = operators.roi_align(jt.array(x), rois, 8, 1 / 8, coarse).numpy()
    assert_rounded(operators.roi_align(jt.array(x), rois, 8, 1 / 8, coarse, dtype="bfloat16"), wanted)
    assert operators.roi_align(jt.array(x), jt.zeros((0, 5)), 4, 1 / 8, dtype="bfloat16").numpy().shape == (0, 4, 4, 64)


def test_no_shape_of_the_network_falls_back_to_the_reference_implementation():
    for n, h, w, c, o, kernel, stride, groups in CONVOLUTIONS:
        for rounded_out in (False, True):
            shape = operators.ConvShape(n, h, w, c, max(o, 16), kernel, stride, groups, True, False, True, rounded_out)
            assert not operators.is_slow(shape), shape


@pytest.fixture(scope="module")
def r50(seeded):
    return FastNetwork(seeded("r50"), ModelConfig(), dtype="bfloat16")


def test_stages_are_the_released_ones_but_for_rounding(r50, golden):
    reference = np.load(golden / "r50" / "infer_b_267x400.npz")
    boxes = reference["det/boxes_net"]
    rois = np.concatenate([np.zeros((len(boxes), 1), np.float32), boxes], axis=1)
    stages = r50.stages(golden_batch(golden, "b_267x400").images, rois)
    errors = {name: stage_error(stages[name], name, reference, rel=0.02) for name in stages if f"{name}/sample" in reference}
    assert len(errors) == len(stages) >= 45
    assert 1e-3 < min(errors.values()) and max(errors.values()) < 0.04, errors


def test_larger_backbones(seeded):
    for backbone in ("r101", "x101"):
        config = ModelConfig()
        config.backbone.name = backbone
        images = noise_batch((64, 96)).images
        maps = [
            FastNetwork(seeded(backbone), config, dtype=dtype).stages(images, np.float32([[0, 5, 5, 60, 50]]))
            for dtype in ("float32", "bfloat16")
        ]
        for name in ("C5", "RP3", "mask_logits"):
            assert 1e-3 < relative(maps[1][name], maps[0][name]) < 0.04, (backbone, name)


def test_batches_sizes_and_no_detection(r50, monkeypatch):
    found = r50.detect(noise_batch((64, 96), (50, 33), (96, 40)))
    assert len(found) == 3 and all(np.isfinite(f.boxes).all() and len(f) for f in found)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    monkeypatch.setattr(network, "decode", lambda *answers: [nothing])
    (found,) = r50.detect(noise_batch((32, 64)))
    assert len(found) == 0 and found.mask_probabilities.shape == (0, 32, 32)


def test_an_older_processor_multiplies_the_rounded_numbers_in_float32(seeded, r50, tmp_path):
    """What `test.precision` refuses, but the engine itself can do: oneDNN has nothing for bfloat16 below AVX-512."""
    batch = noise_batch((64, 96))
    np.savez(tmp_path / "weights.npz", **seeded("r50"))
    np.save(tmp_path / "images.npy", batch.images)
    program = LIMITED.replace('winograd=sys.argv[4] == "True"', "dtype=sys.argv[4]")
    arguments = [str(tmp_path / name) for name in ("weights.npz", "images.npy", "found.npz")]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", program, *arguments, "bfloat16"], env=environment, check=True)
    found, wanted = np.load(tmp_path / "found.npz"), r50.detect(batch)[0]
    assert abs(len(found["boxes"]) - len(wanted)) <= 2
    np.testing.assert_allclose(np.sort(found["scores"])[-20:], np.sort(wanted.scores)[-20:], atol=0.01)


@pytest.fixture
def any_processor(monkeypatch):
    """`test.precision=bfloat16` runs here, whatever the processor has: the numbers are the same."""
    monkeypatch.setattr(precision, "bfloat16_obstacle", lambda: None)


def test_photographs_are_found_as_in_float32(shared, any_processor):
    weights = shared / "weights" / "small_cpu_half.safetensors"
    if not weights.exists():
        pytest.skip(f"needs the trained weights {weights}")
    file = interchange.read(weights)
    exact, half = (build(file, config_of(file, None, [f"test.precision={kind}"])) for kind in ("float32", "bfloat16"))
    compared = 0
    for path in sorted((shared / "data" / "ecssd" / "imgs").glob("*.jpg"))[:6]:
        ours, theirs = half.predict(path), exact.predict(path).above(0.25)
        for box, score, mask in zip(theirs.boxes, theirs.scores, theirs.masks):
            k = np.abs(ours.boxes - box).max(axis=1).argmin()
            assert 0 < np.abs(ours.boxes[k] - box).max() < 2 and abs(ours.scores[k] - score) < 0.01
            assert (ours.masks[k] & mask).sum() > 0.97 * (ours.masks[k] | mask).sum()
            compared += 1
    assert compared >= 4


def test_precisions_that_cannot_be_had_are_refused(monkeypatch):
    with pytest.raises(UserError, match="precision: bfloat16 has no effect with engine: plain"):
        load_config(None, ["test.precision=bfloat16", "test.engine=plain"])
    with pytest.raises(UserError, match="'auto', 'float32' or 'bfloat16'"):
        load_config(None, ["test.precision=half"])
    for_test = {engine: load_config(None, ["test.precision=bfloat16", f"test.engine={engine}"]) for engine in ("auto", "fast")}

    def refused(config, words):
        with pytest.raises(UserError, match=words):
            refuse_unfit_engine(config)

    for config in for_test.values():
        monkeypatch.setattr(precision, "bfloat16_instructions", lambda home: None)
        refused(config, r"test.precision=bfloat16 .*neither AMX nor AVX512_BF16\); use --set test.precision=float32")
        monkeypatch.setattr(precision, "onednn_home", lambda: None)
        refused(config, "test.precision=bfloat16 .*oneDNN is not installed")
        monkeypatch.undo()
    refuse_unfit_engine(Config())
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda home: "AMX")
    for config in for_test.values():
        refuse_unfit_engine(config)
    own = load_config(None, ["test.precision=bfloat16", "model.mask.head=single_level"])
    with pytest.raises(UserError, match="test.precision=bfloat16 needs the fast engine .*model.mask.head: single_level"):
        for_prediction(RDPNet(own.model), own)


def test_a_run_says_what_the_processor_lacks_in_one_line(tmp_path):
    command = ["train", "--out", str(tmp_path / "o"), "--device", "cpu", "--set", "test.precision=bfloat16"]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    done = subprocess.run([sys.executable, "-m", "jrdp", *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "o").exists()
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and "test.precision=bfloat16 cannot be used here (this processor has neither" in lines[0], done.stderr


@pytest.mark.gpu
def test_on_a_gpu_it_is_refused():
    config = load_config(None, ["test.precision=bfloat16"])
    jt.flags.use_cuda = 1
    try:
        with pytest.raises(UserError, match="it is for a CPU, and this run is on a GPU"):
            refuse_unfit_engine(config)
    finally:
        jt.flags.use_cuda = 0
