"""Statistics counted by hand, and the plot."""

import json

import numpy as np
import pytest
from PIL import Image

from jrdp.data.rle import encode_mask
from jrdp.dataset_tools.stats import dataset_statistics
from jrdp.errors import UserError


def _statistics(tiny):
    images, annotations = tiny.write()
    return dataset_statistics(f"{images}:{annotations}", ".")


def test_numbers_by_hand(tiny_set, make_annotation):
    mask = np.zeros((60, 40), np.uint8)
    mask[10:58, 5:35] = 1
    tiny_set.data["annotations"] = [
        make_annotation(1, 10, [[4, 4, 24, 4, 24, 14, 4, 14]], bbox=[4, 4, 20, 10]),
        make_annotation(2, 10, bbox=[4, 4, 20, 20]),
        make_annotation(3, 20, encode_mask(mask), bbox=[5, 10, 30, 48]),
        make_annotation(4, 20, iscrowd=1),
        make_annotation(5, 20, [[1, 1, 2, 2]]),
    ]
    statistics = _statistics(tiny_set)
    assert statistics.instances_per_picture.tolist() == [2, 1, 0]
    assert statistics.areas.tolist() == [200, 400, 1440]
    assert np.allclose(statistics.shares, [200 / 2400, 400 / 2400, 1440 / 2400])
    assert np.allclose(statistics.box_ratios, [2, 1, 30 / 48])
    assert np.allclose(statistics.picture_ratios, [1.5, 2 / 3, 1])
    values = statistics.as_dict()
    assert (values["pictures"], values["instances"]) == (3, 3)
    assert values["instances_per_picture"] == {"mean": 1, "histogram": {"0": 1, "1": 1, "2": 1}}
    assert values["sizes"] == {"small": 2, "medium": 1, "large": 0}
    assert values["area"]["median"] == 400 and values["area"]["max"] == 1440
    assert (values["landscape_pictures"], values["portrait_or_square_pictures"]) == (1, 2)
    json.dumps(values, allow_nan=False)
    assert "3 pictures, 3 instances" in statistics.text() and "2: 1 (33 %)" in statistics.text()


def test_a_set_without_instances(tiny_set, tmp_path):
    tiny_set.data["annotations"] = []
    statistics = _statistics(tiny_set)
    values = statistics.as_dict()
    assert values["instances"] == 0 and values["area"] is None and values["instances_per_picture"]["mean"] == 0
    statistics.text()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        statistics.plot(tmp_path / "file" / "plot.png")


def test_plot(tiny_set, tmp_path):
    path = _statistics(tiny_set).plot(tmp_path / "plot.png")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[0] > 500 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_real_data(shared):
    if not (shared / "data" / "coco_salient").is_dir():
        pytest.skip(f"needs {shared / 'data' / 'coco_salient'}")
    statistics = dataset_statistics("coco_salient/imgs:coco_salient/val.json", shared / "data")
    stored = json.loads((shared / "data" / "coco_salient" / "val.json").read_text())["annotations"]
    assert len(statistics.areas) == len(stored) == 69 and len(statistics.instances_per_picture) == 30
    assert np.allclose(statistics.areas, [entry["area"] for entry in stored], rtol=0.06)
