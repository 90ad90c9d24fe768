"""Prediction on a GPU beside the CPU's: photographs with trained weights, batches, and the smallest inputs."""

import json

import numpy as np
import pytest
from test_rdpnet_gpu import on

import jrdp
from jrdp.data.transforms import read_image
from jrdp.models.fcos_decode import Detections
from jrdp.structures import ImageBatch

pytestmark = pytest.mark.gpu

BOX, SCORE, MASK_IOU = 0.1, 1e-3, 0.99  # photograph pixels; absolute; of the pasted masks
SURE = 0.1  # below this score, rounding decides what is among the best


@pytest.fixture(scope="module")
def models(shared) -> dict:
    """The same trained network on each device, for small pictures."""
    weights = shared / "weights" / "small_cpu_half.safetensors"
    if not weights.is_file():
        pytest.skip(f"needs trained weights, {weights}")
    small = ["input.min_size=128", "input.max_size=192", "test.engine=plain"]
    loaded = {}
    for device in ("cuda", "cpu"):
        with on(device):
            loaded[device] = jrdp.load(weights, device=device, overrides=small)
    return loaded


@pytest.fixture(scope="module")
def photographs(shared) -> list:
    """Four held-back photographs, each of another size."""
    folder = shared / "data" / "ecssd"
    by_size = {}
    for image in json.loads((folder / "val.json").read_text())["images"]:
        by_size.setdefault((image["width"], image["height"]), image["file_name"])
    assert len(by_size) >= 4
    return [np.asarray(read_image(folder / "imgs" / name)) for name in list(by_size.values())[:4]]


def predicted(models, device: str, pictures: list) -> list:
    """With their masks, which are pasted on that device too."""
    with on(device):
        predictions = models[device].predict_batch(pictures)
        for prediction in predictions:
            assert prediction.masks.shape == (len(prediction.scores), *prediction.photo.shape[:2])
        return predictions


def assert_same(found, expected) -> None:
    """Each instance that one side is sure of, the other one has too: box, score and mask."""
    assert (expected.scores > SURE).any(), "a picture without an instance shows nothing"
    for one, other in ((found, expected), (expected, found)):
        for box, score, mask in zip(one.boxes, one.scores, one.masks):
            if score <= SURE:
                continue
            near = np.abs(other.boxes - box).max(axis=1) <= BOX
            near &= np.abs(other.scores - score) <= SCORE
            assert near.any(), (box, score)
            both = other.masks[near]
            iou = (both & mask).sum(axis=(1, 2)) / np.maximum((both | mask).sum(axis=(1, 2)), 1)
            assert iou.max() >= MASK_IOU or not mask.any(), (box, score, iou)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_photographs_in_a_batch_are_predicted_as_on_the_cpu(models, photographs, count):
    pictures = photographs[:count]
    on_gpu, on_cpu = (predicted(models, device, pictures) for device in ("cuda", "cpu"))
    for found, expected in zip(on_gpu, on_cpu):
        assert_same(found, expected)
    if count == 2:
        with pytest.raises(AssertionError):
            assert_same(on_gpu[0], on_cpu[1])


def test_a_picture_of_one_pixel(models):
    """The network sees 128x128: P7 has a single location."""
    pixel = np.full((1, 1, 3), 200, np.uint8)
    found, expected = (predicted(models, device, [pixel])[0] for device in ("cuda", "cpu"))
    assert len(found.scores) == len(expected.scores) > 0
    np.testing.assert_allclose(np.sort(found.scores), np.sort(expected.scores), atol=SCORE)


@pytest.mark.parametrize("images", [1, 3])
def test_maps_of_one_location(models, images):
    """32x32: C5, P5, P6 and P7 are a single location each."""
    random = np.random.default_rng(images)
    pixels = (60 * random.standard_normal((images, 3, 32, 32))).astype(np.float32)
    batch = ImageBatch(pixels, [(32, 32)] * images, [(32, 32)] * images, list(range(images)))
    results = []
    for device in ("cuda", "cpu"):
        with on(device):
            results.append(models[device].network.detect(batch))
    for found, expected in zip(*results):
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.scores, expected.scores, atol=SCORE)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=BOX)
        np.testing.assert_allclose(found.mask_probabilities, expected.mask_probabilities, atol=SCORE)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_images_without_a_detection(models, monkeypatch, counts):
    network = models["cuda"].network
    batch = ImageBatch(np.zeros((2, 3, 64, 96), np.float32), [(64, 96)] * 2, [(64, 96)] * 2, [0, 1])
    box = np.array([[10, 20, 60, 60]], np.float32)
    found = [Detections(box.repeat(n, axis=0), np.full(n, 0.5, np.float32)) for n in counts]
    monkeypatch.setattr(network, "_detections", lambda output, batch: found)
    with on("cuda"):
        instances = network.detect(batch)
    assert [each.mask_probabilities.shape for each in instances] == [(n, 32, 32) for n in counts]
    assert all(np.isfinite(each.mask_probabilities).all() for each in instances)
