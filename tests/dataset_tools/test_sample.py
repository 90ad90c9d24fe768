"""The embedded sample set: deterministic, valid, and with masks that fit the pictures."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from jrdp.config import InputConfig
from jrdp.data.coco import CocoDataset
from jrdp.dataset_tools.sample import draw_picture, write_sample
from jrdp.data.transforms import read_image
from jrdp.errors import UserError


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample"), train=12, val=5, seed=1)


def test_layout_and_counts(sample):
    for path, count in ((sample.train, 12), (sample.val, 5)):
        data = json.loads(path.read_text())
        assert len(data["images"]) == count and count <= len(data["annotations"]) <= 3 * count
        dataset = CocoDataset(sample.images, path, InputConfig(min_size=128, max_size=192), training=True)
        assert len(dataset) == count
        for index in range(count):
            image, targets = dataset.example(index)
            assert 1 <= len(targets) <= 3 and max(image.size) <= 193
    assert str(sample.train) in str(sample)
    ids = [{image["id"] for image in json.loads(path.read_text())["images"]} for path in (sample.train, sample.val)]
    assert not ids[0] & ids[1]


def test_same_seed_same_files_and_another_seed_others(sample, tmp_path):
    again = write_sample(tmp_path / "again", train=12, val=5, seed=1)
    other = write_sample(tmp_path / "other", train=12, val=5, seed=2)
    names = sorted(path.name for path in sample.images.iterdir())
    assert len(names) == 17
    for name in names:
        assert (sample.images / name).read_bytes() == (again.images / name).read_bytes()
    assert sample.train.read_text() == again.train.read_text() != other.train.read_text()


def test_more_pictures_leave_the_first_ones_as_they_are(sample, tmp_path):
    longer = write_sample(tmp_path, train=14, val=5, seed=1)
    assert (longer.images / "train_003.png").read_bytes() == (sample.images / "train_003.png").read_bytes()


def test_masks_boxes_and_areas_are_exact(sample):
    truth = COCO(str(sample.train))
    kinds = set()
    for annotation in truth.anns.values():
        mask = truth.annToMask(annotation)
        assert mask.sum() == annotation["area"] > 300
        assert coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask))).tolist() == annotation["bbox"]
        segmentation = annotation["segmentation"]
        kinds.add(type(segmentation if isinstance(segmentation, list) else segmentation["counts"]).__name__)
        if isinstance(segmentation, dict):
            kinds.add("dict")
    assert kinds == {"list", "str", "dict"}


def test_instances_of_a_picture_do_not_overlap_and_are_saturated(sample):
    truth = COCO(str(sample.train))
    for image in truth.imgs.values():
        masks = np.array([truth.annToMask(a) for a in truth.imgToAnns[image["id"]]], bool)
        assert masks.sum(axis=0).max() == 1
        pixels = np.asarray(read_image(sample.images / image["file_name"])).astype(int)
        saturation = pixels.max(axis=2) - pixels.min(axis=2)
        inside = masks.any(axis=0)
        assert np.median(saturation[inside]) > 2 * np.median(saturation[~inside])


def test_pictures_differ_and_overlap_somewhere():
    pixels, masks = draw_picture(np.random.default_rng(3), 120, 90)
    assert pixels.shape == (90, 120, 3) and pixels.dtype == np.uint8
    assert all(mask.shape == (90, 120) and mask.dtype == bool and mask.any() for mask in masks)
    assert not np.array_equal(pixels, draw_picture(np.random.default_rng(4), 120, 90)[0])


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to the folder"):
        write_sample(tmp_path / "file")
