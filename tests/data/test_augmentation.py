"""Varied training pictures: off by default, within their bounds, and the same for the same seed and epoch."""

from itertools import islice

import numpy as np
import pytest
from PIL import Image

from jrdp.config import DataConfig, InputConfig
from jrdp.data.augmentation import PLAIN, Augmentation, Look, change_colours
from jrdp.data.coco import CocoDataset
from jrdp.data.loader import TrainLoader
from jrdp.data.transforms import prepare_image

INPUT = InputConfig(min_size=32, max_size=48)


def test_nothing_is_varied_by_default():
    assert Augmentation.of(DataConfig()).looks(5, seed=1, epoch=0) is None


def test_looks_depend_on_seed_and_epoch_alone_and_keep_their_bounds():
    varied = Augmentation((20, 30, 40), brightness=0.2, contrast=0.1, saturation=0.5, hue=0.25)
    looks = varied.looks(400, seed=1, epoch=3)
    assert looks == varied.looks(400, seed=1, epoch=3)
    assert looks != varied.looks(400, seed=1, epoch=4) and looks != varied.looks(400, seed=2, epoch=3)
    assert {look.min_size for look in looks} == {20, 30, 40}
    for name, middle, reach in (("brightness", 1, 0.2), ("contrast", 1, 0.1), ("saturation", 1, 0.5), ("hue", 0, 0.25)):
        values = np.array([getattr(look, name) for look in looks])
        assert abs(values - middle).max() <= reach and values.min() < middle - 0.9 * reach < middle + 0.9 * reach < values.max()
    # The numbers themselves: a training that is resumed by a later version goes on with the same pictures.
    drawn = np.random.default_rng([1, 3, 1])
    sizes, shares = drawn.integers(0, 3, 400), drawn.uniform(-1, 1, (400, 4)) * [0.2, 0.1, 0.5, 0.25]
    expected = [Look((20, 30, 40)[k], 1 + b, 1 + c, 1 + s, h) for k, (b, c, s, h) in zip(sizes, shares)]
    assert np.allclose(np.array(looks, np.float64), np.array(expected, np.float64), rtol=0, atol=1e-12)
    only_size = Augmentation((20,)).looks(3, 1, 0)
    assert only_size == [Look(min_size=20)] * 3


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_colours():
    image = picture()
    pixels = np.asarray(image).astype(int)
    assert np.array_equal(np.asarray(change_colours(image, PLAIN)), pixels)
    darker = np.asarray(change_colours(image, Look(brightness=0.5)))
    assert abs(darker - pixels / 2).max() <= 1
    brighter = np.asarray(change_colours(image, Look(brightness=2.0)))
    assert np.array_equal(brighter, np.minimum(2 * pixels, 255))
    grey = np.asarray(change_colours(image, Look(saturation=0.0))).astype(int)
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all() and grey.std() > 20
    flat = np.asarray(change_colours(image, Look(contrast=0.0)))
    assert flat.std() == 0 and abs(int(flat[0, 0, 0]) - pixels @ [0.299, 0.587, 0.114]).mean() < 80
    red = Image.fromarray(np.full((2, 2, 3), (255, 0, 0), np.uint8))
    assert np.asarray(change_colours(red, Look(hue=1 / 3)))[0, 0].tolist() == pytest.approx([0, 255, 0], abs=6)
    assert np.asarray(change_colours(red, Look(hue=-1 / 3)))[0, 0].tolist() == pytest.approx([0, 0, 255], abs=6)
    for turns in (1, -1):  # whole ones
        assert np.array_equal(change_colours(red, Look(hue=turns)), red)


def test_another_size_changes_the_limit_of_the_long_side_too():
    image = Image.new("RGB", (100, 40))
    assert prepare_image(image, INPUT).size == (19, 47)  # the long side's limit of 48 decides
    assert prepare_image(image, INPUT, look=Look(min_size=64)).size == (38, 95)
    assert prepare_image(image, INPUT, look=PLAIN).size == (19, 47)


def test_batches_are_varied_and_their_targets_follow(tiny_set):
    dataset = CocoDataset(*tiny_set.write(), INPUT, training=True)
    varied = Augmentation((32, 64), brightness=0.5)

    def first(augmentation, **options):
        with TrainLoader(dataset, 2, seed=1, flip_probability=0.0, augmentation=augmentation, **options) as loader:
            return list(islice(loader, 6))

    plain, seen, resumed = first(Augmentation()), first(varied), first(varied, start_iteration=2)
    assert [batch.image_ids for _, batch, _ in plain] == [batch.image_ids for _, batch, _ in seen], "the order has changed"
    heights = {min(size) for _, batch, _ in seen for size in batch.sizes}
    assert heights == {32, 64} and {min(size) for _, batch, _ in plain for size in batch.sizes} == {32}
    for _, batch, targets in seen:
        for size, original, target in zip(batch.sizes, batch.original_sizes, targets):
            assert target.size == size
            assert target.boxes[0, 2] == pytest.approx(24 * size[1] / original[1])  # the square ends at pixel 24
    for (_, one, _), (_, other, _) in zip(seen[2:], resumed):
        assert np.array_equal(one.images, other.images)
