"""Pictures as cameras and scanners write them: turned by EXIF, more than 8 bits, suffixes beside .jpg."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from jrdp.data.transforms import PICTURE_SUFFIXES, decoded, exif_orientation, is_readable, read_image
from jrdp.dataset_tools.check import check_dataset
from jrdp.engine.pictures import list_pictures
from jrdp.errors import UserError
from jrdp.files import write_json


def save(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation(tmp_path, orientation, suffix):
    path = tmp_path / f"a{suffix}"
    pixels = save(path, orientation)
    upright = read_image(path, upright=True)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(np.asarray(upright), np.asarray(expected))
    if suffix == ".png":  # Pillow itself turns a TIFF
        assert np.array_equal(np.asarray(read_image(path)), pixels)
        assert bool(upright.info.get("turned")) == (orientation != 1)
    assert upright.size == ((4, 6) if orientation >= 5 else (6, 4))


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path, orientation):
    pixels = save(tmp_path / "a.png", orientation)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png", upright=True)), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    small = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(small.astype(np.uint16) * 257).save(tmp_path / f"a{suffix}")
    assert np.array_equal(np.asarray(read_image(tmp_path / f"a{suffix}"))[:, :, 1], small)


def test_sixteen_bits_become_the_nearest_grey(tmp_path):
    greys = np.arange(1, 256)
    middle = 257 * greys - 128  # the first number that is nearer to a grey, 257 times its 8 bits, than to the one before it
    Image.fromarray(np.stack([middle - 1, middle]).astype(np.uint16)).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png"))[:, :, 1], [greys - 1, greys])


def write_tiff(path, values, bits, photometric):
    """A grey TIFF of one strip, little-endian, not compressed; rows of 12 bits are packed."""
    height, width = values.shape
    data = values.astype("<u2").tobytes()
    if bits == 12:
        data = b"".join(int("".join(f"{value:012b}" for value in row), 2).to_bytes(width * 12 // 8, "big") for row in values.tolist())
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    folder = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + folder)


@pytest.mark.parametrize("bits, photometric", [(12, 1), (16, 1), (16, 0)])
def test_a_tiff_says_what_is_white(tmp_path, bits, photometric):
    """By its own depth and direction; a dark picture stays dark."""
    small = np.arange(256, dtype=np.uint16).reshape(16, 16) // 4
    white = 2**bits - 1
    values = (small.astype(np.uint32) * white + 127) // 255
    write_tiff(tmp_path / "a.tiff", values if photometric else white - values, bits, photometric)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.tiff"))[:, :, 1], small)


@pytest.mark.parametrize("kind, words", [(np.float32, "floating-point"), (np.int32, "32-bit")])
def test_pixels_without_a_range_are_refused(tmp_path, kind, words):
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=words):
        read_image(tmp_path / "a.tiff")


def test_folders_give_every_picture_that_pillow_can_read_and_count_the_others(tmp_path, capsys):
    for suffix in PICTURE_SUFFIXES:
        (tmp_path / f"a{suffix}").touch()
    left_out = sorted(suffix for suffix in PICTURE_SUFFIXES if not is_readable(suffix))
    assert {".jfif", ".jpe", ".gif", ".jpg"} <= {path.suffix for path in list_pictures([tmp_path])}
    assert len(list_pictures([tmp_path])) == len(PICTURE_SUFFIXES) - len(left_out)
    said = capsys.readouterr().err
    assert all(suffix in said for suffix in left_out)


def test_check_counts_turned_pictures_of_the_same_size(tmp_path):
    (tmp_path / "imgs").mkdir()
    names = ["one.png", "three.png"]
    for name, orientation in zip(names, (1, 3)):
        save(tmp_path / "imgs" / name, orientation)
    images = [{"id": i + 1, "file_name": name, "width": 6, "height": 4} for i, name in enumerate(names)]
    square = {"category_id": 1, "iscrowd": 0, "area": 4, "bbox": [1, 1, 2, 2]}
    outline = [[1, 1, 3, 1, 3, 3, 1, 3]]
    annotations = [{**square, "id": i, "image_id": i, "segmentation": outline} for i in (1, 2)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "salient"}]}
    write_json(tmp_path / "a.json", content)
    report = check_dataset(f"{tmp_path / 'imgs'}:{tmp_path / 'a.json'}", ".")
    assert report.ok and "1 pictures have an EXIF orientation" in report.text()


def test_annotations_of_the_turned_picture(tmp_path):
    """The hint names the setting, and with it the set is checked and read as it is annotated."""
    from jrdp.config import InputConfig
    from jrdp.data.coco import CocoDataset

    (tmp_path / "imgs").mkdir()
    save(tmp_path / "imgs" / "a.png", 6)  # 6 x 4 in the file, 4 x 6 for viewers
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 4, 0, 4]]}
    images = [{"id": 1, "file_name": "a.png", "width": 4, "height": 6}]
    write_json(tmp_path / "a.json", {"images": images, "annotations": [annotation], "categories": [{"id": 1}]})
    place = (tmp_path / "imgs", tmp_path / "a.json")
    name = f"{place[0]}:{place[1]}"
    assert "--set input.exif=apply" in check_dataset(name, ".").problems[0]
    report = check_dataset(name, ".", upright=True)
    assert report.ok and not report.notes
    with pytest.raises(UserError, match="--set input.exif=apply"):
        CocoDataset(*place, InputConfig(), training=True)[0]
    assert CocoDataset(*place, InputConfig(exif="apply"), training=True)[0].image.original_size == (6, 4)
    save(place[0] / "a.png", 1)
    assert "its EXIF does not say so" in check_dataset(name, ".").problems[0]


def test_damaged_exif_is_upright():
    class Damaged:
        def getexif(self):
            raise SyntaxError("not a TIFF file")

    assert exif_orientation(Damaged()) == 1
    picture = Image.new("RGB", (4, 3))
    picture.getexif()[0x0112] = 9
    assert exif_orientation(picture) == 1
    picture.getexif()[0x0112] = 6
    assert exif_orientation(picture) == 6


def test_a_decoder_that_reads_one_frame_alone_tells_of_no_other():
    picture = Image.new("RGB", (4, 3))
    picture.format = "WEBP"
    assert not decoded(picture, upright=False).info.get("first_of")


def test_frames_and_pages_after_the_first_are_told(tmp_path):
    frames = [Image.new("RGB", (20, 10), (value, 0, 0)) for value in (10, 120, 240)]
    for suffix in ("gif", "webp", "png", "tif"):
        one, many = tmp_path / f"one.{suffix}", tmp_path / f"many.{suffix}"
        frames[0].save(one)
        frames[0].save(many, save_all=True, append_images=frames[1:])
        pictures = [read_image(path) for path in (one, many)]
        assert [bool(picture.info.get("first_of")) for picture in pictures] == [False, True], suffix
        assert np.abs(np.asarray(pictures[0]).astype(int) - np.asarray(pictures[1])).max() < 12, suffix
