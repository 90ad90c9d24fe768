"""Datasets: ground truth as released, and one clear line for every kind of malformed annotation."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jrdp import boxes
from jrdp.config import InputConfig
from jrdp.data.coco import CocoDataset, JoinedDataset
from jrdp.models.mask_targets import project_masks
from jrdp.data.rle import encode_mask, encode_mask_as_list
from jrdp.errors import UserError


def _load(tiny, training=True, **config):
    return CocoDataset(*tiny.write(), InputConfig(**config), training=training)


def test_ground_truth_equals_the_released_one(golden):
    expected = np.load(golden / "r50" / "train.npz")
    dataset = CocoDataset(golden / "imgs", golden / "annotations.json", InputConfig(), training=True)
    assert [dataset.image_id(i) for i in range(len(dataset))] == [1, 2, 3, 4]
    for i in range(4):
        image, targets = dataset[i]
        assert np.array_equal(targets.boxes, expected[f"b1/gt{i}/boxes"]) and targets.boxes.dtype == np.float32
        assert targets.size == image.size == dataset.size(i) == tuple(expected[f"b1/gt{i}/size_wh"][::-1])
        assert [len(parts) for parts in targets.polygons] == expected[f"b1/gt{i}/n_polys"].tolist()
        for j, parts in enumerate(targets.polygons):
            for k, part in enumerate(parts):
                assert np.array_equal(part, expected[f"b1/gt{i}/poly_{j}_{k}"])
        assert image.image_id == i + 1 and targets.bitmaps == [None] * len(targets)


def test_boxes_are_clipped_and_empty_ones_removed(tiny_set, make_annotation):
    bboxes = [[-5, -5, 20, 20], [50, 30, 30, 30], [5, 5, 1, 9], [5, 5, 9, 0.5], [70, 5, 10, 10], [1, 2, 3, 4]]
    tiny_set.data["annotations"] = [make_annotation(i, 10, bbox=bbox) for i, bbox in enumerate(bboxes)]
    targets = _load(tiny_set, min_size=40, max_size=60)[0].targets
    assert targets.boxes.tolist() == [[0, 0, 14, 14], [50, 30, 59, 39], [1, 2, 3, 5]]
    assert len(targets) == len(targets.polygons) == len(targets.bitmaps) == 3


def test_each_side_is_scaled_by_its_own_ratio(tiny_set):
    tiny_set.data["images"] = tiny_set.data["images"][:1]
    tiny_set.data["annotations"] = tiny_set.data["annotations"][:1]
    Image.new("RGB", (61, 40)).save(tiny_set.images / "p1.png")
    tiny_set.data["images"][0]["width"] = 61
    dataset = _load(tiny_set, min_size=100, max_size=150)
    image, targets = dataset[0]
    assert image.size == (98, 149)  # 150 * 40 / 61 rounds to 98, and 98 * 61 / 40 is cut to 149
    assert np.allclose(targets.boxes[0], [4 * 149 / 61, 4 * 98 / 40, 24 * 149 / 61, 24 * 98 / 40])
    assert np.allclose(targets.polygons[0][0][:4], [4 * 149 / 61, 4 * 98 / 40, 24 * 149 / 61, 4 * 98 / 40])


def test_flip(tiny_set):
    dataset = _load(tiny_set)
    straight, flipped = dataset.example(0), dataset.example(0, flip=True)
    width = straight.targets.size[1]
    assert np.array_equal(flipped.image.pixels, straight.image.pixels[:, :, ::-1])
    assert np.array_equal(flipped.targets.boxes, boxes.flip(straight.targets.boxes, width))
    assert np.allclose(flipped.targets.polygons[0][0][0::2], width - straight.targets.polygons[0][0][0::2] - 1)
    assert np.array_equal(flipped.targets.polygons[0][0][1::2], straight.targets.polygons[0][0][1::2])


def _disc(height, width):
    y, x = np.mgrid[:height, :width]
    return ((x - 30) ** 2 / 16 + (y - 18) ** 2 / 9 < 16).astype(np.uint8)


@pytest.mark.parametrize("encode", [encode_mask, encode_mask_as_list])
def test_rle_becomes_bitmaps(tiny_set, make_annotation, encode):
    mask = _disc(40, 60)
    box = [float(v) for v in coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask)))]
    tiny_set.data["annotations"][0] = make_annotation(1, 10, encode(mask), bbox=box)
    same = _load(tiny_set, min_size=40, max_size=60)[0].targets
    assert same.polygons[0] is None and np.array_equal(same.bitmaps[0], mask)
    dataset = _load(tiny_set)
    image, targets = dataset[0]
    bitmap = targets.bitmaps[0]
    assert bitmap.shape == image.size and bitmap.dtype == np.uint8 and set(np.unique(bitmap)) == {0, 1}
    enlarged = np.kron(mask, np.ones((8, 8), np.uint8))
    assert bitmap.shape == enlarged.shape
    assert (bitmap & enlarged).sum() / (bitmap | enlarged).sum() > 0.97
    flipped = dataset.example(0, flip=True).targets.bitmaps[0]
    assert np.array_equal(flipped, bitmap[:, ::-1]) and not np.array_equal(flipped, bitmap)


def test_rle_and_polygon_of_one_shape_give_alike_targets(tiny_set, make_annotation):
    polygon = [8.0, 6.0, 50.0, 9.0, 44.0, 35.0, 20.0, 31.0]
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 40, 60)))
    tiny_set.data["annotations"] = [
        make_annotation(1, 10, [polygon], bbox=[8, 6, 42, 29]),
        make_annotation(2, 10, encode_mask(mask), bbox=[8, 6, 42, 29]),
    ]
    targets = _load(tiny_set)[0].targets
    a, b = project_masks(targets, [0, 1], targets.boxes)
    assert (a & b).sum() / (a | b).sum() > 0.95 and 300 < a.sum() < 900


def test_crowds_and_degenerate_polygons_are_dropped_with_their_boxes(tiny_set, make_annotation):
    tiny_set.data["annotations"] = [
        make_annotation(1, 10, [[1, 1, 2, 2]], bbox=[0, 0, 30, 30]),
        make_annotation(2, 10, bbox=[2, 2, 9, 9]),
        make_annotation(3, 10, {"size": [40, 60], "counts": [2400]}, iscrowd=1),
        make_annotation(4, 10, [[1, 1, 2, 2], [3, 3, 20, 3, 20, 20]], bbox=[3, 3, 18, 18]),
        make_annotation(5, 10, [], bbox=[5, 5, 10, 10]),
        make_annotation(6, 10, {"size": [40, 60], "counts": [2400]}, bbox=[5, 5, 10, 10]),
    ]
    targets = _load(tiny_set, min_size=40, max_size=60)[0].targets
    assert targets.boxes.tolist() == [[2, 2, 10, 10], [3, 3, 20, 20]]
    assert [len(parts) for parts in targets.polygons] == [1, 1]


def test_pictures_without_instances_are_left_out_of_training_only(tiny_set, make_annotation):
    tiny_set.data["annotations"] = [
        make_annotation(1, 20),
        make_annotation(2, 10, bbox=[3, 3, 1, 9]),
        make_annotation(3, 10, bbox=[3, 3, 9, 1]),
        make_annotation(4, 30, iscrowd=1),
    ]
    training, testing = _load(tiny_set), _load(tiny_set, training=False)
    assert [training.image_id(i) for i in range(len(training))] == [20] and training.left_out == 2
    assert [testing.image_id(i) for i in testing.sorted_indices()] == [10, 20, 30] and testing.left_out == 0
    assert len(testing[0].targets) == 0 and testing[0].targets.boxes.shape == (0, 4)


def test_other_annotations_have_another_fingerprint_and_other_folders_the_same(tiny_set, tmp_path):
    """By which a resumed run notices that its pictures or annotations are others than it began with."""
    found = [_load(tiny_set).fingerprint]
    for name in ("images", "annotations"):
        tiny_set.data[name].reverse()
    renamed = tiny_set.images.rename(tmp_path / "elsewhere")
    assert CocoDataset(renamed, tiny_set.write()[1], InputConfig(), training=True).fingerprint == found[0]
    shape = np.zeros((40, 60), bool)
    shape[4:25, 4:25] = True
    other = shape.copy()
    other[10, 10] = False
    changes = [
        {"segmentation": [[4, 4, 24, 4, 24, 24, 4, 23.5]]},
        {"bbox": [4, 4, 21, 20.5]},
        {"segmentation": encode_mask(shape)},
        {"segmentation": encode_mask(other)},
        {"image_id": 30},
    ]
    for change in changes:
        before = dict(tiny_set.data["annotations"][-1])
        tiny_set.data["annotations"][-1].update(change)
        found.append(_load(tiny_set).fingerprint)
        tiny_set.data["annotations"][-1] = before
    tiny_set.data["images"][0]["width"] += 1
    found.append(_load(tiny_set).fingerprint)
    assert len(set(found)) == len(found)
    one, other = _load(tiny_set), CocoDataset(*tiny_set.write(), InputConfig(), training=True)
    other._records.pop()
    both, turned = (JoinedDataset(parts).fingerprint for parts in ([one, other], [other, one]))
    assert both == JoinedDataset([one, other]).fingerprint != turned


def test_crowds_alone_are_no_test_set(tiny_set):
    for annotation in tiny_set.data["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(UserError, match=r"no picture has a usable instance \(iscrowd is 1 for 3 of 3: .*nothing to test on"):
        _load(tiny_set, training=False)
    tiny_set.data["annotations"][1]["iscrowd"] = 0
    assert _load(tiny_set, training=False).note == f"{tiny_set.json}: left out: 2 crowds"
    tiny_set.data["annotations"] = []
    assert len(_load(tiny_set, training=False)) == 3


def test_sizes_may_be_written_as_floats(tiny_set):
    tiny_set.data["images"][0].update(width=60.0, height=40.0)
    assert _load(tiny_set).original_size(0) == (40, 60)


def test_order_is_that_of_the_ids_and_category_ids_become_one(tiny_set):
    tiny_set.data["images"].reverse()
    tiny_set.data["categories"] = [{"id": 7, "name": "thing"}]
    for entry in tiny_set.data["annotations"]:
        entry["category_id"] = 7
    dataset = _load(tiny_set)
    assert [dataset.image_id(i) for i in range(3)] == [10, 20, 30] and dataset.category_id == 7
    assert dataset.path(0).name == "p1.png" and dataset.original_size(1) == (60, 40)


def _changed(index, **changes):
    def change(data):
        entry = data["annotations"][index]
        entry.update(changes)
        for key in [key for key, value in entry.items() if value is ...]:
            del entry[key]

    return change


BROKEN = {
    "no categories": (lambda d: d.pop("categories"), "no 'categories'"),
    "empty categories": (lambda d: d.update(categories=[]), "categories is empty"),
    "bad category": (lambda d: d.update(categories=[{"name": "x"}]), "entry 0 of categories"),
    "no images": (lambda d: d.pop("images"), "no 'images'"),
    "no annotations": (lambda d: d.pop("annotations"), "no 'annotations'"),
    "annotations not a list": (lambda d: d.update(annotations={}), "not a list"),
    "image without a name": (lambda d: d["images"][1].pop("file_name"), "image 20 has no file_name"),
    "image without an id": (lambda d: d["images"][1].pop("id"), "image number 1 has no id"),
    "image without a size": (lambda d: d["images"][1].update(width=0), "image 20 .* width and height"),
    "image of half a pixel": (lambda d: d["images"][1].update(width=40.5), "image 20 .* width and height"),
    "image of unknown size": (lambda d: d["images"][1].update(width=None), "image 20 .* width and height"),
    "image twice": (lambda d: d["images"].append(d["images"][0]), "image 10 occurs twice"),
    "neither box nor segmentation": (_changed(1, segmentation=None, bbox=None), "annotation 2 has no bbox"),
    "far polygon": (_changed(1, segmentation=[[1, 2, 3, 4, 5, 1e9]]), "annotation 2 has a polygon .* 1e\\+09"),
    "long outline": (_changed(1, segmentation=[[0, 0, 9e5, 9e5] * 9]), "annotation 2 has polygons whose edges"),
    "huge bbox": (_changed(1, bbox=[1, 2, 3, 1e9]), "annotation 2 has a bbox with the number 1e\\+09"),
    "negative area": (_changed(1, area=-5), "annotation 2 has an area .*-5"),
    "huge picture": (lambda d: d["images"][1].update(width=1e6, height=1e6), "image 20 .* pixels"),
    "unknown image": (_changed(1, image_id=99), "annotation 2 belongs to the image 99"),
    "no image": (_changed(1, image_id=...), "annotation 2 belongs to the image None"),
    "listed image": (_changed(1, image_id=[1]), "annotation 2 belongs to the image"),
    "short bbox": (_changed(1, bbox=[1, 2, 3]), "annotation 2 has no bbox"),
    "bbox of words": (_changed(1, bbox=["1", 2, 3, 4]), "annotation 2 has no bbox"),
    "bbox not finite": (_changed(1, bbox=[float("nan"), 2, 3, 4]), "annotation 2 has no bbox"),
    "odd polygon": (_changed(1, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 2 has a malformed polygon"),
    "flat polygon": (_changed(1, segmentation=[1, 2, 3, 4, 5, 6]), "annotation 2 .* it needs a list of polygons"),
    "polygon of words": (_changed(1, segmentation=[["a"] * 6]), "annotation 2 has a malformed polygon"),
    "infinite polygon": (_changed(1, segmentation=[[1e300] * 6]), "annotation 2 has a malformed polygon"),
    "string segmentation": (_changed(1, segmentation="x"), "annotation 2 has a segmentation that"),
    "RLE of another size": (_changed(1, segmentation={"size": [5, 5], "counts": [25]}), "annotation 2 has an RLE for"),
    "RLE too short": (_changed(1, segmentation={"size": [60, 40], "counts": [25]}), "annotation 2 has an RLE that covers"),
    "crowd of two": (_changed(1, iscrowd=2), "annotation 2 has an iscrowd"),
    "no id": (_changed(1, id=[]), "annotation number 1 has no id"),
    "not a mapping": (lambda d: d["annotations"].append(5), "annotation number 3 is not a mapping"),
    "no pictures at all": (lambda d: d.update(images=[], annotations=[]), "it has no images"),
    "nothing to train on": (lambda d: d.update(annotations=[]), "no picture has a usable instance"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_malformed_annotations_give_one_line_that_names_the_file(tiny_set, case):
    change, words = BROKEN[case]
    _load(tiny_set)  # whole before it is broken
    change(tiny_set.data)
    with pytest.raises(UserError, match=words) as raised:
        _load(tiny_set)
    assert "set.json" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"\xff\xfe\x00", b"[1, 2]", b'"images"', b"{" * 100000, b"[" * 100000]
)
def test_files_that_are_no_coco_json(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="a.json") as raised:
        CocoDataset(tmp_path, path, InputConfig(), training=True)
    assert "\n" not in str(raised.value)


def test_missing_json_is_a_user_error(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="cannot read the annotations"):
            CocoDataset(tmp_path, path, InputConfig(), training=False)


def test_pictures_that_do_not_fit_the_json(tiny_set):
    dataset = _load(tiny_set)
    (tiny_set.images / "p1.png").write_bytes(b"nothing")
    (tiny_set.images / "p2.png").unlink()
    Image.new("RGB", (40, 60)).save(tiny_set.images / "p3.png")
    for index, words in enumerate(["p1.png.*not an image", "p2.png: no such file", "p3.png is 40x60, but image 30"]):
        with pytest.raises(UserError, match=words):
            dataset.example(index)


REAL = [("ecssd", (593, 638), (100, 106)), ("coco_salient", (155, 331), (30, 69))]


@pytest.mark.parametrize("name, train, val", REAL)
def test_real_data(shared, name, train, val):
    folder = shared / "data" / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    for part, (pictures, instances) in (("train", train), ("val", val)):
        dataset = CocoDataset(folder / "imgs", folder / f"{part}.json", InputConfig(), training=False)
        entries = json.loads((folder / f"{part}.json").read_text())
        assert (len(dataset), len(entries["annotations"])) == (pictures, instances)
    counts = [len(record.instances) for record in dataset._records]
    assert sum(counts) == instances
    image, targets = dataset.example(int(np.argmax(counts)), flip=True)
    masks = project_masks(targets, np.arange(len(targets)), targets.boxes)
    assert len(masks) == len(targets) > 0 and (masks.mean(axis=(1, 2)) > 0.15).all()


HARMLESS = {
    "null area": _changed(1, area=None),
    "null iscrowd": _changed(1, iscrowd=None),
    "float ids": lambda d: [entry.update(id=float(entry["id"])) for entry in d["images"] + d["annotations"]],
    "ids of annotations as strings": _changed(1, image_id="20"),
    "no id of an annotation": _changed(1, id=...),
    "float width": lambda d: d["images"][1].update(width=40.0),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless_forms_are_read_alike(tiny_set, case):
    from jrdp.data.annotations import parse_annotations

    expected = parse_annotations(tiny_set.data, "set")
    HARMLESS[case](tiny_set.data)
    found = parse_annotations(tiny_set.data, "set")
    assert found.images == expected.images and len(found.instances) == len(expected.instances)
    for one, other in zip(found.instances, expected.instances):
        assert (one.image_id, one.xywh, one.crowd) == (other.image_id, other.xywh, other.crowd)


def test_string_ids_and_boxes_from_shapes(tiny_set):
    for entry in tiny_set.data["images"]:
        entry["id"] = f"p{entry['id']}"
    for entry in tiny_set.data["annotations"]:
        entry.update(image_id=f"p{entry['image_id']}", bbox=None, segmentation=[[4, 5, 24, 5, 24, 35, 4, 35]])
    dataset = _load(tiny_set)
    assert [dataset.image_id(i) for i in range(3)] == ["p10", "p20", "p30"]
    from jrdp.data.annotations import parse_annotations

    assert {i.xywh for i in parse_annotations(tiny_set.data, "set").instances} == {(4.0, 5.0, 20.0, 30.0)}


def test_boxes_of_another_convention_are_refused_where_most_have_it(tiny_set, make_annotation):
    tiny_set.data["annotations"] = [make_annotation(number, 10 + 10 * (number % 3)) for number in range(1, 17)]
    CocoDataset(*tiny_set.write(), InputConfig(), training=True)
    for entry in tiny_set.data["annotations"][:7]:
        entry["bbox"] = [4, 4, 50, 50]  # a few mistakes are let through: `jrdp data check` names them
    CocoDataset(*tiny_set.write(), InputConfig(), training=True)
    for entry in tiny_set.data["annotations"][:9]:
        entry["bbox"] = [0.1, 0.1, 0.5, 0.5]
    with pytest.raises(UserError, match=r"9 of 16 boxes do not fit their masks or pictures, first that of annotation 1; .*width, height"):
        CocoDataset(*tiny_set.write(), InputConfig(), training=True)


@pytest.mark.parametrize(
    "content, words",
    [
        ({"shapes": [], "imagePath": "a.jpg"}, "labelme"),
        ([{"image_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}], "a list of results"),
        ([{"data": {}, "annotations": []}], "Label Studio"),
        ({"_via_img_metadata": {}}, "VGG Image Annotator"),
        ({"type": "FeatureCollection"}, "GeoJSON"),
        ({"images": [], "categories": [], "annotations": [{"segments_info": []}]}, "panoptic"),
    ],
)
def test_files_of_other_programs_are_named(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"a.json is not a COCO json: it looks like .*{words}"):
        CocoDataset(tmp_path, path, InputConfig(), training=True)


def test_what_is_left_out_of_training_is_said(tiny_set, make_annotation):
    entries = tiny_set.data["annotations"]
    entries[0]["iscrowd"] = 1
    entries.append(make_annotation(9, 20, segmentation=[]))
    dataset = CocoDataset(*tiny_set.write(), InputConfig(), training=True)
    assert len(dataset) == 2 and dataset.note.endswith(
        "left out: 1 pictures without a usable instance, 1 instances without shape or of at most one pixel, 1 crowds"
    )
    for entry in entries:
        entry["iscrowd"] = 1  # as some exporters write every RLE
    with pytest.raises(UserError, match="no picture has a usable instance .iscrowd is 1 for 4 of 4"):
        CocoDataset(*tiny_set.write(), InputConfig(), training=True)


def test_missing_pictures_are_found_before_the_run(tiny_set):
    from jrdp.config import load_config
    from jrdp.data.catalog import load_dataset

    images, annotations = tiny_set.write()
    assert load_dataset([f"{images}:{annotations}"], load_config(), training=True).note is None
    (images / "p2.png").unlink()
    for training in (True, False):
        with pytest.raises(UserError, match="1 of 3 pictures are not there, first .*p2.png"):
            load_dataset([f"{images}:{annotations}"], load_config(), training=training)
