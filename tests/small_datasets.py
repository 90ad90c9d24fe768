"""A small dataset on disk, written by each test that wants to break it."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

SQUARE = [4, 4, 24, 4, 24, 24, 4, 24]


def annotation(id, image_id, segmentation=None, **changes):
    entry = {
        "id": id,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": 400,
        "bbox": [4, 4, 21, 21],
        "segmentation": [SQUARE] if segmentation is None else segmentation,
    }
    entry.update(changes)
    return {key: value for key, value in entry.items() if value is not ...}


def write_clip(path, frames):
    """A video of 64 x 96 pixels and 10 frames a second: a disc that moves over noise."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (96, 64))
    random = np.random.default_rng(0)
    for number in range(frames):
        frame = random.integers(0, 60, (64, 96, 3), dtype=np.uint8)
        cv2.circle(frame, (20 + 10 * number, 32), 14, (0, 200, 255), -1)
        writer.write(frame)
    writer.release()


class TinySet:
    """Pictures of these (width, height), ids 10, 20, ..., each with one square; `data` is the json to be changed."""

    def __init__(self, folder, sizes):
        self.images, self.json = folder / "imgs", folder / "set.json"
        self.images.mkdir()
        random = np.random.default_rng(0)
        images = []
        for number, (width, height) in enumerate(sizes, start=1):
            name = f"p{number}.png"
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / name)
            images.append({"id": 10 * number, "file_name": name, "width": width, "height": height})
        self.data = {
            "images": images,
            "annotations": [annotation(number, image["id"]) for number, image in enumerate(images, start=1)],
            "categories": [{"id": 1, "name": "salient"}],
        }

    def write(self):
        self.json.write_text(json.dumps(self.data))
        return self.images, self.json


@pytest.fixture
def tiny_set(tmp_path):
    return TinySet(tmp_path, [(60, 40), (40, 60), (50, 50)])


@pytest.fixture
def make_annotation():
    return annotation
