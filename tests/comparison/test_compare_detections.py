"""`compare_detections` on result files with planted differences."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jrdp.comparison.detections import compare_detections
from jrdp.config import Config
from jrdp.errors import UserError


def rle(x1, y1, x2, y2, height=40, width=60):
    mask = np.zeros((height, width), np.uint8)
    mask[y1:y2, x1:x2] = 1
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def result(image_id, box, score):
    return {"image_id": image_id, "category_id": 1, "score": score, "segmentation": rle(*box)}


TRUTH = {1: [(5, 5, 25, 30), (30, 10, 55, 35)], 2: [(10, 10, 40, 35)]}


@pytest.fixture
def dataset(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in TRUTH]
    annotations = []
    for image_id, boxes in TRUTH.items():
        for box in boxes:
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "segmentation": rle(*box),
                }
            )
    (tmp_path / "imgs").mkdir()
    for image in images:
        Image.new("RGB", (60, 40), (90, 120, 90)).save(tmp_path / "imgs" / image["file_name"])
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "salient"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return f"{tmp_path / 'imgs'}:{tmp_path / 'truth.json'}"


def run(tmp_path, dataset, first, second):
    for name, content in (("first.json", first), ("second.json", second)):
        (tmp_path / name).write_text(json.dumps(content))
    passed = compare_detections(
        tmp_path / "first.json",
        tmp_path / "second.json",
        dataset,
        Config(),
        tmp_path / "out",
        print_line=lambda line: None,
    )
    return passed, json.loads((tmp_path / "out/report.json").read_text())


def perfect():
    return [result(i, box, 0.9 - 0.1 * n) for i, boxes in TRUTH.items() for n, box in enumerate(boxes)]


def test_the_same_file_twice(tmp_path, dataset):
    passed, report = run(tmp_path, dataset, perfect(), list(reversed(perfect())))
    assert passed and report["failures"] == [] and report["matched"] == 3 and report["changed"] == []
    assert [m["AP"] for m in report["metrics"]] == pytest.approx([1.0, 1.0])


def test_empty_and_equal_masks_find_their_partner_by_score(tmp_path, dataset):
    extra = [result(2, (0, 0, 0, 0), score) for score in (0.1, 0.2, 0.3)] + [result(2, TRUTH[2][0], 0.4)]
    passed, report = run(tmp_path, dataset, perfect() + extra, list(reversed(extra)) + perfect())
    assert passed and report["alone"] == [0, 0] and report["matched"] == 7
    assert report["pairs"]["score difference"]["worst"] == 0


def test_planted_differences_are_found(tmp_path, dataset):
    changed = perfect()
    changed[0]["score"] -= 0.02
    changed[1]["segmentation"] = rle(30, 10, 55, 33)
    changed.append(result(2, (0, 0, 5, 5), 0.95))
    passed, report = run(tmp_path, dataset, perfect(), changed)
    assert not passed
    assert report["matched"] == 3 and report["alone"] == [0, 1]
    assert report["pairs"]["score difference"]["worst"] == pytest.approx(0.02)
    assert report["pairs"]["1 - IoU"]["worst"] == pytest.approx(2 / 25)
    assert report["metrics"][1]["AP"] < report["metrics"][0]["AP"]
    assert [row["picture"] for row in report["changed"]] == ["2.png", "1.png"]
    assert len(report["failures"]) == 4
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/jpeg") == 4


def test_one_side_without_any_detection(tmp_path, dataset):
    passed, report = run(tmp_path, dataset, perfect(), [])
    assert not passed and report["alone"] == [3, 0] and report["matched"] == 0


def test_boxes_alone_are_compared_as_boxes(tmp_path, dataset):
    boxes = [
        {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [5, 5, 20, 25]},
        {"image_id": 2, "category_id": 1, "score": 0.8, "bbox": [10, 10, 30, 25]},
    ]
    passed, report = run(tmp_path, dataset, boxes, boxes)
    assert passed and report["iou_type"] == "bbox" and report["matched"] == 2
    written = [{**box, "segmentation": empty} for box, empty in zip(boxes, ([], [[]]))]  # as some detectors write them
    moved = [{**box, "bbox": [x + 1 for x in box["bbox"]]} for box in written]
    passed, report = run(tmp_path, dataset, written, moved)
    assert not passed and report["iou_type"] == "bbox" and report["pairs"]["1 - IoU"]["worst"] > 0.05


def test_boxes_without_area_find_their_partner_by_place(tmp_path, dataset):
    flat = [
        {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [5, 5, 0, 25]},
        {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [40, 5, 0, 25]},
    ]
    passed, report = run(tmp_path, dataset, flat, flat[::-1])
    assert passed and report["matched"] == 2 and report["pairs"]["1 - IoU"]["worst"] == 0
    passed, report = run(tmp_path, dataset, flat[:1], flat[1:])
    assert not passed and report["alone"] == [1, 1]


def test_masks_against_boxes_are_refused(tmp_path, dataset):
    boxes = [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [5, 5, 20, 25]}]
    for pair in ((perfect(), boxes), (boxes, perfect()), (perfect(), perfect()[:2] + boxes)):
        with pytest.raises(UserError, match="masks cannot be compared"):
            run(tmp_path, dataset, *pair)
    assert not (tmp_path / "out").exists()


def test_a_picture_is_found_in_either_unicode_form(tmp_path, dataset):
    folder, truth = dataset.split(":")
    content = json.loads((tmp_path / "truth.json").read_text())
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    (tmp_path / "imgs/1.png").rename(tmp_path / "imgs" / decomposed)
    content["images"][0]["file_name"] = composed
    (tmp_path / "truth.json").write_text(json.dumps(content))
    changed = perfect()
    changed[0]["score"] -= 0.02
    run(tmp_path, dataset, perfect(), changed)
    assert (tmp_path / "out/report.html").read_text().count("data:image/jpeg") == 2


def test_bad_result_files_are_one_clear_line(tmp_path, dataset):
    with pytest.raises(UserError, match="image id 77"):
        run(tmp_path, dataset, [result(77, (0, 0, 5, 5), 0.5)], perfect())
    assert not (tmp_path / "out").exists()


def test_two_files_without_a_detection_are_no_comparison(tmp_path, dataset):
    with pytest.raises(UserError, match="neither .* holds a detection: there is nothing to compare"):
        run(tmp_path, dataset, [], [])
    passed, report = run(tmp_path, dataset, perfect(), [])
    assert not passed and report["alone"][1] == 0 < report["alone"][0]


def test_what_is_told_of_results_is_told_once(tmp_path, dataset, capsys):
    passed, _ = run(tmp_path, dataset, perfect() + perfect()[:1], perfect())
    assert not passed and capsys.readouterr().err.count("repeat another's picture, shape and score") == 1
