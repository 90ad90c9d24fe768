"""The analysis agrees with pycocotools in every part, and its report holds all it shows."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from jrdp.errors import UserError
from jrdp.analysis.analyze import analyze, format_comparison
from jrdp.evaluation.cocoeval import run_cocoeval
from jrdp.evaluation.coco_metrics import evaluate, evaluate_with_curves
from jrdp.analysis.matching import average_precision, mean_average_precision
from jrdp.evaluation.results import check_results
from jrdp.data.rle import encode_mask
from jrdp.analysis.runs import BREAKDOWN_IOUS, analyze_runs

IOU_TYPES = ("bbox", "segm")
HEIGHT, WIDTH = 160, 260


def rectangle(image_id, x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return {"image_id": image_id, "bbox": [x, y, w, h], "segmentation": encode_mask(mask), "area": float(mask.sum())}


def scene(seed=0, pictures=14):
    """Pictures with 0 to 6 rectangles of all sizes, and results with every kind of error and with equal scores."""
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 2, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(pictures)]
    annotations, results = [], []
    for position, image in enumerate(images):
        for _ in range(position % 7):
            w, h = (int(v) for v in rng.integers(12, 120, 2))
            x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
            annotations.append(rectangle(image["id"], x, y, w, h))
            for _ in range(int(rng.integers(0, 3))):
                dx, dy = (int(v) for v in rng.integers(0, 12, 2))
                results.append(rectangle(image["id"], x + dx, y + dy, w, h))
        results.append(rectangle(image["id"], *(int(v) for v in rng.integers(5, 60, 4))))
    for result in results:
        del result["area"]
        result["score"] = round(float(rng.random()), 1)
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "salient"}]}
    return truth, results


def perfect(truth):
    return [{**annotation, "score": 0.9} for annotation in truth["annotations"]]


def only_pictures(truth, results, wanted):
    kept = {
        "images": [image for image in truth["images"] if image["id"] in wanted],
        "annotations": [annotation for annotation in truth["annotations"] if annotation["image_id"] in wanted],
    }
    return kept, [result for result in results if result["image_id"] in wanted]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize("seed", range(3))
def test_ap_of_all_groups_and_single_pictures_is_pycocotools(iou_type, seed):
    truth, results = scene(seed)
    expected = evaluate_with_curves(truth, results, iou_type)
    _, (run,) = analyze_runs(truth, {"ours": results}, iou_type)
    assert run.metrics == expected.metrics
    assert mean_average_precision(run.pictures) == pytest.approx(expected.metrics["AP"], abs=1e-12)
    for index in range(10):
        precision = expected.curves.precision[index]
        assert average_precision(run.pictures, index) == pytest.approx(precision.mean(), abs=1e-12)
    for picture, ap in zip(run.pictures, run.picture_ap):
        alone = evaluate(*only_pictures(truth, results, {picture.image_id}), iou_type)
        assert ap == pytest.approx(alone["AP"], abs=1e-12)
    assert [row["salient_instances"] for row in run.counts] == ["0", "1", "2", "3", "4", "5+"]
    for row in run.counts:
        count = row["salient_instances"]
        allowed = (5, 6) if count == "5+" else (int(count),)
        wanted = {picture.image_id for picture in run.pictures if len(picture.instances) in allowed}
        metrics = evaluate(*only_pictures(truth, results, wanted), iou_type)
        for name in ("AP", "AP50", "AP70", "images", "instances"):
            assert row[name] == pytest.approx(metrics[name], abs=1e-12), (count, name)
    sizes = {row["size"]: row for row in run.sizes}
    for size in ("small", "medium", "large"):
        assert sizes[size]["AP"] == pytest.approx(run.metrics[f"AP_{size}"], abs=1e-12)
    assert sizes["all"]["AP50"] == run.metrics["AP50"] and sizes["all"]["AR100"] == run.metrics["AR100"]
    assert sum(sizes[size]["instances"] for size in ("small", "medium", "large")) == run.metrics["instances"]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_breakdown(iou_type):
    truth, results = scene(5)
    ground_truth, (run,) = analyze_runs(truth, {"ours": results}, iou_type)
    assert BREAKDOWN_IOUS == (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    everything = run.breakdown["all"].averages()
    curves = evaluate_with_curves(truth, results, iou_type).curves
    for iou in (0.5, 0.6, 0.7, 0.8, 0.9):
        np.testing.assert_allclose(run.breakdown["all"].precision[iou], curves.at(iou), atol=1e-12)
    values = list(everything.values())
    assert values == sorted(values) and 0 < values[0] < values[-2] < 1  # ever more forgiving, up to BG
    assert list(everything)[-2:] == ["BG", "FN"] and values[-1] == 1.0
    # BG is what is left when every wrong detection at IoU 0.1 is taken out.
    loose = run_cocoeval(ground_truth, check_results(results, ground_truth), [0.1])
    records = [record for record in loose.evalImgs[: len(truth["images"])] if record]
    right = {d - 1 for record in records for d, match in zip(record["dtIds"], record["dtMatches"][0]) if match}
    cleaned = check_results([result for index, result in enumerate(results) if index in right], ground_truth)
    precision = run_cocoeval(ground_truth, cleaned, [0.1]).eval["precision"][0, :, 0, 0, -1]
    assert 0 < len(cleaned) < len(results) and everything["BG"] == pytest.approx(precision.mean())


def test_large_means_more_than_64_by_64():
    images = [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}]
    annotations = [rectangle(1, 0, 0, 64, 64), rectangle(1, 100, 0, 64, 65)]
    truth = {"images": images, "annotations": annotations}
    _, (run,) = analyze_runs(truth, {"ours": perfect({"annotations": annotations[1:]})})
    assert run.breakdown["all"].instances == 2 and run.breakdown["large"].instances == 1
    assert run.breakdown["large"].averages()["0.9"] == pytest.approx(1.0) and run.breakdown["large"].averages()["FN"] == 1.0
    assert run.breakdown["all"].averages()["0.1"] == pytest.approx(51 / 101)
    _, (small,) = analyze_runs({"images": images, "annotations": annotations[:1]}, {"ours": []})
    assert set(small.breakdown["large"].averages().values()) == {-1.0}
    _, (nothing,) = analyze_runs({"images": images, "annotations": [{**annotations[0], "area": 0}]}, {"ours": []})
    assert nothing.breakdown["all"].instances == 1


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_perfect_and_empty_results(iou_type):
    truth, _ = scene()
    _, (full, empty) = analyze_runs(truth, {"full": perfect(truth), "empty": []}, iou_type)
    assert full.metrics["AP"] == 1.0 and set(full.picture_ap.tolist()) == {1.0, -1.0}
    assert all(value == 1.0 for value in full.breakdown["all"].averages().values())
    assert all(row["AP"] == 1.0 for row in full.counts if row["salient_instances"] != "0")
    assert empty.metrics["AP"] == 0.0 and empty.errors[0.5].counts["missed"] == len(truth["annotations"])
    assert empty.shown_above == 0.0
    assert empty.errors[0.5].gains["missed"] == 1.0 and empty.breakdown["all"].averages()["BG"] == 0.0


def test_the_score_of_the_best_f1():
    truth, _ = scene()
    good = perfect(truth)
    bad = [{**rectangle(2, 0, 0, 5, 5), "score": 0.2} for _ in range(3)]
    _, (run,) = analyze_runs(truth, {"ours": good + bad})
    assert run.shown_above == 0.9


def test_what_to_show_and_how_many_of_each_size_by_hand():
    images = [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}]
    there = [rectangle(1, 0, 0, 32, 32), rectangle(1, 40, 0, 30, 20), rectangle(1, 80, 0, 96, 96)]  # two on bounds of COCO's
    crowd = {**rectangle(1, 180, 0, 80, 80), "iscrowd": 1}
    truth = {"images": images, "annotations": [crowd, *there]}
    nowhere, in_the_crowd = rectangle(1, 0, 100, 9, 9), rectangle(1, 190, 10, 20, 20)
    found = [there[2], nowhere, in_the_crowd, there[0], nowhere]
    results = [{**entry, "score": score} for entry, score in zip(found, (0.9, 0.8, 0.75, 0.7, 0.6))]
    _, (run,) = analyze_runs(truth, {"ours": results}, "bbox")
    # F1 at 0.9, 0.8, 0.7, 0.6: 2/4, 2/5, 4/6, 4/7; what is found in a crowd counts for nothing.
    assert run.shown_above == 0.7
    instances = {row["size"]: row["instances"] for row in run.sizes}
    assert instances == {"all": 3, "small": 2, "medium": 2, "large": 1, "paper_large": 1}
    (row,) = run.counts
    assert (row["salient_instances"], row["images"], row["instances"], row["detections"]) == ("3", 1, 3, 5)


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.images, self.tags, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "img":
            self.images.append(dict(attributes)["src"])

    def handle_data(self, data):
        self.text.append(data)


def write_photos(truth, folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for image in truth["images"]:
        pixels = rng.integers(0, 255, (image["height"], image["width"], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])


def test_report(tmp_path):
    truth, results = scene()
    write_photos(truth, tmp_path / "photos")
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "a.json").write_text(json.dumps(results))
    runs = {"R&D <one>": tmp_path / "a.json", "perfect": perfect(truth)}
    summary = analyze(tmp_path / "truth.json", runs, tmp_path / "out", tmp_path / "photos", pictures=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["analysis.json", "report.html"]
    assert json.loads((tmp_path / "out" / "analysis.json").read_text()) == summary
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    # Complete in itself: no script, no link out, every picture inside.
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert all(a.get("href", "#").startswith("#") for _, a in page.tags)
    assert not re.search(r"https?:|@import|url\(", text)
    plots = [src for src in page.images if src.startswith("data:image/svg+xml;base64,")]
    photos = [src for src in page.images if src.startswith("data:image/jpeg;base64,")]
    assert len(plots) == 3 + 2 and len(photos) == len(page.images) - len(plots) == 4 * 2 * 4
    for source in photos:
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
            assert picture.size == (WIDTH, HEIGHT)
    for source in plots:
        assert b"<svg" in base64.b64decode(source.split(",")[1])
    assert "R&D <one>" in "".join(page.text) and "<one>" not in text  # escaped, not markup
    table = format_comparison(summary).splitlines()
    assert table[0].split() == ["method", "AP", "AP50", "AP70", "AP75"]
    assert table[2].split() == ["perfect"] + ["100.0"] * 4
    for name in ("AP", "AP50", "AP70"):
        assert f"{100 * summary['runs']['R&D <one>']['metrics'][name]:.1f}" in table[1].split()


def test_boxes_without_photographs(tmp_path):
    truth, results = scene()
    boxes = [{key: value for key, value in result.items() if key != "segmentation"} for result in results]
    summary = analyze(truth, {"boxes": boxes}, tmp_path, iou_type="bbox", pictures=1)
    text = (tmp_path / "report.html").read_text()
    assert summary["iou_type"] == "bbox" and "Photograph" not in Page(text).text
    analyze(truth, {"boxes": boxes}, tmp_path, iou_type="bbox", pictures=1)
    assert (tmp_path / "report.html").read_text() == text  # the same bytes for the same input
    assert summary["runs"]["boxes"]["metrics"] == evaluate(truth, boxes, "bbox")


def test_gallery_order(tmp_path):
    truth, _ = scene()
    results = perfect(truth)
    order = [image["id"] for image in truth["images"]]
    for result in results:  # the later the picture, the worse its outlines
        x, y, w, h = result["bbox"]
        result.update(rectangle(result["image_id"], x, y, max(1, w - w * order.index(result["image_id"]) // 28), h))
    analyze(truth, {"ours": results}, tmp_path, pictures=1)
    page = Page((tmp_path / "report.html").read_text())
    names = [text for text in page.text if re.fullmatch(r"\d+\.png", text)]
    assert len(names) == 3 and names[0] == "1.png" and names[2] == "13.png"
    assert 4 <= int(names[1][:-4]) <= 10


def test_bad_input_writes_nothing(tmp_path):
    truth, results = scene()
    write_photos(truth, tmp_path / "photos")
    (tmp_path / "photos" / "13.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    cases = [
        ((truth, {}), "at least one results file"),
        (({**truth, "annotations": []}, {"ours": results}), "no instances"),
        ((truth, {"ours": tmp_path / "none.json"}), "none.json"),
        ((truth, {"ours": results, "other": [{"image_id": 1, "score": 1}]}), "other: result 0"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message):
            analyze(*arguments, out)
    with pytest.raises(UserError, match="13.png"):
        analyze(truth, {"ours": results}, out, tmp_path / "photos", pictures=20)
    Image.new("RGB", (5, 5)).save(tmp_path / "photos" / "13.png")
    with pytest.raises(UserError, match="5 x 5, but the ground truth says 260 x 160"):
        analyze(truth, {"ours": results}, out, tmp_path / "photos", pictures=20)
    with pytest.raises(UserError, match="nowhere"):
        analyze(truth, {"ours": results}, out, tmp_path / "nowhere")
    assert not out.exists()


def test_half_a_character_in_a_file_name(tmp_path):
    truth, results = scene(pictures=3)
    for entry in truth["images"]:
        entry["file_name"] = "\ud800.png"
    analyze(truth, {"a": results, "\udcff": results}, tmp_path)
    assert "\\ud800.png" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert list(json.loads((tmp_path / "analysis.json").read_text())["runs"]) == ["a", "\udcff"]


def test_crowd_and_string_ids(tmp_path):
    truth, results = scene()
    for entry in truth["images"]:
        entry["id"] = f"id{entry['id']:03d}"
    for entry in truth["annotations"] + results:
        entry["image_id"] = f"id{entry['image_id']:03d}"
    truth["annotations"][3]["iscrowd"] = 1
    summary = analyze(truth, {"ours": results}, tmp_path, pictures=1)
    assert summary["instances"] == len(truth["annotations"]) - 1
    _, (run,) = analyze_runs(truth, {"ours": results})
    assert mean_average_precision(run.pictures) == pytest.approx(run.metrics["AP"], abs=1e-12)
    assert sum(len(picture.instances) for picture in run.pictures) == summary["instances"]


def test_the_released_results(golden, tmp_path):
    summary = analyze(
        golden / "annotations.json", {"seeded": golden / "r50" / "segm.json"}, tmp_path, golden / "imgs", pictures=2
    )
    run = summary["runs"]["seeded"]
    assert run["metrics"]["AP"] == 0.0 and run["errors"]["0.50"]["hits"] == 0  # random weights find nothing
    errors = run["errors"]["0.50"]["counts"]
    assert errors["localisation"] + errors["duplicate"] + errors["background"] <= run["metrics"]["detections"]
