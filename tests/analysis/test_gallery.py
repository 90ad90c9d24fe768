"""The gallery: which pictures it shows in which order, what it says of them, and what it draws where."""

import numpy as np
import pytest
from PIL import Image

from jrdp import visualize
from jrdp.analysis.gallery import VERDICT_COLORS, make_gallery
from jrdp.analysis.errors import BACKGROUND, DUPLICATE, HIT, IGNORED, LOCALISATION
from jrdp.analysis.runs import analyze_runs
from jrdp.data.rle import encode_mask

GREEN, YELLOW, BLUE, RED = (VERDICT_COLORS[kind] for kind in (HIT, LOCALISATION, DUPLICATE, BACKGROUND))


@pytest.fixture
def pixels(monkeypatch):
    """Panels with the pixels themselves in place of a JPEG of them."""
    monkeypatch.setattr(visualize, "encode_jpeg", lambda picture: picture)


def truth_of(boxes, height=100, width=200):
    """`boxes`: image id -> its boxes."""
    images = [{"id": k, "file_name": f"{k}.png", "height": height, "width": width} for k in boxes]
    annotations = [{"image_id": k, "bbox": box} for k, all_of_it in boxes.items() for box in all_of_it]
    return {"images": images, "annotations": annotations}


def result(image_id, box, score=0.9):
    return {"image_id": image_id, "bbox": box, "score": score}


def names(part):
    return [name for name, _ in part.rows]


SQUARE = [10, 10, 40, 40]
# A box as high as the square and w wide has an IoU of w / 40 with it. AP: how many of 0.5, 0.55 ... 0.95 that reaches, in tenths.
TRUTH = truth_of({**{k: [SQUARE] for k in (1, 2, 3, 4, 5, 6, 8, 9)}, 7: [], 10: [SQUARE, [110, 10, 40, 40]]})
FIRST = [
    result(1, SQUARE),  # 1.0
    result(1, [150, 60, 20, 20], 0.1),
    result(2, [10, 10, 36, 40]),  # 0.9
    result(3, [10, 10, 30, 40]),  # 0.6
    result(4, [10, 10, 22, 40]),  # 0.2, the square covered by 0.55
    result(5, [10, 10, 23, 40]),  # 0.2, by 0.575
    result(6, [10, 10, 12, 40], 0.2),  # 0, by 0.3
    result(10, [10, 10, 16, 40], 0.2),  # 0, by 0.4 and 0
]
RANKED = ["1.png", "2.png", "3.png", "5.png", "4.png", "6.png", "10.png", "8.png", "9.png"]


def test_order():
    truth, analyses = analyze_runs(TRUTH, {"ours": FIRST}, "bbox")
    best, median, worst = make_gallery(truth, analyses, None, 2)
    assert [part.title for part in (best, median, worst)] == ["Best", "Median", "Worst"]
    assert names(best) == RANKED[:2] and names(median) == ["5.png", "4.png"] and names(worst) == ["9.png", "8.png"]
    everything = make_gallery(truth, analyses, None, 20)
    assert [names(part) for part in everything] == [RANKED, RANKED, RANKED[::-1]]


def test_where_systems_differ_most():
    second = [result(1, [10, 10, 22, 40]), result(3, [10, 10, 36, 40]), result(6, SQUARE), *FIRST[2:3], *FIRST[4:6]]
    truth, analyses = analyze_runs(TRUTH, {"ours": FIRST, "theirs": second, "again": FIRST}, "bbox")
    parts = make_gallery(truth, analyses, None, 4)
    assert [part.title for part in parts] == ["Best", "Median", "Worst", "Where the systems differ most"]
    assert names(parts[3]) == ["6.png", "1.png", "3.png", "2.png"]  # by 1.0, 0.8, 0.3; of those that do not the first
    assert names(parts[0]) == RANKED[:4]  # by the first system alone


def test_what_is_said_of_a_picture():
    truth, analyses = analyze_runs(TRUTH, {"ours": FIRST, "none": []}, "bbox")
    parts = make_gallery(truth, analyses, None, 9)
    assert len(parts) == 4
    said = {name: [(p.title, p.note) for p in panels] for name, panels in parts[0].rows}
    # Cut at 0.9 five of five are right (at an IoU of 0.5), below it none.
    assert said["2.png"] == [("Ground truth", "1 instance"), ("ours", "AP 90.0"), ("none", "AP 0.0")]
    assert said["1.png"][1:] == [("ours", "AP 100.0 (1 below 0.90)"), ("none", "AP 0.0")]
    assert said["10.png"] == [("Ground truth", "2 instances"), ("ours", "AP 0.0 (1 below 0.90)"), ("none", "AP 0.0")]


def drawn(truth, results, iou_type, images_dir=None):
    checked, analyses = analyze_runs(truth, results, iou_type)
    return {panel.title: panel.jpeg for panel in make_gallery(checked, analyses, images_dir, 1)[0].rows[0][1]}


def grey(height, width):
    return np.full((height, width, 3), 205, np.uint8)


def framed(picture, corners, palette, scores=None):
    none = np.zeros((len(corners), *picture.shape[:2]), bool)
    return visualize.overlay(picture, none, np.array(corners, float), scores, palette=np.array(palette))


ON_EACH = [(HIT, [10, 10, 40, 40], 0.9), (DUPLICATE, [10, 12, 40, 40], 0.8), (LOCALISATION, [110, 10, 70, 20], 0.7),
           (BACKGROUND, [60, 70, 20, 25], 0.6), (HIT, [100, 50, 50, 40], 0.5), (HIT, [155, 55, 30, 40], 0.4)]  # fmt: skip


@pytest.mark.parametrize("scale, systems, height", [(1, 1, 100), (4, 1, 320), (4, 2, 220)])
def test_boxes(pixels, scale, systems, height):
    def large(box):
        return [scale * number for number in box]

    there = [[10, 10, 40, 40], [110, 10, 30, 20], [100, 50, 50, 40], [155, 55, 30, 40]]
    truth = truth_of({1: [large(box) for box in there]}, 100 * scale, 200 * scale)
    found = [result(1, large(box), score) for _, box, score in ON_EACH]
    panels = drawn(truth, {f"run {k}": found for k in range(systems)}, "bbox")
    assert list(panels) == ["Ground truth", *[f"run {k}" for k in range(systems)]]
    empty = grey(height, 2 * height)

    def corners(box):  # of the first pixel and of the last
        x, y, w, h = large(box)
        return [number * height / (100 * scale) for number in (x, y, x + w - 1, y + h - 1)]

    expected = framed(empty, [corners(box) for box in there], visualize.colors(4))
    np.testing.assert_array_equal(panels["Ground truth"], expected)
    colors = [VERDICT_COLORS[kind] for kind, _, _ in ON_EACH]
    expected = framed(empty, [corners(box) for _, box, _ in ON_EACH], colors, [score for _, _, score in ON_EACH])
    np.testing.assert_array_equal(panels["run 0"], expected)
    assert {GREEN, YELLOW, BLUE, RED} <= {tuple(color) for color in expected.reshape(-1, 3).tolist()}
    assert len(set(VERDICT_COLORS.values())) == 5 and IGNORED in VERDICT_COLORS


def test_masks(pixels):
    height, width = 1280, 640
    masks = np.zeros((2, height, width), bool)
    masks[0, 101:401, 41:302] = True
    masks[0, 101:401, 402:500] = True
    masks[1, 601:900, 50:200] = True
    masks[1, 601:900, 301:303] = True  # half of a pixel of the small picture, which is not more than half
    truth = truth_of({1: []}, height, width)
    encoded = list(map(encode_mask, masks))
    truth["annotations"] = [{"image_id": 1, "segmentation": rle} for rle in encoded]
    found = [{"image_id": 1, "segmentation": rle, "score": score} for rle, score in zip(encoded, (0.75, 0.5))]
    panels = drawn(truth, {"ours": found}, "segm")
    small = masks.reshape(2, height // 4, 4, width // 4, 4).mean(axis=(2, 4)) > 0.5
    assert small[0].any() and not small[1, :, 75].any()
    empty = grey(320, 160)
    np.testing.assert_array_equal(panels["Ground truth"], visualize.overlay(empty, small, palette=visualize.colors(2)))
    expected = visualize.overlay(empty, small, scores=[0.75, 0.5], palette=np.array([GREEN, GREEN]))
    np.testing.assert_array_equal(panels["ours"], expected)


def test_photograph(pixels, tmp_path):
    photo = np.random.default_rng(0).integers(0, 255, (100, 200, 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "1.png")
    panels = drawn(truth_of({1: [SQUARE]}), {"ours": [result(1, SQUARE)]}, "bbox", tmp_path)
    assert list(panels) == ["Photograph", "Ground truth", "ours"]
    np.testing.assert_array_equal(panels["Photograph"], photo)
    np.testing.assert_array_equal(panels["ours"], framed(photo, [[10, 10, 49, 49]], [GREEN], [0.9]))


def test_no_detection_to_draw(pixels):
    panels = drawn(truth_of({1: [SQUARE]}), {"ours": []}, "bbox")
    np.testing.assert_array_equal(panels["ours"], grey(100, 200))
