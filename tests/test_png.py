"""PNG files: every pixel as Pillow and OpenCV read it, who made them, and how large they are."""

import cv2
import numpy as np
import pytest
from PIL import Image

from jrdp import png, visualize

SHAPES = [(1, 1), (1, 2), (1, 70001), (70001, 1), (33, 7), (40, 61)]


def read(path):
    """(Pillow's picture with its pixels loaded, OpenCV's array as it lies in the file)."""
    with Image.open(path) as image:
        image.verify()  # the checksum of every chunk
    image = Image.open(path)
    image.load()
    return image, cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("shape", SHAPES)
def test_photographs(tmp_path, shape):
    random = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for picture in (random, random[::-1, ::-1], np.asfortranarray(random), random // 64 * 64, np.zeros_like(random)):
        (tmp_path / "a.png").write_bytes(png.encode_png(picture))
        pillow, opencv = read(tmp_path / "a.png")
        assert pillow.mode == "RGB" and pillow.text == {"Software": "jrdp"}
        np.testing.assert_array_equal(np.asarray(pillow), picture)
        np.testing.assert_array_equal(opencv[:, :, ::-1], picture)
        assert png.MADE_BY in (tmp_path / "a.png").read_bytes()[:4096]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, ">u2"])
def test_grey(tmp_path, shape, kind):
    picture = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape, endpoint=True, dtype=np.dtype(kind).newbyteorder("="))
    picture = picture.astype(kind)
    (tmp_path / "a.png").write_bytes(png.encode_png(picture))
    pillow, opencv = read(tmp_path / "a.png")
    assert pillow.mode == ("L" if kind is np.uint8 else "I;16") and pillow.text == {"Software": "jrdp"}
    np.testing.assert_array_equal(np.asarray(pillow), picture)
    np.testing.assert_array_equal(opencv, picture)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 5, 256])
def test_indices(tmp_path, shape, size):
    random = np.random.default_rng(0)
    picture, palette = random.integers(0, size, shape, np.uint8), random.integers(0, 256, (size, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(png.encode_png(picture, palette))
    pillow, opencv = read(tmp_path / "a.png")
    assert pillow.mode == "P" and pillow.text == {"Software": "jrdp"}
    np.testing.assert_array_equal(np.asarray(pillow), picture)
    np.testing.assert_array_equal(np.asarray(pillow.convert("RGB")), palette[picture])
    np.testing.assert_array_equal(opencv[:, :, ::-1], palette[picture])


def test_a_file_is_hardly_larger_than_pillows(tmp_path):
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8), (0, 0), 6)
    Image.fromarray(photo).save(tmp_path / "pillow.png")
    assert len(png.encode_png(photo)) < 1.4 * (tmp_path / "pillow.png").stat().st_size < 1.4 * photo.size
    index = np.zeros((300, 400), np.uint8)
    cv2.circle(index, (200, 150), 100, 3, -1)
    palette = visualize.colors(256)
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "index.png")
    assert len(png.encode_png(index, palette)) < 2 * (tmp_path / "index.png").stat().st_size


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 5), (2, 2, 4), (2, 2, 1), (4,), (1, 2, 2, 3)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(ValueError, match="cannot be written as PNG"):
        png.encode_png(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("kind", [bool, np.int8, np.int32, np.float32])
def test_other_numbers_are_refused(kind):
    for shape in ((2, 2), (2, 2, 3)):
        with pytest.raises(ValueError, match="cannot be written as PNG"):
            png.encode_png(np.zeros(shape, kind))


def test_a_palette_is_for_8_bits():
    with pytest.raises(ValueError, match="cannot be written as PNG"):
        png.encode_png(np.zeros((2, 2), np.uint16), visualize.colors(4))


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3)])
def test_nothing_is_written_of_what_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="cannot be written as PNG"):
        visualize.save_image(np.zeros(shape, np.uint8), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
