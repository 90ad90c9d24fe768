"""Overlays, index masks and sheets: what is drawn where, and what is left alone."""

import numpy as np
import pytest
from PIL import Image

from jrdp import visualize
from jrdp.errors import UserError


def scene(height=120, width=160):
    photo = np.full((height, width, 3), 90, np.uint8)
    masks = np.zeros((2, height, width), bool)
    masks[0, 40:90, 20:80] = True
    masks[1, 60:110, 60:140] = True
    return photo, masks, np.array([0.9, 0.4])


def test_tint_inside_only_and_the_photo_is_left_alone():
    photo, masks, _ = scene()
    before = photo.copy()
    picture = visualize.overlay(photo, masks)
    np.testing.assert_array_equal(photo, before)
    assert picture.dtype == np.uint8 and picture.shape == photo.shape
    palette = visualize.colors(2)
    np.testing.assert_array_equal(picture[70, 30], (90 * 0.55 + palette[0] * 0.45 + 0.5).astype(np.uint8))
    np.testing.assert_array_equal(picture[100, 120], (90 * 0.55 + palette[1] * 0.45 + 0.5).astype(np.uint8))
    near = np.zeros(photo.shape[:2], bool)
    near[38:92, 18:82] = near[58:112, 58:142] = True  # a contour is at most two pixels wider than its mask
    np.testing.assert_array_equal(picture[~near], photo[~near])


def test_contours_are_in_the_instance_colour_and_over_every_tint():
    photo, masks, scores = scene(600, 800)
    masks = np.kron(scene()[1], np.ones((5, 5), bool))
    picture = visualize.overlay(photo, masks, alpha=0.5)
    for k, (row, column) in enumerate([(300, 100), (400, 300)]):  # left edges, the second inside the first's tint
        strip = picture[row, column - 4 : column + 5].astype(int)
        assert np.abs(strip - visualize.colors(2)[k]).sum(axis=1).min() == 0


def test_scores_and_boxes_change_the_picture_where_they_stand():
    photo, masks, scores = scene()
    plain = visualize.overlay(photo, masks)
    scored = visualize.overlay(photo, masks, scores=scores)
    changed = (plain != scored).any(axis=2)
    assert changed[22:40, 30:70].any()  # above the first instance, centred
    assert not changed[:20].any() and not changed[:, 150:].any()
    labelled = visualize.overlay(photo, masks, scores=scores, labels=["first", "second"])
    assert (labelled != scored).any()
    boxes = np.array([[20.0, 40, 79, 89], [60, 60, 139, 109]])
    framed = visualize.overlay(photo, masks, boxes)
    np.testing.assert_allclose(framed[75, 139], visualize.colors(2)[1].astype(int), atol=3)  # antialiased
    np.testing.assert_array_equal(visualize.overlay(photo, masks, boxes - 1000)[75:], plain[75:])


def test_own_palette_and_boxes_without_masks():
    photo, masks, scores = scene()
    picture = visualize.overlay(photo, masks, palette=np.array([[0, 0, 0], [250, 250, 250]], np.uint8))
    np.testing.assert_array_equal(picture[70, 30], [50, 50, 50])  # 90 * 0.55 + 0.5
    boxes = np.array([[20.0, 40, 79, 89], [60, 60, 139, 109]])
    framed = visualize.overlay(photo, np.zeros_like(masks), boxes, scores)
    np.testing.assert_array_equal(framed[50:80, 25:55], photo[50:80, 25:55])  # nothing inside
    assert (framed[70, 18:23] != 90).any() and (framed[100, 137:142] != 90).any()
    assert (framed[25:40, 20:40] == visualize.colors(1)[0]).all(axis=2).any()  # its label


def test_labels_scale_with_the_picture_and_never_leave_it():
    for height, width in ((40, 30), (120, 160), (900, 1200)):
        photo = np.zeros((height, width, 3), np.uint8)
        corners = np.zeros((4, height, width), bool)
        corners[0, 0, 0] = corners[1, 0, -1] = corners[2, -1, 0] = corners[3, -1, -1] = True
        assert visualize.overlay(photo, corners, scores=np.linspace(0.1, 0.9, 4)).shape == photo.shape
    heights = []
    for factor in (1, 4):
        photo = np.zeros((200 * factor, 300 * factor, 3), np.uint8)
        mask = np.zeros((1, 200 * factor, 300 * factor), bool)
        mask[:, 150 * factor :, 100 * factor : 200 * factor] = True
        drawn = visualize.overlay(photo, mask, scores=[0.5])[: 147 * factor].any(axis=(1, 2))
        heights.append(drawn.sum())
    assert 2.5 * heights[0] < heights[1] < 6 * heights[0]  # there is a least readable size


def test_equal_places_do_not_hide_each_others_labels():
    photo = np.zeros((200, 300, 3), np.uint8)
    masks = np.zeros((3, 200, 300), bool)
    masks[:, 100:120, 100:140] = True
    picture = visualize.overlay(photo, masks, scores=np.array([0.9, 0.8, 0.7]))
    for color in visualize.colors(3):
        assert (picture == color).all(axis=2).sum() > 100


def test_nothing_to_draw_and_bad_masks():
    photo, masks, _ = scene()
    np.testing.assert_array_equal(visualize.overlay(photo, np.zeros((0, 120, 160), bool), scores=[]), photo)
    np.testing.assert_array_equal(visualize.overlay(photo, np.zeros((1, 120, 160), bool), scores=[0.5]), photo)
    with pytest.raises(ValueError, match="do not fit"):
        visualize.overlay(photo, masks[:, :-1])
    with pytest.raises(ValueError, match="RGB uint8"):
        visualize.overlay(photo.astype(np.float32), masks)


def test_colours_are_distinct():
    palette = visualize.colors(60).astype(int)
    distance = np.abs(palette[:, None] - palette[None]).sum(axis=2) + 1000 * np.eye(60)
    assert distance[:12, :12].min() > 60 and distance.min() > 0
    np.testing.assert_array_equal(visualize.colors(5), visualize.colors(60)[:5])


def test_index_mask(tmp_path):
    _, masks, _ = scene()
    index = visualize.index_mask(masks)
    assert index.dtype == np.uint8
    assert index[70, 70] == 1 and index[100, 100] == 2 and index[0, 0] == 0  # the first lies on top
    visualize.save_index_mask(masks, tmp_path / "index.png")
    with Image.open(tmp_path / "index.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), index)
        colours = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(colours[70, 70], visualize.colors(1)[0])
    assert not colours[0, 0].any()
    many = np.zeros((300, 20, 30), bool)
    many.reshape(300, -1)[np.arange(300), np.arange(300)] = True
    visualize.save_index_mask(many, tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(-1)[:300], np.arange(1, 301))
    assert not visualize.index_mask(np.zeros((0, 4, 5), bool)).any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.png", "many.png"]


def test_save_image(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    visualize.save_image(photo, tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), photo)
    visualize.save_image(photo, str(tmp_path / "a.JPG"))
    assert visualize.encode_jpeg(photo)[:2] == b"\xff\xd8"
    visualize.save_image(photo, tmp_path / "made" / "a.png")  # a folder that does not exist is made
    for name in ("a.txt", "a"):
        with pytest.raises(UserError, match="cannot write"):
            visualize.save_image(photo, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.JPG", "a.png", "made"]


def test_sheets():
    red, green = (np.full((100, 150, 3), color, np.uint8) for color in ((255, 0, 0), (0, 255, 0)))
    tall = np.full((200, 100, 3), (0, 0, 255), np.uint8)
    titles = ["photograph", "ground truth", "a title that is far too long for this"]
    sheet = visualize.panels([red, green, tall], titles)
    assert sheet.shape[1] == 150 + 150 + 50 + 4 * 4  # three pictures 100 high, a gap of 4 between and around
    for color, count in (((255, 0, 0), 15000), ((0, 255, 0), 15000), ((0, 0, 255), 5000)):
        assert (sheet == color).all(axis=2).sum() == count
    assert (sheet[:25] < 100).all(axis=2).any()  # the titles
    grid = visualize.mosaic([red] * 5, columns=2, height=50, gap=4)
    assert grid.shape == (3 * 50 + 4 * 4, 2 * 75 + 3 * 4, 3)
    assert (grid == (255, 0, 0)).all(axis=2).sum() == 5 * 50 * 75
    narrow = visualize.mosaic([red, red, red[:, :120], red[:, :120]], columns=2, gap=4)
    left_edge = (narrow[:, 4] == (255, 0, 0)).all(axis=1)
    assert left_edge.sum() == 90 + 112  # the narrower row was widened to the same edges
    with pytest.raises(ValueError, match="at least one"):
        visualize.mosaic([])
    with pytest.raises(ValueError, match="titles"):
        visualize.mosaic([red, red], columns=2, titles=["one"])
