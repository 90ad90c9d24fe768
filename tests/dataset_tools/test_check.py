"""`data check` finds each planted defect, names it, and finds nothing in whole datasets."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jrdp.data import catalog
from jrdp.data.annotations import ImageEntry, Instance
from jrdp.dataset_tools import check
from jrdp.dataset_tools.check import check_dataset, mask_area, shape_bounds
from jrdp.data.rle import encode_mask, parse_rle
from jrdp.dataset_tools.sample import write_sample
from jrdp.errors import UserError


def _check(tiny):
    images, annotations = tiny.write()
    return check_dataset(f"{images}:{annotations}", ".")


def test_whole_sets_are_ok(tiny_set, tmp_path):
    report = _check(tiny_set)
    assert report.ok and report.notes == [] and (report.pictures, report.instances) == (3, 3)
    assert report.text().endswith(": 3 pictures, 3 instances: ok")
    sample = write_sample(tmp_path / "sample", train=4, val=1)
    report = check_dataset(f"{sample.images}:{sample.train}", ".")
    assert report.ok and report.pictures == 4, report.text()
    assert report.notes == [f"1 files in {sample.images} are not in {sample.train}"]


def _edit(index, **changes):
    return lambda tiny: tiny.data["annotations"][index].update(changes)


def _drop(index, key):
    return lambda tiny: tiny.data["annotations"][index].pop(key)


DEFECTS = {
    "missing picture": (lambda t: (t.images / "p2.png").unlink(), "p2.png: no such file"),
    "no picture": (lambda t: (t.images / "p2.png").write_text("x"), "p2.png: it is not an image"),
    "truncated picture": (
        lambda t: (t.images / "p2.png").write_bytes((t.images / "p2.png").read_bytes()[:900]),
        "p2.png: .*truncated",
    ),
    "another size": (lambda t: Image.new("RGB", (41, 60)).save(t.images / "p2.png"), "p2.png is 41x60, but image 20"),
    "turned": (lambda t: Image.new("RGB", (60, 40)).save(t.images / "p2.png"), "p2.png is 60x40.*turned by 90"),
    "no segmentation": (_drop(1, "segmentation"), "annotation 2 .* its segmentation is empty or missing"),
    "empty segmentation": (_edit(1, segmentation=[]), r"annotation 2 \(p2.png\): its segmentation is empty"),
    "two points": (_edit(1, segmentation=[[4, 4, 9, 9]]), "annotation 2 .* its segmentation is empty"),
    "empty RLE": (_edit(1, segmentation={"size": [60, 40], "counts": [2400]}), "annotation 2 .* segmentation is empty"),
    "flat polygon": (_edit(1, segmentation=[[4, 4, 9, 4, 20, 4]]), "annotation 2 .* covers no pixel"),
    "far polygon": (_edit(1, segmentation=[[1e9, 4, 1e9, 40, 1e10, 4]]), r"annotation 2 has a polygon with the coordinate 1e\+10"),
    "odd polygon": (_edit(1, segmentation=[[4, 4, 9, 4, 20, 4, 3]]), "annotation 2 has a malformed polygon"),
    "damaged RLE": (_edit(1, segmentation={"size": [60, 40], "counts": "R"}), "annotation 2 has a damaged compressed RLE"),
    "box without area": (_edit(1, bbox=[4, 4, 0, 9]), "annotation 2 .* width=0 .* has no area"),
    "box outside": (_edit(1, bbox=[50, 4, 9, 9]), "annotation 2 .* lies outside the picture of 40x60"),
    "box beyond": (_edit(1, bbox=[4, 4, 60, 20]), "annotation 2 .* reaches beyond"),
    "box elsewhere": (_edit(1, bbox=[20, 30, 20, 20]), "annotation 2 .* does not fit its segmentation"),
    "unknown picture": (_edit(1, image_id=5), "annotation 2 belongs to the image 5"),
    "unknown category": (_edit(1, category_id=5), "annotation 2 .* category 5"),
    "annotation id twice": (_edit(1, id=1), "annotation 1 has an id that occurs twice"),
    "image id twice": (lambda t: t.data["images"][1].update(id=10), "image 10 occurs twice"),
    "file twice": (lambda t: t.data["images"][1].update(file_name="p1.png"), "images 10 and 20 are the same file"),
    "no file name": (lambda t: t.data["images"][1].pop("file_name"), "image 20 has no file_name"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_named(tiny_set, defect):
    change, words = DEFECTS[defect]
    change(tiny_set)
    report = _check(tiny_set)
    assert not report.ok
    assert any(re.search(words, problem) for problem in report.problems), report.text()
    assert "problem" in report.text().splitlines()[0] and all("\n" not in problem for problem in report.problems)


def test_several_defects_are_all_found(tiny_set):
    _edit(0, bbox=[4, 4, 0, 9])(tiny_set)
    _drop(1, "segmentation")(tiny_set)
    (tiny_set.images / "p3.png").unlink()
    report = _check(tiny_set)
    assert len(report.problems) == 3 and "3 problems" in report.text()


def test_what_is_handled_is_a_note(tiny_set, make_annotation):
    tiny_set.data["annotations"][1]["iscrowd"] = 1
    tiny_set.data["annotations"][2] = make_annotation(3, 30, [[4, 4, 5, 4, 5, 30, 4, 30]], bbox=[4, 4, 1, 26])
    report = _check(tiny_set)
    assert report.ok and len(report.notes) == 3
    assert "1 crowd" in report.notes[0] and "1 instances" in report.notes[1] and "2 pictures" in report.notes[2]


def test_crowds_alone_are_a_problem(tiny_set):
    for annotation in tiny_set.data["annotations"]:
        annotation["iscrowd"] = 1
    report = _check(tiny_set)
    assert len(report.problems) == 1 and "no instance to train on or to test for (iscrowd is 1 for 3 of 3" in report.problems[0]


def test_only_the_first_of_many_missing_pictures_is_looked_for_under_other_names(tiny_set, monkeypatch):
    for image in tiny_set.data["images"]:
        image["file_name"] = image["file_name"].upper()
    looked = []
    find = check.other_picture_hint
    monkeypatch.setattr(check, "other_picture_hint", lambda *names: looked.append(names) or find(*names))
    (problem,) = _check(tiny_set).problems
    assert "P1.PNG: no such file (but there is" in problem and "p1.png) (and 2 more: " in problem and len(looked) == 1


def test_a_name_too_long_for_a_file_does_not_end_the_check(tiny_set):
    tiny_set.data["images"][0]["file_name"] = "ü" * 300 + ".png"
    tiny_set.data["images"][1]["file_name"] = "x" * 300 + ".png"
    report = _check(tiny_set)
    assert len(report.problems) == 1 and "File name too long (and 1 more" in report.problems[0]


def test_expected_counts_of_named_sets(tiny_set, tmp_path, monkeypatch):
    images, annotations = tiny_set.write()
    for count, ok in ((3, True), (500, False)):
        monkeypatch.setitem(catalog.CATALOG, "isod_train", catalog.Entry("imgs", "set.json", count))
        report = check_dataset("isod_train", tmp_path)
        assert report.ok is ok
    assert "3 pictures with instances; 500 are expected" in report.problems[0]


def test_missing_and_unreadable_sets_are_user_errors(tmp_path, tiny_set):
    with pytest.raises(UserError, match="not there"):
        check_dataset("isod_train", tmp_path)
    images, annotations = tiny_set.write()
    annotations.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        check_dataset(f"{images}:{annotations}", ".")


@pytest.mark.parametrize("seed", range(4))
def test_areas_and_bounds_equal_pycocotools(seed):
    random = np.random.default_rng(seed)
    mask = np.zeros((30, 40), np.uint8)
    mask[random.integers(0, 10) : 25, 5 : random.integers(6, 40)] = 1
    mask[random.random(mask.shape) < 0.3] = 0
    if seed == 3:
        mask[:, 7:9] = 1
    encoded = encode_mask(mask)
    image = ImageEntry(1, "x.png", 40, 30)
    instance = Instance(1, 1, (0, 0, 1, 1), None, parse_rle(encoded, 30, 40), False)
    x, y, width, height = coco_mask.toBbox(encoded)
    assert shape_bounds(instance, image) == (x, y, x + width, y + height)
    assert mask_area(instance, image) == mask.sum()
    polygon = np.array([3, 4, 30, 6, 20, 25], np.float32)
    instance = Instance(1, 1, (0, 0, 1, 1), [polygon], None, False)
    assert mask_area(instance, image) == coco_mask.area(coco_mask.frPyObjects([polygon.tolist()], 30, 40)[0])
    assert shape_bounds(instance, image) == (3, 4, 30, 25)


@pytest.mark.parametrize("name, pictures, instances", [("ecssd", 100, 106), ("coco_salient", 30, 69)])
def test_real_data_is_ok(shared, name, pictures, instances):
    if not (shared / "data" / name).is_dir():
        pytest.skip(f"needs {shared / 'data' / name}")
    report = check_dataset(f"{name}/imgs:{name}/val.json", shared / "data")
    assert report.ok, report.text()
    assert (report.pictures, report.instances) == (pictures, instances)
    counted = json.loads((shared / "data" / name / "val.json").read_text())
    assert len(counted["annotations"]) == instances


def test_one_cause_is_one_line(tiny_set):
    for entry in tiny_set.data["images"]:
        del entry["width"]
    report = _check(tiny_set)
    assert [line for line in report.problems if "annotation" in line] == []
    assert len(report.problems) == 1 and "and 2 more: image 20, image 30" in report.problems[0]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: [e.update(file_name="imgs/" + e["file_name"]) for e in t.data["images"]], r"p1.png: no such file \(but there is .*p1.png\)"),
        (lambda t: [e.update(file_name=f"http://a/{e['file_name']}?b") for e in t.data["images"]], r"but there is .*p1.png"),
        (lambda t: [e.update(file_name=e["file_name"].upper()) for e in t.data["images"]], r"P1.PNG: no such file \(but there is .*p1.png\)"),
        (lambda t: [e.update(file_name=e["file_name"][:-3] + "jpg") for e in t.data["images"]], r"p1.jpg: .*but there is .*p1.png"),
        (lambda t: [p.unlink() for p in t.images.iterdir()], r"p1.png: no such file \(and 2 more: .*p2.png, .*p3.png\)"),
        (lambda t: [e.update(width=e["width"] + 1) for e in t.data["images"]], "p1.png is 60x40, but image 10 says 61x40 .and 2 more"),
        (lambda t: [p.write_text("x") for p in t.images.iterdir()], "p1.png: it is not an image.*and 2 more"),
        (lambda t: [e.update(segmentation=[[[e["id"], 4], [5, 6], [7, 8]]]) for e in t.data["annotations"]], "malformed polygon.*and 2 more"),
        (lambda t: [e.update(segmentation=[[4, e["id"]], [5, 6], [7, 8]]) for e in t.data["annotations"]], "list of points.*and 2 more"),
        (lambda t: [e.update(segmentation=[[e["id"] * 1e8] * 6]) for e in t.data["annotations"]], "the coordinate 1e.08.*and 2 more"),
        (lambda t: [e.update(segmentation={"size": [e["id"], 9], "counts": [9]}) for e in t.data["annotations"]], "an RLE for.*and 2 more"),
    ],
)  # fmt: skip
def test_one_cause_of_every_entry_is_one_line(tiny_set, change, words):
    tiny_set.write()
    change(tiny_set)
    report = _check(tiny_set)
    assert len(report.problems) == 1 and re.search(words, report.problems[0]), report.text()


def test_ids_of_categories_may_be_strings(tiny_set):
    tiny_set.data["categories"][0]["id"] = str(tiny_set.data["categories"][0]["id"])
    assert _check(tiny_set).ok


def test_backslashes_are_named_once(tiny_set):
    for entry in tiny_set.data["images"]:
        entry["file_name"] = "..\\imgs\\" + entry["file_name"]
    report = _check(tiny_set)
    assert len(report.problems) == 1 and "backslashes" in report.problems[0], report.text()
