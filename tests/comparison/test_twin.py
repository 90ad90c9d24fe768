"""The PyTorch twin against the released network's numbers; runs where torch is installed."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

torch = pytest.importorskip("torch", reason="the PyTorch twin needs the extra [torch]")

from jrdp.comparison.twin import detect as twin_detect  # noqa: E402
from jrdp.comparison.twin import ops as twin_ops  # noqa: E402
from jrdp.comparison.twin import results as twin_results  # noqa: E402
from jrdp.comparison.twin.model import STRIDES, Twin  # noqa: E402
from jrdp.config import FcosConfig, ModelConfig  # noqa: E402
from jrdp.errors import UserError  # noqa: E402

PICTURES = ["a_480x320", "b_267x400", "c_500x333", "d_320x480"]
MEAN = np.array([102.9801, 115.9465, 122.7717], np.float32)


def network_input(path, height, width):
    """float32 [1, 3, H, W] written from the facts, on its own: PIL bilinear, BGR, minus the mean, padded to 32."""
    picture = np.asarray(Image.open(path).convert("RGB").resize((width, height), Image.BILINEAR), np.float32)
    padded = np.zeros((1, 3, -(-height // 32) * 32, -(-width // 32) * 32), np.float32)
    padded[0, :, :height, :width] = (picture[:, :, ::-1] - MEAN).transpose(2, 0, 1)
    return padded


def relative_error(stage, name, reference):
    """Relative L2 of the stored samples of a stage; its shape and norm must agree too."""
    values = stage.numpy()
    assert list(values.shape) == list(reference[f"{name}/shape"])
    norm = float(np.sqrt((values.astype(np.float64) ** 2).sum()))
    assert norm == pytest.approx(float(reference[f"{name}/stats"][2]), rel=1e-4, abs=1e-6), name
    sample = reference[f"{name}/sample"].astype(np.float64)
    n, flat = len(sample), values.reshape(-1)
    index = np.arange(n) * flat.size // n
    return float(np.linalg.norm(flat[index] - sample) / max(np.linalg.norm(sample), 1e-12))


@pytest.fixture(scope="module")
def twin(seeded):
    model = Twin(ModelConfig())
    state = {name: torch.from_numpy(value) for name, value in seeded("r50").items()}
    model.load_state_dict(state, strict=True)
    return model


@pytest.mark.parametrize("backbone", ["r50", "r101", "x101"])
def test_keys_are_the_released_ones(golden, backbone):
    table = json.loads((golden / f"keys_{backbone}.json").read_text())
    with torch.device("meta"):
        model = Twin(ModelConfig(backbone={"name": backbone}))
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    ours = [
        [name, list(value.shape), "parameter" if name in trainable else "buffer", trainable.get(name)]
        for name, value in model.state_dict().items()
    ]
    assert ours == [key[:4] for key in table["keys"]]
    assert sum(p.numel() for p in model.parameters()) == table["n_parameters"]


@pytest.mark.parametrize("picture", PICTURES)
def test_stages_and_detections(golden, twin, picture):
    reference = np.load(golden / f"r50/infer_{picture}.npz")
    height, width = (int(v) for v in reference["input/image_hw"][0])
    images = network_input(golden / f"imgs/{picture}.png", height, width)
    assert hashlib.sha256(images.tobytes()).hexdigest() == str(reference["input/sha256"])

    rois = torch.from_numpy(reference["det/boxes_net"])
    rois = torch.cat([rois.new_zeros(len(rois), 1), rois], dim=1)
    stages = twin_detect.stages(twin, torch.from_numpy(images), [(height, width)], rois)
    for name, stage in stages.items():
        assert relative_error(stage, name, reference) < 1e-4, name
    np.testing.assert_allclose(stages["mask_logits"][:4], reference["mask_logits/first4"], atol=2e-3)

    ((boxes, scores, masks),) = twin_detect.detect(twin, torch.from_numpy(images), [(height, width)])
    assert boxes.shape == reference["det/boxes_net"].shape
    assert np.abs(boxes.numpy() - reference["det/boxes_net"]).max() < 0.01
    assert np.abs(scores.numpy() - reference["det/scores"]).max() < 1e-4
    assert relative_error(masks[:, None], "det/mask_prob", reference) < 1e-4


def test_candidates_before_suppression(golden, twin):
    reference = np.load(golden / "r50/infer_b_267x400.npz")
    images = network_input(golden / "imgs/b_267x400.png", 479, 320)
    with torch.no_grad():
        trunk = twin.trunk(torch.from_numpy(images))
    maps = zip(trunk.head("cls_logits"), trunk.head("bbox_reg"), trunk.head("centerness"), STRIDES)
    for level, (cls, reg, ctr, stride) in enumerate(maps, start=3):
        ((boxes, scores),) = twin_detect.candidates(cls, reg, ctr, stride, [(479, 320)], FcosConfig())
        np.testing.assert_allclose(boxes, reference[f"prenms_P{level}/boxes"], atol=0.01)
        np.testing.assert_allclose(scores, reference[f"prenms_P{level}/scores"], atol=1e-4)


def test_nms_is_the_released_one(golden):
    ops = np.load(golden / "ops.npz")
    checked = 0
    for name in ops.files:
        if not (name.startswith("nms/") and "/keep_gt_" in name):
            continue
        trial, threshold = name.split("/keep_gt_")
        boxes, scores = torch.from_numpy(ops[f"{trial}/boxes"]), torch.from_numpy(ops[f"{trial}/scores"])
        kept = twin_detect.legacy_nms(boxes, scores, float(threshold))
        np.testing.assert_array_equal(kept, ops[name], err_msg=name)
        checked += 1
    assert checked == 84


def test_roi_align_is_the_legacy_one(golden):
    ops = np.load(golden / "ops.npz")
    differs_when_aligned = 0
    for case in range(40):
        part = {key: ops[f"roi/{case:02d}/{key}"] for key in ("x", "rois", "y", "gy", "gx", "scale_pooled_sr")}
        scale, size, ratio = part["scale_pooled_sr"]
        x = torch.from_numpy(part["x"]).requires_grad_()
        rois = torch.from_numpy(part["rois"])
        y = twin_ops.roi_align(x, rois, int(size), float(scale), int(ratio))
        y.backward(torch.from_numpy(part["gy"]))
        np.testing.assert_allclose(y.detach(), part["y"], atol=1e-4)
        np.testing.assert_allclose(x.grad, part["gx"], atol=1e-4 * max(1.0, np.abs(part["gx"]).max()))
        shifted = twin_ops.roi_align(x.detach(), rois, int(size), float(scale), int(ratio), aligned=True)
        differs_when_aligned += not np.allclose(shifted, part["y"], atol=1e-3)
    assert differs_when_aligned == 40


def sampled(x, roi, size, scale, ratio, aligned):
    """RoIAlign of one RoI by loops, in Python's own numbers: [C, size, size]."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (float(v) * scale - shift for v in roi)
    least = 0.0 if aligned else 1.0
    width, height = max(x2 - x1, least) / size, max(y2 - y1, least) / size
    out = np.zeros((x.shape[0], size, size))
    for i in range(size):
        for j in range(size):
            for a in range(ratio):
                for b in range(ratio):
                    v, u = y1 + (i + (a + 0.5) / ratio) * height, x1 + (j + (b + 0.5) / ratio) * width
                    if not (-1 <= v <= x.shape[1] and -1 <= u <= x.shape[2]):
                        continue
                    v, u = min(max(v, 0), x.shape[1] - 1), min(max(u, 0), x.shape[2] - 1)
                    top, left = int(v), int(u)
                    bottom, right = min(top + 1, x.shape[1] - 1), min(left + 1, x.shape[2] - 1)
                    p, q = v - top, u - left
                    above = (1 - q) * x[:, top, left] + q * x[:, top, right]
                    below = (1 - q) * x[:, bottom, left] + q * x[:, bottom, right]
                    out[:, i, j] += ((1 - p) * above + p * below) / ratio**2
    return out


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_of_a_batch_is_the_definition_and_its_gradient(aligned):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2, 3, 7, 9))
    corners = generator.uniform([-20, -20], [80, 60], (12, 2))
    rois = np.concatenate([corners, corners + generator.uniform(0, 40, (12, 2))], axis=1)
    images = generator.integers(0, 2, 12)  # in no order
    tensor = torch.from_numpy(x).requires_grad_()
    given = torch.from_numpy(np.insert(rois, 0, images, axis=1))
    found = twin_ops.roi_align(tensor, given, 4, 0.125, 2, aligned)
    expected = [sampled(x[image], roi, 4, 0.125, 2, aligned) for image, roi in zip(images, rois)]
    np.testing.assert_allclose(found.detach(), expected, atol=1e-12)
    assert torch.autograd.gradcheck(lambda t: twin_ops.roi_align(t, given, 4, 0.125, 2, aligned), tensor)
    assert twin_ops.roi_align(tensor, given[:0], 4, 0.125, 2).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("plus_one", [True, False])
def test_nms_is_the_greedy_loop(plus_one):
    generator = np.random.default_rng(1)
    corners = generator.uniform(0, 60, (400, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(0, 30, (400, 2))], axis=1)
    scores = np.round(generator.uniform(size=400), 2)  # with ties
    one = torch.from_numpy(boxes)
    iou = twin_ops.iou(one, one, plus_one).numpy()
    kept, removed = [], np.zeros(400, bool)
    for index in np.argsort(-scores, kind="stable"):
        if not removed[index]:
            kept.append(index)
            removed |= iou[index] > 0.5
    found = twin_ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5, plus_one)
    assert 20 < len(kept) < 380
    np.testing.assert_array_equal(found, sorted(kept))
    nothing = torch.zeros(0)
    assert len(twin_ops.nms(nothing.reshape(0, 4), nothing, 0.5)) == 0


def test_operators_equal_those_of_torchvision():
    compiled = pytest.importorskip("torchvision.ops")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 20, 30, generator=generator, dtype=torch.float64)
    corners = torch.rand(50, 2, generator=generator, dtype=torch.float64) * 200
    extent = torch.rand(50, 2, generator=generator, dtype=torch.float64) * 80
    boxes = torch.cat([corners, corners + extent], dim=1)
    rois = torch.cat([torch.arange(50)[:, None] % 2, boxes], dim=1)
    for aligned in (False, True):
        for ratio in (0, 2):
            theirs = compiled.roi_align(x, rois, 8, 0.125, ratio, aligned=aligned)
            torch.testing.assert_close(twin_ops.roi_align(x, rois, 8, 0.125, ratio, aligned), theirs)
    scores = torch.rand(50, generator=generator, dtype=torch.float64)
    theirs = compiled.nms(boxes, scores, 0.3).sort().values
    torch.testing.assert_close(twin_ops.nms(boxes, scores, 0.3, plus_one=False), theirs)


@pytest.mark.parametrize("case", ["many", "batch2", "ties"])
def test_post_processing(golden, case):
    ops = np.load(golden / "ops.npz")
    sizes = [(int(h), int(w)) for h, w in ops[f"post/{case}/image_hw"]]
    config = FcosConfig()
    levels = []
    for level, stride in enumerate(ops[f"post/{case}/strides"]):
        cls, reg, ctr = (torch.from_numpy(ops[f"post/{case}/{key}{level}"]) for key in ("cls", "reg", "ctr"))
        levels.append(twin_detect.candidates(cls, reg, ctr, int(stride), sizes, config))
    for image in range(len(sizes)):
        for level, found in enumerate(levels):
            # The released order above 1,000 candidates is unspecified: compared as sets.
            _same_set(found[image], ops, f"post/{case}/level{level}_im{image}")
        boxes, scores = twin_detect.select([found[image] for found in levels], config)
        _same_set((boxes, scores), ops, f"post/{case}/out_im{image}")


def _same_set(found, ops, name):
    ours = np.concatenate([found[0].numpy(), found[1].numpy()[:, None]], axis=1)
    theirs = np.concatenate([ops[f"{name}/boxes"], ops[f"{name}/scores"][:, None]], axis=1)
    assert ours.shape == theirs.shape, name
    ours, theirs = (a[np.lexsort(np.round(a, 4).T)] for a in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)


def test_pasted_masks_and_coco_results(golden, twin):
    reference = np.load(golden / "r50/infer_b_267x400.npz")
    images = network_input(golden / "imgs/b_267x400.png", 479, 320)
    (found,) = twin_detect.detect(twin, torch.from_numpy(images), [(479, 320)])
    boxes, masks = twin_results.coco_entries(found, (479, 320), (400, 267), image_id=2, category_id=1)
    for kind, ours in (("bbox", boxes), ("segm", masks)):
        theirs = [e for e in json.loads((golden / f"r50/{kind}.json").read_text()) if e["image_id"] == 2]
        assert len(ours) == len(theirs) == len(reference["det/scores"])
        np.testing.assert_allclose([e["score"] for e in ours], [e["score"] for e in theirs], atol=1e-4)
        if kind == "bbox":
            np.testing.assert_allclose([e["bbox"] for e in ours], [e["bbox"] for e in theirs], atol=0.01)
        else:
            pairs = [(e["segmentation"], o["segmentation"]) for e, o in zip(ours, theirs)]
            assert min(float(coco_mask.iou([a], [b], [0])[0, 0]) for a, b in pairs) >= 0.999


@pytest.mark.parametrize("size", [14, 28, 32])
def test_pasting(golden, size):
    ops = np.load(golden / "ops.npz")
    height, width = (int(v) for v in ops["paste/im_hw"])
    probabilities, boxes = torch.from_numpy(ops[f"paste/M{size}/prob"]), torch.from_numpy(ops["paste/boxes"])
    ours = twin_results.paste(probabilities, boxes, height, width)
    np.testing.assert_array_equal(ours, ops[f"paste/M{size}/mask"])


def test_twin_refuses_what_was_never_released():
    with pytest.raises(UserError, match="model.pyramid"):
        Twin(ModelConfig(pyramid={"enhancement": "dense"}))
