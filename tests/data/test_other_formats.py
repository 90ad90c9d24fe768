"""Pictures that Pillow alone does not read: telephones' HEIC, and one line for what is none."""

from __future__ import annotations

import gzip

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from jrdp.data import other_formats
from jrdp.data.folders import pictures_in
from jrdp.data.transforms import exif_orientation, read_image
from jrdp.errors import UserError


def smooth_picture() -> Image.Image:
    """48x32, brighter to the right and redder to the bottom: what is turned or mirrored cannot be mistaken."""
    x, y = np.meshgrid(np.linspace(0, 255, 48), np.linspace(0, 255, 32))
    return Image.fromarray(np.stack([y, x, np.zeros_like(x)], axis=2).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("upright", [True, False])
def test_heic_is_read_upright_and_once(tmp_path, orientation, upright):
    picture, exif = smooth_picture(), Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "reference.png", exif=exif)
    pillow_heif.from_pillow(picture).save(tmp_path / "a.heic", exif=exif.tobytes(), quality=95)
    found = read_image(tmp_path / "a.heic", upright=upright)
    wanted = read_image(tmp_path / "reference.png", upright=True)
    assert found.mode == "RGB" and found.size == wanted.size and exif_orientation(found) == 1
    assert np.abs(np.asarray(found, np.int32) - np.asarray(wanted, np.int32)).max() < 12


def test_heic_leaves_pillow_as_it_is(tmp_path):
    pillow_heif.from_pillow(smooth_picture()).save(tmp_path / "a.heic")
    before = set(Image.OPEN)
    read_image(tmp_path / "a.heic")
    assert set(Image.OPEN) == before and "HEIF" not in before
    assert [path.name for path in pictures_in(tmp_path).pictures] == ["a.heic"]


def test_large_heic_is_refused_before_it_is_decoded(monkeypatch, tmp_path):
    pillow_heif.from_pillow(smooth_picture()).save(tmp_path / "a.heic")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(pillow_heif.HeifFile, "to_pillow", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match="48x32 pixels are more than the limit of 1000"):
        read_image(tmp_path / "a.heic")


def test_without_pillow_heif_the_line_says_what_to_install(monkeypatch, tmp_path):
    pillow_heif.from_pillow(smooth_picture()).save(tmp_path / "a.heic")
    monkeypatch.setattr(other_formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cannot read image .*a\.heic: it is HEIC: `pip install 'jrdp\[heic\]'`"):
        read_image(tmp_path / "a.heic")


def test_damaged_heic_is_one_line(tmp_path):
    pillow_heif.from_pillow(smooth_picture()).save(tmp_path / "a.heic")
    content = (tmp_path / "a.heic").read_bytes()
    for length in (16, len(content) // 2, len(content) - 20):
        (tmp_path / "b.heic").write_bytes(content[:length])
        with pytest.raises(UserError, match="cannot read image"):
            read_image(tmp_path / "b.heic")


def float_tiff() -> bytes:
    return cv2.imencode(".tiff", np.random.default_rng(0).random((8, 8, 3)).astype(np.float32))[1].tobytes()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><title>Not found</title>", "a web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "XML"),
        (gzip.compress(b"x"), "gzip: unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"%PDF-1.7", "PDF"),
        (float_tiff(), "TIFF, or a camera's raw file"),
        (b"\x00\x00\x00\x20ftypisom", "it is a video"),
        (b"\xff\x0a\x00\x00", "JPEG XL"),
        (b"abc", "not an image that Pillow knows"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_said(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=f"^cannot read image .*a.jpg: .*{words}"):
        read_image(tmp_path / "a.jpg")
