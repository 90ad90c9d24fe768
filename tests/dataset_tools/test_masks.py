"""Mask pictures that look like index maps and are none, and those that are in spite of their names or channels."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

from jrdp.dataset_tools.instance_maps import convert_instance_maps, read_instances
from jrdp.errors import UserError

SIZE = (60, 40)


def disc(x=30, y=20, radius=10):
    columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def grey(mask, value=255):
    return Image.fromarray(mask.astype(np.uint8) * value)


@pytest.fixture
def folders(tmp_path):
    images, masks = tmp_path / "imgs", tmp_path / "masks"
    images.mkdir(), masks.mkdir()
    Image.new("RGB", SIZE, "grey").save(images / "a.jpg")
    return images, masks


def smoothed(mask):
    return grey(mask).filter(ImageFilter.GaussianBlur(1))


def scaled(mask):
    return grey(mask).resize((30, 20), Image.BILINEAR).resize(SIZE, Image.BILINEAR)


def one_step(mask):
    """A single grey between white and black, as drawing programs put along edges."""
    pixels = mask.astype(np.uint8) * 255
    inner = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    pixels[mask & ~inner] = 128
    return Image.fromarray(pixels)


def coloured(mask):
    pixels = np.zeros((*mask.shape, 3), np.uint8)
    pixels[mask] = (200, 40, 90)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1))


@pytest.mark.parametrize("make", [smoothed, scaled, one_step, coloured])
def test_soft_edges_are_refused_and_taken_as_one_instance_on_request(folders, tmp_path, make):
    images, masks = folders
    make(disc()).save(masks / "a.png")
    with pytest.raises(UserError, match="a.png is no instance map: .* along edges only.*--soft"):
        convert_instance_maps(masks, images, tmp_path / "o.json")
    assert not (tmp_path / "o.json").exists()
    (found,) = read_instances(masks / "a.png", SIZE[::-1], soft=True)
    assert (found & disc()).sum() / (found | disc()).sum() > 0.85
    assert convert_instance_maps(masks, images, tmp_path / "o.json", soft=True).instances == 1


def test_a_photograph_is_no_mask(folders, tmp_path, golden):
    images, masks = folders
    photo = next((golden / "imgs").glob("*.png"))
    picture = Image.open(photo).convert("L").resize(SIZE)
    picture.save(masks / "a.png")
    for soft, words in ((False, "values.*--soft"), (True, "is no mask: .* neither bright nor dark")):
        with pytest.raises(UserError, match=words):
            convert_instance_maps(masks, images, tmp_path / "o.json", soft=soft)
    (masks / "a.png").unlink()
    (masks / "a").mkdir()
    picture.save(masks / "a" / "0.png")
    with pytest.raises(UserError, match="0.png is no mask"):
        convert_instance_maps(masks, images, tmp_path / "o.json")


def test_index_maps_with_thin_and_touching_instances_are_no_soft_edges(folders):
    _, masks = folders
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[5:35, 5:30], labels[5:35, 30:55] = 1, 2  # touching
    labels[2, 2:8] = 3  # a line
    labels[38, 40], labels[20, 15] = 4, 5  # a pixel each, one inside of another instance
    Image.fromarray(labels).save(masks / "a.png")
    assert [int(mask.sum()) for mask in read_instances(masks / "a.png", SIZE[::-1])] == [749, 750, 6, 1, 1]


@pytest.mark.parametrize("colour", ["white", "black", "photograph"])
def test_a_shape_in_the_alpha_channel(folders, colour):
    _, masks = folders
    pixels = np.random.default_rng(0).integers(1, 255, (*SIZE[::-1], 4), np.uint8)
    if colour != "photograph":
        pixels[..., :3] = 255 if colour == "white" else 0
    pixels[..., 3] = disc() * 255
    Image.fromarray(pixels).save(masks / "a.png")
    with pytest.raises(UserError, match="alpha channel with another shape than its colours.*--soft"):
        read_instances(masks / "a.png", SIZE[::-1])
    assert np.array_equal(read_instances(masks / "a.png", SIZE[::-1], soft=True)[0], disc())
    folder = masks / "b"
    folder.mkdir()
    (masks / "a.png").rename(folder / "0.png")
    assert np.array_equal(read_instances(folder, SIZE[::-1])[0], disc())


def test_a_transparent_background_does_not_hide_an_index_map(folders):
    _, masks = folders
    pixels = np.zeros((*SIZE[::-1], 4), np.uint8)
    pixels[disc(15)], pixels[disc(45)] = (255, 0, 0, 255), (0, 255, 0, 255)
    Image.fromarray(pixels).save(masks / "a.png")
    found = read_instances(masks / "a.png", SIZE[::-1])
    assert np.array_equal(found[0], disc(45)) and np.array_equal(found[1], disc(15))


def test_jpeg_masks_need_soft(folders, tmp_path):
    images, masks = folders
    grey(disc()).save(masks / "a.JPG")
    with pytest.raises(UserError, match="a.JPG is stored with loss.*--soft"):
        convert_instance_maps(masks, images, tmp_path / "o.json")
    (found,) = read_instances(masks / "a.JPG", SIZE[::-1], soft=True)
    assert (found ^ disc()).sum() < 8


DEPTHS = {"1": 1, "L": 7, "P": 3, "I;16": 4000}
KINDS = [(mode, suffix) for mode in DEPTHS for suffix in (".PNG", ".png", ".Tif", ".bmp")]


@pytest.mark.parametrize("mode, suffix", [kind for kind in KINDS if kind != ("I;16", ".bmp")])  # BMP has no 16 bits
def test_suffixes_and_depths(folders, tmp_path, suffix, mode):
    images, masks = folders
    value = DEPTHS[mode]
    if mode == "I;16":
        picture = Image.fromarray(disc().astype(np.uint16) * value)
    else:
        picture = grey(disc(), value)
        if mode == "P":
            picture.putpalette(list(range(256)) * 3)
        elif mode == "1":
            picture = picture.point(lambda x: 255 * bool(x), "1")
    picture.save(masks / f"a{suffix}")
    assert convert_instance_maps(masks, images, tmp_path / "o.json").instances == 1
    assert np.array_equal(read_instances(masks / f"a{suffix}", SIZE[::-1])[0], disc())


def test_16_bit_masks_in_a_folder_are_not_clipped(folders):
    _, masks = folders
    (masks / "a").mkdir()
    values = np.full(SIZE[::-1], 300, np.uint16)  # clipped at 255 it would be white
    values[disc()] = 65535
    Image.fromarray(values).save(masks / "a" / "0.png")
    assert np.array_equal(read_instances(masks / "a", SIZE[::-1])[0], disc())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_keep_all_of_them(folders, suffix, channels):
    """Pillow keeps the upper 8, in which 1 and 2 are background and 257 and 300 are the same."""
    _, masks = folders
    pixels = np.zeros((*SIZE[::-1], channels), np.uint16)
    pixels[..., 3:] = 65535
    discs = [disc(10, radius=6), disc(25, radius=6), disc(40, radius=6), disc(53, radius=6)]
    for mask, colour in zip(discs, [(0, 0, 1), (0, 0, 300), (0, 257, 0), (1, 0, 0)]):
        pixels[mask, :3] = colour[::-1]  # OpenCV's order
    assert cv2.imwrite(str(masks / f"a{suffix}"), pixels)
    found = read_instances(masks / f"a{suffix}", SIZE[::-1])
    assert len(found) == 4 and all(np.array_equal(one, mask) for one, mask in zip(found, discs))


def test_the_alpha_channel_of_16_bits_is_looked_at_too(folders):
    _, masks = folders
    pixels = np.zeros((*SIZE[::-1], 4), np.uint16)
    pixels[disc(), 3] = 65535
    assert cv2.imwrite(str(masks / "a.png"), pixels)
    with pytest.raises(UserError, match="alpha channel with another shape than its colours.*--soft"):
        read_instances(masks / "a.png", SIZE[::-1])
    assert np.array_equal(read_instances(masks / "a.png", SIZE[::-1], soft=True)[0], disc())
    pixels[..., 3], pixels[disc(), :3] = 65535, 200
    (masks / "b").mkdir()
    assert cv2.imwrite(str(masks / "b" / "0.png"), pixels)
    assert np.array_equal(read_instances(masks / "b", SIZE[::-1])[0], disc())


def test_floats_are_numbers_of_instances_where_they_are_whole(folders):
    _, masks = folders
    values = np.zeros(SIZE[::-1], np.float32)
    discs = [disc(10, radius=6), disc(30, radius=6), disc(50, radius=6)]
    for mask, value in zip(discs, (1, 300, 400)):
        values[mask] = value
    Image.fromarray(values).save(masks / "a.tif")
    found = read_instances(masks / "a.tif", SIZE[::-1])
    assert len(found) == 3 and all(np.array_equal(one, mask) for one, mask in zip(found, discs))
    (masks / "b").mkdir()
    for number, words in ((0.5, "not whole"), (np.nan, "NaN or infinity"), (np.inf, "NaN or infinity")):
        values[0, 0] = number
        Image.fromarray(values).save(masks / "a.tif")
        with pytest.raises(UserError, match=f"a.tif holds .*{words}"):
            read_instances(masks / "a.tif", SIZE[::-1])
        Image.fromarray(values).save(masks / "b" / "0.tif")
    with pytest.raises(UserError, match="0.tif holds NaN or infinity"):
        read_instances(masks / "b", SIZE[::-1])


def test_a_file_of_several_pages_is_no_mask(folders):
    """One of them would be read, and the other instances be background."""
    _, masks = folders
    pages = [grey(disc(x)) for x in (10, 30, 50)]
    (masks / "b").mkdir()
    for path in (masks / "a.tif", masks / "b" / "0.tif"):
        pages[0].save(path, save_all=True, append_images=pages[1:])
    for source, soft in ((masks / "a.tif", False), (masks / "a.tif", True), (masks / "b", False)):
        with pytest.raises(UserError, match="tif holds several pages.*in a folder named after"):
            read_instances(source, SIZE[::-1], soft=soft)


def test_litter_and_other_files_are_left_out_and_counted(folders, tmp_path):
    images, masks = folders
    grey(disc()).save(masks / "a.png")
    for folder in (images, masks):
        for name in ("._a.jpg", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"\0\5\x16\7")
    (images / "list.txt").write_text("a"), (images / "b.dng").write_bytes(b"x"), (images / "more").mkdir()
    result = convert_instance_maps(masks, images, tmp_path / "o.json")
    assert (result.pictures, result.instances, result.without_masks) == (1, 1, [])
    assert f"2 files (.dng .txt) and 1 folders in {images} left out" in result.text()


def test_names_in_another_unicode_form(folders, tmp_path):
    images, masks = folders
    (images / "a.jpg").rename(images / "caf\u00e9.jpg")
    grey(disc()).save(masks / "cafe\u0301.png")
    assert convert_instance_maps(masks, images, tmp_path / "o.json").instances == 1


@pytest.mark.parametrize(
    "options, words",
    [
        ({"variable": "x"}, "--variable is for .mat files"),
        ({"ignore": [1], "soft": True}, "--ignore is for index masks"),
    ],
)
def test_options_without_effect_are_refused(folders, tmp_path, options, words):
    images, masks = folders
    grey(disc()).save(masks / "a.png")
    with pytest.raises(UserError, match=words):
        convert_instance_maps(masks, images, tmp_path / "o.json", **options)


def test_no_match_shows_both_names(folders, tmp_path):
    images, masks = folders
    grey(disc()).save(masks / "a_mask.png")
    with pytest.raises(UserError, match="no picture in .* pictures are called a, masks a_mask"):
        convert_instance_maps(masks, images, tmp_path / "o.json")
