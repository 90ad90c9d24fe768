"""Conversion of instance maps: every pixel survives the round trip with RLE."""

import json

import numpy as np
import pytest
from command_line import run_jrdp
from PIL import Image
from pycocotools.coco import COCO

from jrdp.config import InputConfig
from jrdp.dataset_tools.check import check_dataset
from jrdp.data.coco import CocoDataset
from jrdp.dataset_tools.instance_maps import convert_instance_maps, read_instances
from jrdp.errors import UserError


def _labels(seed, height=40, width=60, holes=True):
    y, x = np.mgrid[:height, :width]
    random = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    labels[(x - 18) ** 2 + (y - 20) ** 2 < 150] = 3
    labels[(x - 40) ** 2 / 2 + (y - 15) ** 2 < 90] = 7
    labels[30:38, 44:58] = 200
    if holes:
        labels[18:22, 15:19] = 0
        labels[random.random(labels.shape) < 0.02] = 0
    return labels


@pytest.fixture
def folders(tmp_path):
    """Three pictures: masks can be put into `masks`."""
    images, masks = tmp_path / "imgs", tmp_path / "masks"
    images.mkdir(), masks.mkdir()
    for name in ("a.jpg", "b.png", "c.jpg"):
        Image.new("RGB", (60, 40), "grey").save(images / name)
    return images, masks


def _masks_in(path, file_name):
    truth = COCO(str(path))
    (image_id,) = [image["id"] for image in truth.imgs.values() if image["file_name"] == file_name]
    return [truth.annToMask(annotation) for annotation in truth.imgToAnns[image_id]]


def _assert_same(found, labels, values=(3, 7, 200)):
    assert len(found) == len(values)
    for mask, value in zip(found, values):
        assert np.array_equal(mask, labels == value)  # mask IoU is exactly 1


def _palette(labels):
    image = Image.fromarray(labels, "P")
    image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    return image


def _colours(labels):
    table = np.zeros((256, 3), np.uint8)
    table[[3, 7, 200]] = [[0, 0, 128], [0, 128, 0], [128, 0, 0]]
    return Image.fromarray(table[labels])


INDEX_MASKS = {
    "grey": Image.fromarray,
    "palette": _palette,
    "16 bits": lambda labels: Image.fromarray(labels.astype(np.uint16) * 250),
    "colours": _colours,
    "colours with alpha": lambda labels: _colours(labels).convert("RGBA"),
}


@pytest.mark.parametrize("kind", INDEX_MASKS)
def test_index_masks_survive_rle(folders, tmp_path, kind):
    images, masks = folders
    labels = {name: _labels(seed) for seed, name in enumerate("abc")}
    for name, values in labels.items():
        INDEX_MASKS[kind](values).save(masks / f"{name}.png")
    result = convert_instance_maps(masks, images, tmp_path / "out.json")
    assert (result.pictures, result.instances) == (3, 9) and "3 pictures, 9 instances" in result.text()
    for file_name in ("a.jpg", "b.png", "c.jpg"):
        _assert_same(_masks_in(tmp_path / "out.json", file_name), labels[file_name[0]])
    assert check_dataset(f"{images}:{tmp_path / 'out.json'}", ".").ok
    dataset = CocoDataset(images, tmp_path / "out.json", InputConfig(min_size=40, max_size=60), training=True)
    assert np.array_equal(dataset[1].targets.bitmaps[2], labels["b"] == 200)


def test_polygons_are_exact_without_holes_and_say_so_with_them(folders, tmp_path):
    images, masks = folders
    whole = _labels(0, holes=False)
    Image.fromarray(whole).save(masks / "a.png")
    result = convert_instance_maps(masks, images, tmp_path / "out.json", segmentation="polygons")
    _assert_same(_masks_in(tmp_path / "out.json", "a.jpg"), whole)
    assert result.filled_holes == 0 and result.without_masks == ["b.png", "c.jpg"] and "b.png" in result.text()
    annotation = json.loads((tmp_path / "out.json").read_text())["annotations"][0]
    assert isinstance(annotation["segmentation"][0], list) and annotation["area"] == (whole == 3).sum()

    holed = whole.copy()
    holed[18:22, 15:19] = 0
    Image.fromarray(holed).save(masks / "a.png")
    result = convert_instance_maps(masks, images, tmp_path / "out.json", segmentation="polygons")
    assert result.filled_holes == 1 and "1 instances have holes" in result.text()
    _assert_same(_masks_in(tmp_path / "out.json", "a.jpg"), whole)  # the hole is filled


def test_folders_of_masks_keep_overlaps(folders, tmp_path):
    images, masks = folders
    folder = masks / "c"
    folder.mkdir()
    first, second = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    first[5:30, 5:40], second[20:38, 25:55] = True, True
    Image.fromarray(first.astype(np.uint8) * 255).save(folder / "0.png")
    Image.fromarray(second.astype(np.uint8)).save(folder / "1.png")  # 0 and 1 instead of 0 and 255
    (folder / "notes.txt").write_text("not a mask")
    result = convert_instance_maps(masks, images, tmp_path / "out.json")
    assert (result.pictures, result.instances) == (1, 2)
    found = _masks_in(tmp_path / "out.json", "c.jpg")
    assert np.array_equal(found[0], first) and np.array_equal(found[1], second)


def _mat(path, stored=(2, "u1"), kind=9, **variables):
    """A .mat file as MATLAB's save -v6 writes it; by default of bytes, (9, "f8") and 6 of doubles."""
    from test_matfile import _matrix

    body = b"".join(_matrix("<", name, np.asarray(value), stored, kind=kind) for name, value in variables.items())
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + body)


def test_mat_files(folders, tmp_path):
    images, masks = folders
    labels = _labels(5)
    _mat(masks / "a.mat", inst=labels, score=np.ones((1, 1)))
    _mat(masks / "b.mat", stack=np.stack([labels == 3, labels == 7], axis=2))
    convert_instance_maps(masks, images, tmp_path / "out.json")
    _assert_same(_masks_in(tmp_path / "out.json", "a.jpg"), labels)
    _assert_same(_masks_in(tmp_path / "out.json", "b.png"), labels, (3, 7))


def test_nan_in_a_mat_file_is_one_line(folders, tmp_path):
    images, masks = folders
    labels = np.where(_labels(5) == 0, np.nan, _labels(5))
    _mat(masks / "a.mat", (9, "f8"), 6, inst=labels)
    with pytest.raises(UserError, match="a.mat holds NaN or infinity: write 0 there"):
        convert_instance_maps(masks, images, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_mat_files_with_a_choice(folders, tmp_path):
    images, masks = folders
    labels = _labels(5)
    _mat(masks / "a.mat", inst=labels, other=np.ones((40, 60)))
    with pytest.raises(UserError, match="2 variables of its picture's size 60x40: inst, other"):
        convert_instance_maps(masks, images, tmp_path / "out.json")
    _assert_same(read_instances(masks / "a.mat", (40, 60), variable="inst"), labels)
    with pytest.raises(UserError, match="no variable 'none'.*inst, other"):
        read_instances(masks / "a.mat", (40, 60), variable="none")
    with pytest.raises(UserError, match="has no variables of its picture's size"):
        read_instances(masks / "a.mat", (41, 60))


def test_ignored_values_and_empty_maps(folders, tmp_path):
    images, masks = folders
    labels = _labels(1)
    Image.fromarray(labels).save(masks / "a.png")
    Image.new("L", (60, 40)).save(masks / "b.png")
    result = convert_instance_maps(masks, images, tmp_path / "out.json", ignore=(200,))
    _assert_same(_masks_in(tmp_path / "out.json", "a.jpg"), labels, (3, 7))
    assert (result.pictures, result.instances, result.without_instances) == (2, 2, ["b.png"])


def test_a_border_that_would_be_an_instance_is_told(folders, tmp_path):
    images, masks = folders
    labels = np.zeros((40, 60), np.uint8)
    labels[3:19, 3:29] = labels[8:37, 33:57] = 255
    labels[6:16, 6:26], labels[11:34, 36:54] = 1, 2
    Image.fromarray(labels).save(masks / "a.png")
    out = tmp_path / "out.json"
    told = convert_instance_maps(masks, images, out).text()
    assert "in 1 of 1 masks with several instances the largest value runs along the others" in told and "--ignore 255" in told
    assert "runs along" not in convert_instance_maps(masks, images, out, ignore=(255,)).text()
    for value in (3, 1):  # a third instance, and one in two parts
        labels[labels == 255] = 0
        labels[20:24, 2:30] = value
        Image.fromarray(labels).save(masks / "a.png")
        assert "runs along" not in convert_instance_maps(masks, images, out).text()


@pytest.fixture
def turned(tmp_path):
    """`turned(6)`: folders of one picture of that EXIF orientation, 6 x 4 in the file, and the labels that are drawn on it upright."""

    def make(orientation):
        images, masks = tmp_path / "turned", tmp_path / "labels"
        images.mkdir(exist_ok=True), masks.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (6, 4), "grey").save(images / "a.jpg", exif=exif)
        labels = np.zeros((6, 4) if orientation >= 5 else (4, 6), np.uint8)
        labels[:2, :3] = 5
        Image.fromarray(labels).save(masks / "a.png")
        return images, masks, labels

    return make


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_masks_of_the_turned_picture(turned, tmp_path, orientation):
    images, masks, labels = turned(orientation)
    out = tmp_path / "out.json"
    said = convert_instance_maps(masks, images, out, upright=True).text()
    _assert_same(_masks_in(out, "a.jpg"), labels, (5,))
    (entry,) = json.loads(out.read_text())["images"]
    assert (entry["height"], entry["width"]) == labels.shape
    line = "1 pictures were turned upright, as their EXIF says: use this json with --set input.exif=apply"
    assert (line in said) == (orientation != 1) and "note" not in said
    report = check_dataset(f"{images}:{out}", ".", upright=True)
    assert report.ok and not report.notes
    if orientation < 5:
        said = convert_instance_maps(masks, images, tmp_path / "other.json").text()
        assert ("note: 1 pictures have an EXIF orientation, which is ignored" in said) == (orientation != 1)
        assert ("--exif apply" in said) == (orientation != 1) and "input.exif" not in said


def test_a_mask_of_the_turned_pictures_size_says_what_to_do(turned, tmp_path):
    images, masks, labels = turned(6)

    def fails(words, **options):
        with pytest.raises(UserError) as raised:
            convert_instance_maps(masks, images, tmp_path / "out.json", **options)
        assert str(raised.value).endswith(words) and type(raised.value) is UserError
        assert not (tmp_path / "out.json").exists()

    hint = " (its EXIF turns it: --exif apply follows that)"
    fails(f"a.png is 4x6, but its picture is 6x4{hint}")
    fails(f"a.png is 4x6, but its picture is 6x4{hint}", soft=True)
    (masks / "a").mkdir()
    (masks / "a.png").rename(masks / "a" / "0.png")
    fails(f"0.png is 4x6, but its picture is 6x4{hint}")
    _mat(masks / "a.mat", inst=labels, score=np.ones((1, 1)))
    fails(f"a.mat has no variables of its picture's size 6x4{hint}")
    fails(f"a.mat has no variable 'inst' of its picture's size; there are: none{hint}", variable="inst")
    fails("a.mat has no variable 'score' of its picture's size; there are: none", variable="score")
    convert_instance_maps(masks, images, tmp_path / "out.json", upright=True)
    _assert_same(_masks_in(tmp_path / "out.json", "a.jpg"), labels, (5,))
    (tmp_path / "out.json").unlink()
    (masks / "a.mat").unlink()
    Image.fromarray(labels).save(masks / "a.png")
    Image.new("RGB", (6, 4)).save(images / "a.jpg")
    fails("a.png is 4x6, but its picture is 6x4 (turned by 90 degrees, and its EXIF does not say so)")
    Image.fromarray(labels.T).save(masks / "a.png")
    assert "EXIF" not in convert_instance_maps(masks, images, tmp_path / "out.json").text()


def test_a_quarter_turn_of_the_files_own_pixels_needs_no_note_and_that_of_a_square_does(turned, tmp_path):
    images, masks, labels = turned(6)
    Image.fromarray(labels.T).save(masks / "a.png")
    assert "EXIF" not in convert_instance_maps(masks, images, tmp_path / "out.json").text()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 6)).save(images / "a.jpg", exif=exif)
    Image.fromarray(np.eye(6, dtype=np.uint8)).save(masks / "a.png")
    assert "note: 1 pictures" in convert_instance_maps(masks, images, tmp_path / "out.json").text()


def test_exif_on_the_command_line(turned, tmp_path, monkeypatch, capsys):
    images, masks, _ = turned(6)
    out = tmp_path / "out.json"

    def run(*options):
        return run_jrdp(monkeypatch, capsys, "data", "convert", masks, images, out, *options)

    assert run("--exif", "yes") == (2, "", "jrdp: error: --exif 'yes' is not ignore or apply\n")
    code, _, error = run("--exif", "ignore")
    assert code == 2 and error.endswith("(its EXIF turns it: --exif apply follows that)\n") and not out.exists()
    code, said, _ = run("--exif", "apply")
    assert code == 0 and "--set input.exif=apply" in said
    assert json.loads(out.read_text())["images"] == [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 6}]


def test_bad_input_names_the_file_and_writes_nothing(folders, tmp_path):
    images, masks = folders
    out = tmp_path / "out.json"

    def fails(words):
        with pytest.raises(UserError, match=words) as raised:
            convert_instance_maps(masks, images, out)
        assert "\n" not in str(raised.value) and not out.exists()

    fails("no picture in .* has a mask")
    Image.new("L", (61, 40), 1).save(masks / "a.png")
    fails("a.png is 61x40, but its picture is 60x40")
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60)).save(masks / "a.png")
    fails("a.png has 2399 different values")
    (masks / "a.png").write_bytes(b"x")
    fails("a.png: it is not an image")
    (masks / "a.png").unlink()
    (masks / "a").mkdir()
    fails("no mask in the folder")
    Image.new("L", (60, 40)).save(masks / "a" / "0.png")
    fails("0.png is empty")
    Image.new("RGB", (60, 40)).save(images / "a.png")
    fails("have the same name")
    for path in images.iterdir():
        path.unlink()
    fails("no pictures")
    with pytest.raises(UserError, match="there is no folder"):
        convert_instance_maps(tmp_path / "none", images, out)
