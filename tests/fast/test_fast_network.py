"""The engine against the released network's numbers and against the plain network."""

import gc
import os
import pathlib
import re
import resource
import subprocess
import sys

import jittor as jt
import numpy as np
import pytest

from jrdp.config import Config, ModelConfig, load_config
from jrdp.data.transforms import PreparedImage, batch_images, prepare_image, read_image
from jrdp.errors import UserError
from jrdp.fast import FastNetwork, supports
from jrdp.fast import network as fast_network
from jrdp.models.fcos_decode import Detections
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import assign_state, named_tensors
from jrdp.ops import paste_masks
from jrdp.structures import Targets

PICTURES = ("a_480x320", "b_267x400", "c_500x333", "d_320x480")


def stage_error(values, name, reference, rel=1e-4):
    """Relative L2 of the stored samples of a stage; its shape and, within `rel`, its norm must agree too."""
    assert list(values.shape) == list(reference[f"{name}/shape"]), name
    norm = float(np.sqrt((values.astype(np.float64) ** 2).sum()))
    assert norm == pytest.approx(float(reference[f"{name}/stats"][2]), rel=rel, abs=1e-6), name
    sample = reference[f"{name}/sample"].astype(np.float64)
    index = np.arange(len(sample)) * values.size // len(sample)
    return float(np.linalg.norm(values.ravel()[index] - sample) / max(np.linalg.norm(sample), 1e-12))


def golden_batch(golden, picture):
    image = read_image(golden / "imgs" / f"{picture}.png")
    return batch_images([prepare_image(image, Config().input)])


def noise_batch(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    images = [(60 * rng.standard_normal((3, h, w))).astype(np.float32) for h, w in sizes]
    return batch_images([PreparedImage(image, image.shape[1:]) for image in images])


def assert_same(found, wanted):
    """Two lists of Instances within the declared tolerances."""
    for ours, theirs in zip(found, wanted):
        assert len(ours) == len(theirs) and ours.size == theirs.size
        assert ours.mask_probabilities.shape == theirs.mask_probabilities.shape
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.01)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        np.testing.assert_allclose(ours.mask_probabilities, theirs.mask_probabilities, atol=1e-3)


@pytest.fixture(scope="module")
def r50(seeded):
    return FastNetwork(seeded("r50"), ModelConfig())


def plain_and_fast(model_config, seed=3):
    """A plain network with random weights that give it detections, and the engine with the same tensors."""
    np.random.seed(seed)
    plain = RDPNet(model_config)
    tensors = {name: np.array(value.numpy()) for name, value in named_tensors(plain).items()}
    rng = np.random.default_rng(seed)
    for name, value in tensors.items():
        if "running_var" in name:
            value[...] = rng.uniform(0.7, 1.4, value.shape)
        elif "running_mean" in name or ".bn" in name or "downsample.1" in name:
            value += 0.1 * rng.standard_normal(value.shape).astype(np.float32)
    tensors["backbone.body.stem.conv1.weight"] *= 0.02
    for name in list(tensors):
        if name.endswith("conv3.weight"):
            tensors[name] *= 0.3  # residual branches small, so that activations stay of order one
    tensors["rpn.head.cls_logits.bias"][...] = -2.5
    tensors["rpn.head.cls_logits.weight"] *= 20
    tensors["rpn.head.bbox_pred.bias"][...] = 3.0
    assign_state(plain, tensors)
    return plain, FastNetwork(tensors, model_config)


@pytest.mark.parametrize("picture", PICTURES)
def test_stages_and_detections_are_the_released_ones(r50, golden, picture):
    reference = np.load(golden / "r50" / f"infer_{picture}.npz")
    batch = golden_batch(golden, picture)
    boxes = reference["det/boxes_net"]
    stages = r50.stages(batch.images, np.concatenate([np.zeros((len(boxes), 1), np.float32), boxes], axis=1))
    checked = [name for name in stages if f"{name}/sample" in reference]
    errors = {name: stage_error(stages[name], name, reference) for name in checked}
    assert len(errors) == len(stages) >= 45
    assert max(errors.values()) < 1e-4, sorted(errors.items(), key=lambda item: -item[1])[:5]

    found = r50.detect(batch)[0]
    np.testing.assert_allclose(found.boxes, boxes, atol=0.01)
    np.testing.assert_allclose(found.scores, reference["det/scores"], atol=1e-4)
    assert stage_error(found.mask_probabilities[:, None], "det/mask_prob", reference) < 1e-4
    masks = paste_masks(found.mask_probabilities, found.boxes, *found.size)
    assert masks.any()


@pytest.mark.parametrize("backbone", ["r101", "x101"])
def test_larger_backbones_equal_the_plain_network(seeded, backbone):
    config = ModelConfig()
    config.backbone.name = backbone
    tensors = {**seeded(backbone), "rpn.head.cls_logits.bias": np.zeros(1, np.float32)}
    plain = RDPNet(config)
    assign_state(plain, tensors)
    batch = noise_batch((64, 96))
    wanted = plain.detect(batch)
    assert sum(len(instances) for instances in wanted) > 5
    assert_same(FastNetwork(tensors, config).detect(batch), wanted)


VARIANTS = [("none", "p3-p7"), ("progressive", "p3-p7"), ("dense", "p3-p5"), ("regularized", "p3-p5")]


@pytest.mark.parametrize("enhancement, levels", VARIANTS)
def test_pyramid_variants_equal_the_plain_network(enhancement, levels):
    config = ModelConfig()
    config.pyramid.enhancement, config.pyramid.levels = enhancement, levels
    plain, fast = plain_and_fast(config)
    batch = noise_batch((64, 64))
    assert_same(fast.detect(batch), plain.detect(batch))


def test_other_widths_and_strides_equal_the_plain_network():
    config = ModelConfig()
    config.backbone.stride_in_1x1 = False
    config.pyramid.fusion = "3x3"
    config.fcos.channels = 256
    plain, fast = plain_and_fast(config)
    batch = noise_batch((32, 96))
    assert_same(fast.detect(batch), plain.detect(batch))


def test_a_batch_of_different_sizes_equals_the_plain_network(seeded, r50):
    plain = RDPNet(ModelConfig())
    assign_state(plain, seeded("r50"))
    batch = noise_batch((64, 96), (50, 33), (96, 40))
    wanted = plain.detect(batch)
    found = r50.detect(batch)
    assert_same(found, wanted)
    changed = noise_batch((64, 96), (50, 33), (96, 40), seed=1)
    with pytest.raises(AssertionError):  # the comparison can fail
        assert_same(r50.detect(changed), wanted)


def test_attention_that_is_far_from_zero_equals_the_plain_network(seeded):
    """Weights of a training that nearly diverged: logits of the attention of some hundreds, either sign."""
    tensors = dict(seeded("r50"))
    for name in [name for name in tensors if "att_block" in name and name.endswith("weight")]:
        tensors[name] = tensors[name] * np.float32(1e4)
    plain, fast = RDPNet(ModelConfig()), FastNetwork(tensors, ModelConfig())
    assign_state(plain, tensors)
    batch = noise_batch((96, 128))
    logits = fast.stages(batch.images, np.float32([[0, 8, 8, 80, 60]]))["att_logit_P4"]
    assert logits.min() < -100 and logits.max() > 100
    assert_same(fast.detect(batch), plain.detect(batch))


@pytest.mark.parametrize("name, fault", [
    ("rpn.head.cls_logits.bias", "classification at P3"), ("rpn.head.bbox_pred.bias", "distances at P3"),
    ("rpn.head.scales.4.scale", "distances at P7"), ("rpn.head.centerness.bias", "centerness at P3"),
    ("roi_heads.mask.predictor.mask_fcn_logits.bias", "masks"),
])  # fmt: skip
def test_answers_that_are_no_numbers_are_refused(seeded, name, fault):
    """By both engines, which would leave out what follows from them; a training sees them in its losses."""
    tensors = dict(seeded("r50"))
    tensors[name] = np.full_like(tensors[name], np.nan)
    plain, batch = RDPNet(ModelConfig()), noise_batch((32, 64), (64, 32))
    assign_state(plain, tensors)
    for engine in (plain, FastNetwork(tensors, ModelConfig())):
        with pytest.raises(UserError, match=rf"^the network's answers for image 0 are not finite \({fault}\)"):
            engine.detect(batch)
    batch.files = ["a/b.png", None]
    with pytest.raises(UserError, match=rf"^the network's answers for a/b.png are not finite \({fault}\)"):
        plain.detect(batch)
    boxes = np.float32([[0, 0, 30, 30]])
    targets = [Targets(boxes, [[np.float64([0, 0, 30, 0, 30, 30])]], [None], size) for size in batch.sizes]
    assert not all(np.isfinite(loss.item()) for loss in plain.losses(batch, targets).values()) or fault == "distances at P7"


@pytest.mark.parametrize("name, fault, dtype", [
    ("rpn.head.cls_tower.3.weight", "classification at P3", "float32"),
    ("rpn.head.bbox_tower.0.weight", "distances at P3", "bfloat16"),
    ("roi_heads.mask.feature_extractor.inner_maskdecoder_1.0.weight", "masks", "float32"),
    ("roi_heads.mask.feature_extractor.conv_maskdecoder_2.0.weight", "masks", "bfloat16"),
])  # fmt: skip
def test_maps_that_overflow_are_refused(seeded, name, fault, dtype):
    """Weights of a training that diverged: finite, but a map before a norm and a ReLU is not."""
    tensors = dict(seeded("r50"))
    largest = np.abs(tensors[name]).max()
    tensors[name] = (tensors[name] / largest) * np.float32(3e38)
    plain, batch = RDPNet(ModelConfig()), noise_batch((64, 96))
    assign_state(plain, tensors)
    for engine in (plain, FastNetwork(tensors, ModelConfig(), dtype=dtype)):
        with pytest.raises(UserError, match=rf"^the network's answers for image 0 are not finite \({fault}\)"):
            engine.detect(batch)


@pytest.mark.filterwarnings("error")
def test_infinite_distances_are_refused_without_a_warning(seeded):
    tensors = dict(seeded("r50"))
    tensors["rpn.head.bbox_pred.bias"] = np.full(4, 100, np.float32)
    with pytest.raises(UserError, match=r"are not finite \(distances at P3\)"):
        FastNetwork(tensors, ModelConfig()).detect(noise_batch((32, 64)))


@pytest.mark.parametrize("name, factor", [
    ("rpn.head.cls_tower.0.weight", 1e19), ("rpn.head.bbox_tower.3.weight", 1e32),
    ("backbone.fpn.fpn_inner2.weight", 1e32), ("roi_heads.mask.feature_extractor.inner_maskdecoder_1.0.weight", 1e25),
])  # fmt: skip
def test_maps_of_large_numbers_equal_the_plain_network(seeded, name, factor):
    """Numbers whose squares no float32 holds, before a norm that makes them small again."""
    tensors = dict(seeded("r50"))
    tensors[name] = tensors[name] * np.float32(factor)
    plain, batch = RDPNet(ModelConfig()), noise_batch((64, 96))
    assign_state(plain, tensors)
    wanted = plain.detect(batch)
    assert len(wanted[0]) > 2
    assert_same(FastNetwork(tensors, ModelConfig()).detect(batch), wanted)


def test_no_detection_at_all(r50, monkeypatch):
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    monkeypatch.setattr(fast_network, "decode", lambda *answers: [nothing, nothing])
    found = r50.detect(noise_batch((32, 64), (64, 32)))
    assert [len(instances) for instances in found] == [0, 0]
    assert found[0].boxes.shape == (0, 4) and found[0].mask_probabilities.shape == (0, 32, 32)
    assert found[1].size == (64, 32)


def test_nothing_above_the_threshold_gives_the_best_location_of_each_level(seeded):
    tensors = dict(seeded("r50"))
    tensors["rpn.head.cls_logits.bias"] = np.array([-50], np.float32)
    found = FastNetwork(tensors, ModelConfig()).detect(noise_batch((64, 64)))[0]
    assert 1 <= len(found) <= 5 and found.scores.max() < 1e-10


def test_networks_do_not_share_weights(seeded):
    batch = noise_batch((32, 64))
    first = FastNetwork(seeded("r50"), ModelConfig())
    before = first.detect(batch)
    other_tensors = dict(seeded("r50"))
    for name in [name for name in other_tensors if name.endswith("conv1.weight")]:
        other_tensors[name] = other_tensors[name] * np.float32(1.01)
    other = FastNetwork(other_tensors, ModelConfig())
    wanted = other.detect(batch)
    assert_same(first.detect(batch), before)
    with pytest.raises(AssertionError):
        assert_same(wanted, before)
    del first
    gc.collect()
    again = FastNetwork(other_tensors, ModelConfig())  # may reuse the addresses of the first one's weights
    assert_same(again.detect(batch), wanted)


def test_packed_weights_are_reported_bounded_and_freed(seeded):
    tensors = seeded("r50")
    weights = sum(value.nbytes for name, value in tensors.items() if value.ndim == 4)
    jt.gc()
    before = jt.liveness_info()["lived_vars"]
    network = FastNetwork(tensors, ModelConfig())
    assert network.packed_bytes == 0
    for size in ((32, 32), (64, 96), (160, 224)):
        network.detect(noise_batch(size))
    packed = network.packed_bytes
    assert weights * 0.9 < packed < weights * 4
    network.detect(noise_batch((160, 224)))
    assert network.packed_bytes == packed
    del network
    gc.collect()
    jt.gc()
    assert jt.liveness_info()["lived_vars"] <= before + 5


def test_fifty_picture_sizes_compile_nothing_and_keep_memory_bounded(r50):
    def kernels():
        """The compiled kernels that this process has loaded."""
        return set(re.findall(r"\S+/jit/\S+\.so", pathlib.Path("/proc/self/maps").read_text()))

    def memory():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    rng = np.random.default_rng(5)
    sizes = [(32 * int(h), 32 * int(w)) for h, w in rng.integers(1, 7, (50, 2))]
    r50.detect(noise_batch((192, 192)))
    r50.detect(noise_batch((32, 32)))
    compiled = kernels()
    grown = []
    start = memory()
    for k, size in enumerate(sizes):
        r50.detect(noise_batch(*[size] * (1 + k % 2), seed=k))
        grown.append(memory() - start)
    assert kernels() <= compiled
    assert grown[-1] < 250, grown
    assert grown[-1] - grown[24] < 60, grown


def test_a_large_picture_and_a_thin_one(r50):
    for size in ((1333, 70), (32, 800), (1, 480)):
        found = r50.detect(noise_batch(size))[0]
        assert np.isfinite(found.boxes).all() and found.mask_probabilities.shape[1:] == (32, 32)
        assert found.boxes[:, 2].max() <= size[1] - 1 and found.boxes[:, 3].max() <= size[0] - 1


def test_unsupported_configurations_are_named():
    for override, key in (
        ("model.pyramid.enhancement=bifpn", "model.pyramid.enhancement"),
        ("model.pyramid.upsample=bilinear", "model.pyramid.upsample"),
        ("model.mask.head=single_level", "model.mask.head"),
    ):
        config = load_config(None, [override]).model
        assert not supports(config)
        with pytest.raises(UserError, match=key):
            FastNetwork({}, config)
    assert supports(ModelConfig())


def test_a_missing_tensor_is_named(seeded):
    tensors = dict(seeded("r50"))
    del tensors["backbone.fpn.att_block_2.weight"]
    with pytest.raises(UserError, match="att_block_2.weight"):
        FastNetwork(tensors, ModelConfig())


def test_tensors_and_layers_of_somebody_s_own_are_refused(seeded):
    """A network with a layer or pyramid of its own would get other boxes without a word."""
    tensors = dict(seeded("r50"))

    def refused(changed, words):
        with pytest.raises(UserError, match=f"{words}.*--set test.engine=plain"):
            FastNetwork({**tensors, **changed}, ModelConfig())

    refused({"backbone.fpn.own.weight": np.zeros(3, np.float32)}, r"does not know backbone.fpn.own.weight of")
    refused({"a": np.zeros(1), "b": np.zeros(1)}, "does not know a and 1 more of")
    refused({"backbone.fpn.fpn_layer2.bias": np.zeros(128, np.float32)}, "with another shape backbone.fpn.fpn_layer2.bias")
    refused({"backbone.body.layer3.6.conv1.weight": np.zeros(1, np.float32)}, "does not know backbone.body.layer3.6")
    known = {"rpn.head.scales.5.scale": np.ones(1, np.float32), "backbone.body.stem.bn1.num_batches_tracked": np.array(3)}
    FastNetwork({**tensors, **known}, ModelConfig())


def test_a_layer_of_another_class_is_found():
    from jrdp.engine.network import foreign_layer
    from jrdp.models.fpn import FPN

    class Own(FPN):
        def enhance(self, levels, stages=None):
            return [2 * level for level in levels]  # the tensors of an FPN, and another network

    plain = RDPNet(load_config(None, ["model.pyramid.enhancement=none"]).model)
    assert foreign_layer(plain) is None
    plain.backbone.fpn = Own((512, 1024, 2048))
    assert "Own" in foreign_layer(plain)


LIMITED = """
import sys
import numpy as np
import jrdp
from jrdp.config import ModelConfig
from jrdp.fast import FastNetwork
from jrdp.structures import ImageBatch
tensors = dict(np.load(sys.argv[1]))
images = np.load(sys.argv[2])
network = FastNetwork(tensors, ModelConfig(), winograd=sys.argv[4] == "True")
found = network.detect(ImageBatch(images, [images.shape[2:]], [images.shape[2:]], [0]))[0]
np.savez(sys.argv[3], boxes=found.boxes, scores=found.scores, masks=found.mask_probabilities)
"""


@pytest.mark.parametrize("isa, winograd", [("SSE41", True), ("AVX2", False)])
def test_lesser_processors_give_the_same(seeded, r50, tmp_path, isa, winograd):
    """oneDNN is told to use no instructions beyond `isa`, which also changes the layout of packed weights."""
    batch = noise_batch((64, 96))
    wanted = r50.detect(batch)[0]
    np.savez(tmp_path / "weights.npz", **seeded("r50"))
    np.save(tmp_path / "images.npy", batch.images)
    arguments = [str(tmp_path / name) for name in ("weights.npz", "images.npy", "found.npz")]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", LIMITED, *arguments, str(winograd)], env=environment, check=True)
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["boxes"], wanted.boxes, atol=0.01)
    np.testing.assert_allclose(found["scores"], wanted.scores, atol=1e-4)
    np.testing.assert_allclose(found["masks"], wanted.mask_probabilities, atol=1e-3)


def test_rois_carry_their_image():
    found = [
        fast_network.Detections(np.ones((2, 4), np.float32), np.ones(2, np.float32)),
        fast_network.Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)),
        fast_network.Detections(np.full((1, 4), 5, np.float32), np.ones(1, np.float32)),
    ]
    assert fast_network.rois_of(found).tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [2, 5, 5, 5, 5]]
