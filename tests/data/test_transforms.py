"""Preprocessing: bit for bit the released network's input, and one clear line for a bad picture."""

import hashlib
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from jrdp.config import InputConfig
from jrdp.data import transforms
from jrdp.errors import UserError

PICTURES = ["a_480x320", "b_267x400", "c_500x333", "d_320x480"]


def _sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("name", PICTURES)
def test_input_is_bit_exact(golden, name):
    expected = np.load(golden / "r50" / f"infer_{name}.npz")
    image = transforms.read_image(golden / "imgs" / f"{name}.png")
    assert _sha256(np.asarray(image)) == str(expected["decoded_rgb/sha256"])
    config = InputConfig()
    assert _sha256(np.asarray(transforms.resize_image(image, config))) == str(expected["resized_rgb/sha256"])
    prepared = transforms.prepare_image(image, config)
    batch = transforms.batch_images([prepared])
    assert batch.images.shape == tuple(expected["input/shape"])
    assert _sha256(batch.images) == str(expected["input/sha256"])
    assert [list(size) for size in batch.sizes] == expected["input/image_hw"].tolist()
    assert batch.original_sizes == [(image.height, image.width)] and batch.image_ids == [0]
    rgb = transforms.prepare_image(image, InputConfig(channel_order="rgb"))
    assert _sha256(transforms.batch_images([rgb]).images) != str(expected["input/sha256"])


def test_training_batch_is_bit_exact(golden):
    expected = np.load(golden / "r50" / "train.npz")
    images = [
        transforms.prepare_image(transforms.read_image(golden / "imgs" / f"{name}.png"), InputConfig())
        for name in PICTURES
    ]
    batch = transforms.batch_images([image._replace(image_id=i) for i, image in enumerate(images, start=1)])
    assert batch.images.shape == tuple(expected["b1/input/shape"])
    assert _sha256(batch.images) == str(expected["b1/input/sha256"])
    assert batch.image_ids == [1, 2, 3, 4] and len(batch) == 4


def test_resize_rule(golden):
    table = json.loads((golden / "ops.json").read_text())["resize_320_480 (w x h -> [h, w])"]
    for size, expected in table.items():
        width, height = map(int, size.split("x"))
        assert list(transforms.resize_shape(width, height, 320, 480)) == expected, size


def test_resize_rule_survives_threads_of_one_pixel():
    assert transforms.resize_shape(10000, 1, 320, 480) == (1, 480)
    assert transforms.resize_shape(1, 10000, 320, 480) == (480, 1)
    image = Image.new("RGB", (10000, 1), "red")
    assert transforms.prepare_image(image, InputConfig()).size == (1, 480)


def test_flip_mirrors_the_resized_pixels():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 71, 3), dtype=np.uint8))
    straight = transforms.prepare_image(image, InputConfig()).pixels
    flipped = transforms.prepare_image(image, InputConfig(), flip=True).pixels
    assert np.array_equal(flipped, straight[:, :, ::-1]) and not np.array_equal(flipped, straight)
    assert flipped.flags.c_contiguous


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_other_conventions(scale):
    """In float32 at every step, as released."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (320, 320, 3), dtype=np.uint8))
    config = InputConfig(channel_order="rgb", scale=scale, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = transforms.prepare_image(image, config).pixels.transpose(1, 2, 0)
    expected = (np.asarray(image).astype(np.float64) / 255 * scale - config.mean) / config.std
    assert np.allclose(pixels, expected, atol=1e-6)
    one_by_one = np.float32(np.asarray(image)) / np.float32(255) * np.float32(scale)
    assert np.array_equal(pixels, (one_by_one - np.float32(config.mean)) / np.float32(config.std))


def test_a_prepared_picture_knows_its_file(tmp_path):
    Image.new("RGB", (12, 9)).save(tmp_path / "a.png")
    read = transforms.read_image(tmp_path / "a.png")
    assert transforms.prepare_image(read, InputConfig()).file == str(tmp_path / "a.png")
    assert transforms.prepare_image(Image.new("RGB", (12, 9)), InputConfig()).file is None


def test_padding_is_zero_and_right_and_bottom():
    small = transforms.PreparedImage(np.full((3, 33, 20), 7, np.float32), (66, 40))
    large = transforms.PreparedImage(np.full((3, 10, 64), 9, np.float32), (10, 64))
    batch = transforms.batch_images([small, large])
    assert batch.images.shape == (2, 3, 64, 64) and batch.images.dtype == np.float32
    assert (batch.images[0, :, :33, :20] == 7).all() and batch.images[0].sum() == 7 * 3 * 33 * 20
    assert batch.sizes == [(33, 20), (10, 64)] and batch.original_sizes == [(66, 40), (10, 64)]
    assert transforms.batch_images([small], shape=(96, 128)).images.shape == (1, 3, 96, 128)
    with pytest.raises(ValueError):
        transforms.batch_images([])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_picture_modes(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (12, 9), (200, 200, 200)).convert(mode).save(path)
    image = transforms.read_image(path)
    assert image.mode == "RGB" and image.size == (12, 9)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".webp", ".jfif"])
def test_colours_survive_palettes_alpha_and_cmyk(tmp_path, suffix):
    colours = np.array([(250, 10, 20), (10, 240, 30), (0, 0, 0), (255, 255, 255)], np.uint8)
    pixels = colours[np.arange(16 * 16).reshape(16, 16) // 8 % 4 // 2 * 2 + (np.arange(16) // 8)[:, None] % 2]
    picture = Image.fromarray(pixels)
    forms = {
        ".png": ["P", "RGBA", "PA"], ".gif": ["P"], ".tif": ["CMYK", "RGBA", "P"], ".webp": ["RGBA"], ".jfif": ["CMYK"],
    }[suffix]
    for form in forms:
        if form in ("P", "PA"):
            shown = picture.quantize(8)
        elif form == "RGBA":  # what is transparent has colours too: they count, as released
            shown = picture.copy()
            shown.putalpha(Image.fromarray(np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))))
        else:
            shown = picture.convert(form)
        options = {".png": {"transparency": 0} if form == "PA" else {}, ".webp": {"lossless": True, "exact": True}}
        shown.save(tmp_path / f"x{suffix}", "JPEG" if suffix == ".jfif" else None, **options.get(suffix, {}))
        read = np.asarray(transforms.read_image(tmp_path / f"x{suffix}")).astype(int)
        apart = np.abs(read - pixels)
        assert np.median(apart) <= 2 and apart.mean() < (12 if suffix == ".jfif" else 2), (form, apart.mean())


def test_exif_rotation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "rotated.jpg", exif=exif)
    assert transforms.read_image(tmp_path / "rotated.jpg").size == (20, 10)


def _noise(path):
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (120, 160, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _bomb(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = _chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + data + _chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("text.jpg", b"this is not a picture", "not an image"),
        ("empty.png", b"", "it is empty"),
        ("warned_about.png", _bomb(10000, 10000), "limit"),
        ("bomb.png", _bomb(60000, 60000), "twice the limit"),
    ],
    ids=["text", "empty", "large", "bomb"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_pictures_give_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as raised:
        transforms.read_image(path)
    assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.bmp", "x.gif", "x.webp"])
def test_truncated_pictures_are_errors(tmp_path, name):
    data = _noise(tmp_path / name)
    for share in (0.02, 0.3, 0.6, 0.95):
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UserError, match="cannot read image") as raised:
            transforms.read_image(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_pictures_are_never_filled_up(tmp_path, monkeypatch):
    data = _noise(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UserError, match="LOAD_TRUNCATED_IMAGES"):
        transforms.read_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    "error, words",
    [(OSError(13, "Permission denied"), "Permission denied"), (SyntaxError("not a\nTIFF"), "not a TIFF"), (MemoryError(), "MemoryError")],
)
def test_what_a_decoder_says_is_told_in_one_line(tmp_path, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    _noise(tmp_path / "x.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match=f"^cannot read image .*x.png: {words}$"):
        transforms.read_image(tmp_path / "x.png")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        transforms.read_image(tmp_path / "nothing.jpg")
    with pytest.raises(UserError, match="folder"):
        transforms.read_image(tmp_path)


@pytest.mark.parametrize("there", [False, True])
def test_what_can_be_read_is_what_there_is_a_decoder_for(there, monkeypatch):
    monkeypatch.setattr(transforms, "can_read_heic", lambda: there)
    Image.init()
    assert transforms.is_readable(".heic") == transforms.is_readable(".HEIF") == there
    assert transforms.is_readable(".JPG") and transforms.is_readable(".png")
    assert not transforms.is_readable(".pdf") and not transforms.is_readable(".txt")  # Pillow only writes the first
