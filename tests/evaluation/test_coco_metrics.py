"""Metrics against the released evaluation, against pycocotools' own path, and against plain loops."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jrdp.data.rle import encode_mask
from jrdp.errors import UserError
from jrdp.evaluation.coco_metrics import (
    METRIC_NAMES,
    evaluate,
    evaluate_with_curves,
    format_metrics,
    format_percent,
    write_metrics,
)
from jrdp.evaluation.curves import write_pr_curves
from jrdp.evaluation.ground_truth import GroundTruth, load_ground_truth
from jrdp.evaluation.results import box_results, check_results, mask_results, write_results

IOU_TYPES = ("bbox", "segm")


def make_dataset(seed=0, pictures=12, size=(200, 260)):
    """Rectangular instances of all sizes, boxes and masks agreeing; ids unsorted and not contiguous."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for position in range(pictures):
        image_id = 1000 - 7 * position
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": size[0], "width": size[1]})
        for _ in range(position % 4):
            w, h = (int(v) for v in rng.integers(8, 130, 2))
            x, y = int(rng.integers(0, size[1] - w)), int(rng.integers(0, size[0] - h))
            annotations.append({**rectangle(image_id, x, y, w, h, size), "id": 50 + len(annotations), "iscrowd": 0})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "salient"}]}


def rectangle(image_id, x, y, w, h, size):
    mask = np.zeros(size, bool)
    mask[max(y, 0) : y + h, max(x, 0) : x + w] = True
    return {
        "image_id": image_id,
        "category_id": 1,
        "bbox": [x, y, w, h],
        "area": float(mask.sum()),
        "segmentation": encode_mask(mask),
    }


def make_results(dataset, seed=1, shift=6, size=(200, 260)):
    """Every instance found once or twice, shifted and resized; some missed; some on the background."""
    rng = np.random.default_rng(seed)
    results = []
    for annotation in dataset["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            x, y, w, h = (int(v + d) for v, d in zip(annotation["bbox"], rng.integers(-shift, shift + 1, 4)))
            results.append(rectangle(annotation["image_id"], x, y, max(w, 2), max(h, 2), size))
    for image in dataset["images"]:
        for _ in range(int(rng.integers(0, 4))):
            x, y, w, h = (int(v) for v in rng.integers(2, 100, 4))
            results.append(rectangle(image["id"], x, y, w, h, size))
    for result in results:
        result["score"] = round(float(rng.random()), 1)  # ties are wanted
        del result["area"]
    return results


def only(results, iou_type):
    other = {"bbox": "segmentation", "segm": "bbox"}[iou_type]
    return [{key: value for key, value in result.items() if key != other} for result in results]


def pycocotools_says(dataset, results, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(dataset)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(only(results, iou_type))), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
    precision = evaluation.eval["precision"]
    return {**dict(zip(names, stats)), "AP70": precision[4, :, :, 0, -1].mean()}, precision[:, :, 0, 0, -1]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_the_released_evaluation(golden, iou_type):
    expected = np.load(golden / "r50" / "eval_curves.npz")
    evaluation = evaluate_with_curves(golden / "annotations.json", golden / "r50" / f"{iou_type}.json", iou_type)
    precision = expected[f"{iou_type}/precision_TxR_all_max100"]
    np.testing.assert_allclose(evaluation.curves.precision, precision, atol=1e-12)
    np.testing.assert_allclose(evaluation.curves.scores, expected[f"{iou_type}/scores_TxR"], atol=1e-7)
    np.testing.assert_allclose(evaluation.curves.max_recall, expected[f"{iou_type}/recall_T"], atol=1e-12)
    assert evaluation.metrics["images"] == 4 and evaluation.metrics["instances"] == 7
    assert evaluation.metrics["AP_small"] == -1  # no small instance there


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_pycocotools(iou_type, seed):
    dataset = make_dataset(seed)
    results = make_results(dataset, seed + 10)
    expected, precision = pycocotools_says(dataset, results, iou_type)
    evaluation = evaluate_with_curves(dataset, only(results, iou_type), iou_type)
    for name in METRIC_NAMES:
        assert evaluation.metrics[name] == pytest.approx(expected[name], abs=1e-12), name
    np.testing.assert_array_equal(evaluation.curves.precision, precision)
    assert 0.05 < evaluation.metrics["AP"] < 0.95
    assert evaluation.curves.mean().mean() == pytest.approx(evaluation.metrics["AP"])
    assert evaluation.curves.at(0.9).mean() == precision[8].mean()
    # A box beside a mask changes nothing, nor does it matter whether the ground truth is a COCO.
    assert evaluate(dataset, results, iou_type) == evaluation.metrics
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(dataset)
        coco.createIndex()
    assert evaluate(coco, results, iou_type) == evaluation.metrics
    assert coco.dataset == dataset  # nothing of the caller's is changed


def plain_ap(dataset, results, threshold):
    """AP of boxes by the definition, in plain loops: greedy by score, then 101 recall points."""
    flagged = []
    for image in sorted(image["id"] for image in dataset["images"]):
        truths = [a["bbox"] for a in dataset["annotations"] if a["image_id"] == image]
        free = set(range(len(truths)))
        mine = sorted((r for r in results if r["image_id"] == image), key=lambda r: -r["score"])
        for result in mine:
            x, y, w, h = result["bbox"]
            best, best_iou = None, threshold
            for index in sorted(free):
                u, v, s, t = truths[index]
                inner = max(0, min(x + w, u + s) - max(x, u)) * max(0, min(y + h, v + t) - max(y, v))
                iou = inner / (w * h + s * t - inner)
                if iou >= best_iou:
                    best, best_iou = index, iou
            free.discard(best)
            flagged.append((result["score"], best is not None))
    flagged.sort(key=lambda item: -item[0])
    total, hits, points = len(dataset["annotations"]), 0, []
    for count, (_, hit) in enumerate(flagged, start=1):
        hits += hit
        points.append((hits / total, hits / count))
    return sum(max([p for r, p in points if r >= k / 100 - 1e-12], default=0) for k in range(101)) / 101


def test_ap_by_plain_loops():
    dataset = make_dataset(4)
    results = make_results(dataset, 5)
    metrics = evaluate(dataset, results, "bbox")
    for percent in (50, 70, 75):
        assert metrics[f"AP{percent}"] == pytest.approx(plain_ap(dataset, results, percent / 100), abs=1e-9)
    assert plain_ap(dataset, results, 0.5) != plain_ap(dataset, results, 0.7) != plain_ap(dataset, results, 0.75)


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_perfect_and_empty_results(iou_type):
    dataset = make_dataset()
    perfect = [{**a, "score": 0.5} for a in dataset["annotations"]]
    metrics = evaluate(dataset, perfect, iou_type)
    assert all(metrics[name] == 1.0 for name in METRIC_NAMES if name != "AR1")
    assert metrics["AR1"] < 1.0  # several instances in a picture
    assert metrics["images"] == 12 and metrics["instances"] == metrics["detections"] == len(dataset["annotations"])
    empty = evaluate(dataset, [], iou_type)
    assert all(empty[name] == 0.0 for name in METRIC_NAMES) and empty["detections"] == 0
    nothing = evaluate({**dataset, "annotations": []}, perfect, iou_type)
    assert all(nothing[name] == -1.0 for name in METRIC_NAMES) and nothing["instances"] == 0


def test_class_agnostic_and_safe_with_id_zero():
    dataset = make_dataset()
    results = make_results(dataset)
    expected = evaluate(dataset, results, "segm")
    other = copy.deepcopy(dataset)
    other["categories"] = [{"id": 3, "name": "a"}, {"id": 9, "name": "b"}]
    for index, annotation in enumerate(other["annotations"]):
        annotation.update(id=index, category_id=(3, 9)[index % 2])
    renamed = [{**result, "category_id": 77} for result in results]
    assert evaluate(other, renamed, "segm") == expected


def test_content_made_in_python_may_leave_the_classes_out(tmp_path):
    dataset = make_dataset(pictures=3)
    results = make_results(dataset)
    expected = evaluate(dataset, results, "bbox")
    del dataset["categories"]
    coco = COCO()
    coco.dataset = copy.deepcopy(dataset)
    assert evaluate(dataset, results, "bbox") == evaluate(coco, results, "bbox") == expected
    (tmp_path / "truth.json").write_text(json.dumps(dataset))
    with pytest.raises(UserError, match="truth.json .*categories"):
        evaluate(tmp_path / "truth.json", results, "bbox")


def test_crowd_regions_are_ignored():
    dataset = make_dataset()
    results = make_results(dataset)
    crowd = copy.deepcopy(dataset)
    crowd["annotations"][0]["iscrowd"] = 1
    expected, _ = pycocotools_says(crowd, results, "segm")
    metrics = evaluate(crowd, results, "segm")
    assert metrics["AP"] == pytest.approx(expected["AP"], abs=1e-12)
    assert metrics["instances"] == len(dataset["annotations"]) - 1
    assert metrics["AP"] != evaluate(dataset, results, "segm")["AP"]


def test_at_most_100_detections_count():
    dataset = make_dataset(pictures=2)
    annotation = dataset["annotations"][0]
    far = [{**rectangle(annotation["image_id"], 0, 0, 1, 1, (200, 260)), "score": 0.9} for _ in range(100)]
    metrics = evaluate(dataset, far + [{**annotation, "score": 0.5}], "bbox")
    assert metrics["AP50"] == 0 and metrics["detections"] == 101
    assert evaluate(dataset, far[1:] + [{**annotation, "score": 0.5}], "bbox")["AP50"] > 0


def test_polygons_and_uncompressed_masks_of_other_systems():
    dataset = make_dataset()
    annotation = next(a for a in dataset["annotations"] if a["image_id"] == 1000 - 7)
    x, y, w, h = annotation["bbox"]
    polygon = {"image_id": 993, "score": 0.5, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
    mask = coco_mask.decode({**annotation["segmentation"], "counts": annotation["segmentation"]["counts"].encode()})
    flat, runs, value = mask.T.reshape(-1), [0], 0
    for pixel in flat:
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    plain = {"image_id": 993, "score": 0.5, "segmentation": {"size": [200, 260], "counts": runs}}
    assert evaluate(dataset, [polygon], "segm")["AR100"] == evaluate(dataset, [plain], "segm")["AR100"] > 0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r.update(image_id=5), "result 2 is of image id 5, which the ground truth does not have"),
        (lambda r: r.update(image_id=[1]), "image id"),
        (lambda r: r.pop("image_id"), "result 2 has no image_id"),
        (lambda r: r.pop("score"), "result 2 has no finite score"),
        (lambda r: r.update(score=float("nan")), "result 2 has no finite score .a number.: score is nan"),
        (lambda r: r.update(score="0.5"), "result 2 has no finite score .a number.: score is '0.5'"),
        (lambda r: r.pop("segmentation"), "result 2 has no segmentation"),
        (lambda r: r.update(segmentation=[]), "result 2 has no segmentation"),
        (lambda r: r.update(segmentation=[[]]), "result 2 has no segmentation"),
        (lambda r: r["segmentation"].update(size=[260, 200]), "for a picture of 200x260"),
        (lambda r: r["segmentation"].update(counts="zz"), "bad segmentation"),
    ],
)
def test_bad_results(change, message):
    dataset = make_dataset()
    results = copy.deepcopy(make_results(dataset))
    change(results[2])
    with pytest.raises(UserError, match=message) as caught:
        evaluate(dataset, results, "segm")
    assert "\n" not in str(caught.value)


def test_bad_boxes():
    dataset = make_dataset()
    for box in (None, [1, 2, 3], [1, 2, 3, float("inf")], ["1", 2, 3, 4]):
        with pytest.raises(UserError, match="result 0 has no bbox"):
            evaluate(dataset, [{"image_id": 1000, "score": 1.0, "bbox": box}], "bbox")


def pictures_with_boxes(count):
    """Ground truth of `count` pictures of 100 x 80 with a box each, and results that are right."""
    random = np.random.default_rng(0)
    boxes = [[*map(int, (*random.integers(20, 40, 2), *random.integers(10, 30, 2)))] for _ in range(count)]
    images = [{"id": n, "file_name": f"d/{n}.png", "width": 100, "height": 80} for n in range(count)]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "iscrowd": 0, "bbox": box} for n, box in enumerate(boxes)]
    results = [{"image_id": n, "category_id": 1, "score": 0.5, "bbox": box} for n, box in enumerate(boxes)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1}]}, results


def as_shares(entry):
    x, y, width, height = entry["bbox"]
    return {**entry, "bbox": [x / 100, y / 80, width / 100, height / 80]}


def as_corners(entry):
    x, y, width, height = entry["bbox"]
    return {**entry, "bbox": [x, y, x + width, y + height]}


def test_boxes_of_another_convention_are_no_ap_of_0(capsys):
    dataset, results = pictures_with_boxes(9)
    assert evaluate(dataset, results, "bbox")["AP"] == pytest.approx(1)
    with pytest.raises(UserError, match="the boxes look like corners, .x1, y1, x2, y2., first"):
        evaluate(dataset, list(map(as_corners, results)), "bbox")
    with pytest.raises(UserError, match="the boxes look like shares of the picture"):
        evaluate(dataset, list(map(as_shares, results)), "bbox")
    elsewhere = [{**result, "bbox": [0, 0, 5, 5]} for result in results]  # wrong, but what it says
    assert evaluate(dataset, elsewhere, "bbox")["AP"] == 0 and not capsys.readouterr().err
    with pytest.raises(UserError, match="9 of 9 boxes do not fit their masks or pictures, first that of annotation 0"):
        evaluate({**dataset, "annotations": list(map(as_shares, dataset["annotations"]))}, results, "bbox")
    for iou_type in ("bbox", "segm"):  # whichever of both is wrong
        shapes = [{**entry, "segmentation": [[1, 1, 9, 1, 9, 9]]} for entry in dataset["annotations"]]
        with pytest.raises(UserError, match="9 of 9 boxes do not fit their masks"):
            evaluate({**dataset, "annotations": shapes}, [], iou_type)


def with_box(dataset, results, box):
    """The same with this box in each picture; only the first three have ground truth."""
    dataset = {**dataset, "annotations": [{**entry, "bbox": box} for entry in dataset["annotations"][:3]]}
    return dataset, [{**result, "bbox": box} for result in results]


def test_boxes_are_refused_where_most_are_of_another_convention():
    dataset, results = pictures_with_boxes(8)
    corners, shares = list(map(as_corners, results)), list(map(as_shares, results))
    with pytest.raises(UserError, match="look like corners"):
        evaluate(dataset, corners, "bbox")
    assert evaluate(dataset, corners[:7], "bbox")["detections"] == 7  # too few to tell
    assert evaluate(dataset, shares[:4] + results[4:], "bbox")["detections"] == 8
    with pytest.raises(UserError, match="look like shares"):
        evaluate(dataset, shares[:5] + results[5:], "bbox")
    for box in ([60, 10, 50, 80], [10, 60, 20, 50], [30, 30, 30, 60], [30, 30, 60, 30]):  # one that cannot be corners
        assert evaluate(dataset, [*corners[:7], {**corners[7], "bbox": box}], "bbox")["detections"] == 8


def test_boxes_that_fit_are_taken_at_their_word_and_only_pictures_with_ground_truth_tell():
    # 5, 5, 30, 30 would do as corners too: an overlap of 25 x 25 of 30 x 30. They fit better as they are.
    assert evaluate(*with_box(*pictures_with_boxes(9), [5, 5, 30, 30]), "bbox")["AR1"] == 1
    # The corners of all but the upper two rows of 10, 10, 17, 17, an overlap of 0.88; as width and height they have 0.33.
    dataset, results = with_box(*pictures_with_boxes(9), [10, 10, 17, 17])
    with pytest.raises(UserError, match="look like corners"):
        evaluate(dataset, [as_corners({**result, "bbox": [10, 12, 17, 15]}) for result in results], "bbox")


def test_corners_of_objects_that_fill_their_pictures_are_told(capsys):
    dataset, results = pictures_with_boxes(9)
    for number, (annotation, result) in enumerate(zip(dataset["annotations"], results)):
        annotation["bbox"] = result["bbox"] = [10 + number, 8, 80 - number, 60]
    assert evaluate(dataset, results, "bbox")["AP"] == pytest.approx(1) and not capsys.readouterr().err
    assert evaluate(dataset, list(map(as_corners, results)), "bbox")["AP"] < 1
    assert "taken as [x, y, width, height], and would fit better as corners" in capsys.readouterr().err


def test_what_a_network_of_ours_finds_is_never_taken_for_corners(capsys):
    # A network that has learnt little finds boxes from the object's corner to the picture's: their corners fit, if anything.
    dataset, results = pictures_with_boxes(9)
    found = list(map(as_corners, results))
    with pytest.raises(UserError, match="look like corners"):
        evaluate(dataset, found, "bbox")
    with pytest.raises(UserError, match="look like corners"):
        check_results(found, load_ground_truth(dataset, "bbox"))
    assert evaluate(dataset, found, "bbox", ours=True)["detections"] == 9 and not capsys.readouterr().err


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_results_that_are_there_again_are_told(iou_type, capsys):
    dataset, results = pictures_with_boxes(4)
    for entry in (*dataset["annotations"], *results):
        x, y, width, height = entry["bbox"]
        entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    evaluate(dataset, [*results, {**results[0], "score": 0.4}], iou_type)
    assert not capsys.readouterr().err
    evaluate(dataset, results + results[:3], iou_type)
    assert "results: 3 of 7 results repeat another's picture, shape and score" in capsys.readouterr().err


def test_pictures_may_be_named_where_their_id_belongs():
    dataset, results = pictures_with_boxes(3)
    named = [{**result, "image_id": f"{result['image_id']}.png"} for result in results]
    assert evaluate(dataset, named, "bbox")["AP"] == pytest.approx(1)
    with pytest.raises(UserError, match="result 0 is of image id 'x', which is no id and no file_name"):
        evaluate(dataset, [{**results[0], "image_id": "x"}], "bbox")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.pop("annotations"), "has no 'annotations'"),
        (lambda d: d["annotations"][1].update(image_id=3), "annotation 51 belongs to the image 3"),
        (lambda d: d["annotations"].append(4), "is not a mapping"),
        (lambda d: d["images"].append(d["images"][0]), "image 1000 occurs twice"),
        (lambda d: d["images"][1].pop("height"), "no positive integer width and height"),
        (lambda d: d["annotations"][1].update(area="big"), "area .*'big'"),
        (lambda d: d["images"].append({**d["images"][0], "id": "a"}), "numbers .* and strings"),
    ],
)
def test_bad_ground_truth(change, message):
    dataset = make_dataset()
    change(dataset)
    with pytest.raises(UserError, match=message):
        evaluate(dataset, [], "segm")


def test_files(tmp_path):
    dataset = make_dataset()
    results = make_results(dataset)
    (tmp_path / "gt.json").write_text(json.dumps(dataset))
    write_results(tmp_path / "results.json", only(results, "segm"))
    assert (tmp_path / "results.json").read_text().count("\n") <= 1, "a line for each number makes a large file"
    evaluation = evaluate_with_curves(tmp_path / "gt.json", str(tmp_path / "results.json"), "segm")
    assert evaluation.metrics == evaluate(dataset, results, "segm")
    write_metrics(tmp_path / "out" / "metrics.json", {"segm": evaluation.metrics})
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"segm": evaluation.metrics}
    write_pr_curves(tmp_path / "out" / "pr_curves.png", {"bbox": evaluation.curves, "segm": evaluation.curves})
    assert (tmp_path / "out" / "pr_curves.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.json", "pr_curves.png"]
    broken = {"none.json": None, "bad.json": b"{", "bytes.json": b"\xff\xfe\x00", "map.json": b"{}"}
    for name, content in broken.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            evaluate(dataset, tmp_path / name, "segm")
        with pytest.raises(UserError, match=name):
            evaluate(tmp_path / name, results, "segm")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_metrics(tmp_path / "file" / "metrics.json", {})
    with pytest.raises(UserError, match="iou_type"):
        evaluate(dataset, results, "keypoints")


def test_table():
    dataset = make_dataset()
    metrics = {"bbox": evaluate(dataset, make_results(dataset), "bbox"), "segm": evaluate(dataset, [], "segm")}
    metrics["segm"]["AP_small"] = -1.0
    lines = format_metrics(metrics).splitlines()
    assert lines[0].split() == ["%"] + list(METRIC_NAMES)
    assert lines[0].startswith("%        AP   AP50   AP70   AP75  AP_small  ")
    assert lines[1].split() == ["bbox"] + [f"{100 * metrics['bbox'][name]:.1f}" for name in METRIC_NAMES]
    assert lines[2].split()[5] == "-"
    assert len({len(line) for line in lines[:3]}) == 1
    assert len(lines) == 4 and lines[3].startswith("12 images")


def test_box_results_have_the_plus_one():
    (result,) = box_results(7, np.array([[10.5, 20, 30.25, 20]], np.float32), np.array([0.25], np.float32), 3)
    assert result == {"image_id": 7, "category_id": 3, "bbox": [10.5, 20.0, 20.75, 1.0], "score": 0.25}
    assert box_results(7, np.zeros((0, 4)), np.zeros(0)) == []
    (wide,) = box_results(7, [[0.1, 2, 3, 4]], [0.5])
    assert wide["bbox"][0] == float(np.float32(0.1))  # in the network's numbers, whatever holds them
    with pytest.raises(ValueError, match="1 detections but 2 scores"):
        box_results(7, np.zeros((1, 4)), np.zeros(2))


def test_checked_results_are_numbered_from_one_and_know_their_area():
    dataset, results = pictures_with_boxes(2)
    given = [{**result, "bbox": [3, 4, 5, 6], "category_id": 9, "score": 1} for result in results]
    assert check_results(given, load_ground_truth(dataset, "bbox")) == [
        {"id": n + 1, "image_id": n, "category_id": 1, "score": 1.0, "bbox": [3.0, 4.0, 5.0, 6.0], "area": 30.0} for n in (0, 1)
    ]
    mask = np.zeros((80, 100), bool)
    mask[10:30, 50] = mask[29, 50:60] = True
    dataset["annotations"] = []
    found = {**given[0], "segmentation": encode_mask(mask)}
    (checked,) = check_results([found], load_ground_truth(dataset, "segm"))
    assert (checked["bbox"], checked["area"]) == ([50, 10, 10, 20], 29)  # of the mask, not of the box beside it


def test_mask_results():
    rles = [encode_mask(np.ones((3, 4), bool))] * 2
    one, other = mask_results("a", rles, np.array([0.5, 0.25]))
    assert one == {"image_id": "a", "category_id": 1, "segmentation": {"size": [3, 4], "counts": rles[0]["counts"]}, "score": 0.5}
    assert other["score"] == 0.25 and mask_results("a", rles, [1, 0], 3)[1]["category_id"] == 3
    with pytest.raises(ValueError, match="2 detections but 1 scores"):
        mask_results("a", rles, [0.5])


def test_box_results_of_the_released_network(golden):
    released = json.loads((golden / "r50" / "bbox.json").read_text())
    detections = np.load(golden / "r50" / "infer_a_480x320.npz")
    ours = box_results(1, detections["det/boxes_orig"], detections["det/scores"])
    theirs = [result for result in released if result["image_id"] == 1]
    assert len(ours) == len(theirs) > 10
    for mine, other in zip(ours, theirs):
        assert mine["bbox"] == pytest.approx(other["bbox"], abs=1e-4)
        assert mine["score"] == pytest.approx(other["score"], abs=1e-6)


def test_results_of_another_folders_picture_do_not_count_for_this_one():
    dataset = make_dataset()
    results = make_results(dataset)
    names = {image["id"]: image["file_name"] for image in dataset["images"]}
    named = [{**result, "file_name": f"val/{names[result['image_id']]}"} for result in results]
    assert evaluate(dataset, named, "bbox") == evaluate(dataset, results, "bbox")
    deeper = [*named[:-1], {**named[-1], "file_name": f"sets/{named[-1]['file_name']}"}]  # the same picture, from further up
    assert evaluate(dataset, deeper, "bbox") == evaluate(dataset, results, "bbox")
    other = {**named[0], "file_name": f"train/{names[named[0]['image_id']]}"}
    with pytest.raises(UserError, match="'train/.*an earlier one of 'val/.*both would be the image"):
        evaluate(dataset, [*named, other], "bbox")


def test_results_are_paired_by_file_name():
    dataset = make_dataset()
    results = make_results(dataset)
    expected = evaluate(dataset, results, "segm")
    names = {image["id"]: image["file_name"] for image in dataset["images"]}
    numbers = {image_id: number for number, image_id in enumerate(names, start=1)}
    numbered = [{**r, "image_id": numbers[r["image_id"]], "file_name": names[r["image_id"]]} for r in results]
    assert evaluate(dataset, numbered, "segm") == expected
    with pytest.raises(UserError, match="picture 'other.jpg', which the ground truth does not have"):
        evaluate(dataset, [{**numbered[0], "file_name": "other.jpg"}], "segm")


def test_results_of_pictures_that_share_a_name_are_told_apart_by_folder_or_refused():
    dataset, results = pictures_with_boxes(4)
    for image, name in zip(dataset["images"], ("b/x.png", "a/x.png", "c/y.png", "c/y.png")):
        image["file_name"] = name
    names = ["in/b/x.png", "/d/in/a/x.png"]
    numbered = [{**result, "image_id": 1 - n, "file_name": names[n]} for n, result in enumerate(results[:2])]
    assert evaluate(dataset, numbered, "bbox") == evaluate(dataset, results[:2], "bbox")
    # A number that is by chance that of an image of this name.
    with pytest.raises(UserError, match="the picture 'x.png', and 2 images .* have that name; write file_name with its folder"):
        evaluate(dataset, [{**numbered[0], "file_name": "x.png"}], "bbox")
    # The same name twice in the ground truth: its ids are all that there is.
    assert evaluate(dataset, [{**results[3], "file_name": "c/y.png"}], "bbox") == evaluate(dataset, results[3:], "bbox")


def test_ground_truth_without_any_mask_is_refused():
    dataset = make_dataset()
    for annotation in dataset["annotations"]:
        annotation["segmentation"] = []
    with pytest.raises(UserError, match=f"none of its {len(dataset['annotations'])} instances has a mask"):
        evaluate(dataset, [], "segm")
    assert evaluate(dataset, [], "bbox")["AP"] == 0


def test_instances_without_a_mask_are_counted():
    dataset = make_dataset()
    assert "without_mask" not in evaluate(dataset, [], "segm")
    dataset["annotations"][0]["segmentation"] = []
    metrics = {"bbox": evaluate(dataset, [], "bbox"), "segm": evaluate(dataset, [], "segm")}
    assert "without_mask" not in metrics["bbox"] and metrics["segm"]["without_mask"] == 1
    assert format_metrics(metrics).splitlines()[-1] == "1 instances have no mask, so that mask AP cannot reach 100"


def test_a_crowd_without_a_shape_hides_nothing_behind_it():
    dataset = make_dataset()
    crowd = {**dataset["annotations"][0], "id": 1, "iscrowd": 1, "segmentation": []}
    dataset["annotations"].insert(0, crowd)
    truth = load_ground_truth(dataset, "segm")
    assert [annotation["id"] for annotation in truth.annotations] == list(range(1, len(dataset["annotations"])))
    assert evaluate(truth, [], "segm") == evaluate(make_dataset(), [], "segm")


def test_the_file_without_masks_is_named(tmp_path):
    dataset = make_dataset()
    for annotation in dataset["annotations"]:
        annotation["segmentation"] = []
    (tmp_path / "boxes.json").write_text(json.dumps(dataset))
    with pytest.raises(UserError, match="boxes.json: none of its"):
        load_ground_truth(tmp_path / "boxes.json", "segm")
    with pytest.raises(UserError, match="^ground truth: none of its"):
        load_ground_truth(dataset, "segm")


def test_far_polygons_in_results_are_refused():
    dataset = make_dataset()
    far = {"image_id": 993, "score": 0.5, "segmentation": [[5, 5, 20, 5, 20, 20, 5, 1e9]]}
    with pytest.raises(UserError, match="coordinate 1e.09"):
        evaluate(dataset, [far], "segm")


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_detections_beyond_the_tenth_count_in_every_figure(iou_type):
    dataset = make_dataset(pictures=2)
    (instance,) = dataset["annotations"]
    size = (200, 260)
    wrong = [{**rectangle(instance["image_id"], 2 * k, 2, 3, 3, size), "score": 0.9} for k in range(15)]
    right = {**{key: instance[key] for key in ("image_id", "category_id", "bbox", "segmentation")}, "score": 0.5}
    results = only([{key: value for key, value in result.items() if key != "area"} for result in [*wrong, right]], iou_type)
    evaluation = evaluate_with_curves(dataset, results, iou_type)
    assert evaluation.metrics["AP"] == evaluation.metrics["AP50"] == pytest.approx(1 / 16)
    assert (evaluation.metrics["AR10"], evaluation.metrics["AR100"]) == (0, 1)
    sizes = [evaluation.metrics[f"AP_{size}"] for size in ("small", "medium", "large")]
    assert sorted(sizes) == [-1, -1, pytest.approx(1)]  # the wrong ones are of another size, which is no mistake there
    assert np.allclose(evaluation.curves.precision, 1 / 16) and np.allclose(evaluation.curves.scores[:, 1:], 0.5)
    assert (evaluation.curves.max_recall == 1).all()


def test_an_error_says_whose_results_they_are(tmp_path):
    dataset = make_dataset(pictures=2)
    (tmp_path / "theirs.json").write_text('[{"image_id": 1}]')
    with pytest.raises(UserError, match=f"results {tmp_path}/theirs.json"):
        evaluate(dataset, tmp_path / "theirs.json", "bbox")
    with pytest.raises(UserError) as caught:
        evaluate(dataset, [{"image_id": 1}], "bbox")
    assert str(caught.value).startswith("results: result 0 is of image id 1")


def test_ground_truth_is_read_once_and_areas_are_made_where_they_are_missing():
    dataset = make_dataset(pictures=3)
    for annotation in dataset["annotations"]:
        del annotation["area"]
    truth = load_ground_truth(dataset, "bbox")
    assert load_ground_truth(truth, "bbox") is truth and truth.without_mask == 0
    assert [a["area"] for a in truth.annotations] == [a["bbox"][2] * a["bbox"][3] for a in dataset["annotations"]]
    assert GroundTruth({}, [], "bbox").without_mask == 0
    with pytest.raises(UserError, match="was read for bbox"):
        load_ground_truth(truth, "segm")
    (result,) = box_results(7, np.array([[1, 2, 3, 5]]), np.array([0.5]))
    assert result == {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_nothing_right_is_not_nothing_defined():
    assert format_percent(0.0) == "0.0" and format_percent(-1) == "-" and format_percent(1) == "100.0"
