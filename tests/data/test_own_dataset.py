"""Datasets of one's own: two methods, the same targets as from a COCO json, and workers wherever they are defined."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jrdp.config import InputConfig
from jrdp.data.coco import CocoDataset
from jrdp.data.loader import TrainLoader
from jrdp.data.own import OwnDataset
from jrdp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
INPUT = InputConfig(min_size=32, max_size=48)
SQUARE = [4, 4, 24, 4, 24, 24, 4, 24]


class Items(list):
    pass


def mask(height, width, top=5, left=10, bottom=15, right=30):
    made = np.zeros((height, width), bool)
    made[top:bottom, left:right] = True
    return made


def test_polygons_and_masks_give_what_a_coco_json_gives(tiny_set):
    shape = mask(40, 60)
    counts = np.diff(np.flatnonzero(np.concatenate([[True], np.diff(shape.ravel("F")), [True]]))).tolist()
    tiny_set.data["annotations"][0]["segmentation"] = {"size": [40, 60], "counts": counts}
    tiny_set.data["annotations"][0]["bbox"] = [10, 5, 20, 10]
    tiny_set.data["annotations"][1]["bbox"] = [4, 4, 20, 20]
    images, json_path = tiny_set.write()
    wanted = CocoDataset(images, json_path, INPUT, training=True)
    own = OwnDataset(
        Items([(images / "p1.png", shape[None]), (Image.open(images / "p2.png"), [[SQUARE]])]), INPUT
    )
    assert len(own) == 2 and [own.image_id(index) for index in (0, 1)] == [0, 1]
    assert np.array_equal(own[1].image.pixels, own.example(1).image.pixels) and own[1].image.image_id == 1
    for index in (0, 1):
        for flip in (False, True):
            theirs, mine = wanted.example(index, flip), own.example(index, flip)
            assert np.array_equal(theirs.image.pixels, mine.image.pixels)
            assert np.array_equal(theirs.targets.boxes, mine.targets.boxes)
            assert own.size(index) == wanted.size(index) and own.original_size(index) == wanted.original_size(index)
            for one, other in zip(theirs.targets.bitmaps, mine.targets.bitmaps):
                assert (one is None) == (other is None) and (one is None or np.array_equal(one, other))
            for one, other in zip(theirs.targets.polygons, mine.targets.polygons):
                assert (one is None) == (other is None) and (one is None or np.array_equal(one, other))


def test_an_empty_mask_is_left_out_and_a_picture_without_instances_is_background():
    pixels = np.zeros((40, 60, 3), np.uint8)
    own = OwnDataset(Items([(pixels, [np.zeros((40, 60), bool), mask(40, 60)]), (pixels, [])]), INPUT)
    assert len(own.example(0).targets) == 1 and len(own.example(1).targets) == 0


def test_other_sizes_or_another_order_have_another_fingerprint():
    low, high = np.zeros((40, 60, 3), np.uint8), np.zeros((60, 40, 3), np.uint8)
    one, same, turned = (
        OwnDataset(Items([(pixels, [mask(*pixels.shape[:2])]) for pixels in items]), INPUT).fingerprint
        for items in ([low, high], [low, high], [high, low])
    )
    assert one == same != turned


def test_numbers_0_and_1_are_a_mask_as_well_as_truth_values():
    shape = mask(40, 60)
    for made in (shape, shape.astype(np.uint8), shape.astype(float)):
        own = OwnDataset(Items([(PIXELS, [made])]), INPUT)
        assert own.example(0).targets.bitmaps[0].sum() > 50


class Failing(Items):
    at = "__getitem__"

    def __getitem__(self, index):
        if self.at == "__getitem__" and index == 1:
            raise ValueError("no\nlabel")  # line
        return super().__getitem__(index)

    def __len__(self):
        if self.at == "__len__":
            raise RuntimeError
        return super().__len__()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_its_methods_raise_is_one_line_with_the_place(workers):
    """In a worker too, which starts after the sizes are known."""
    items = Failing([(PIXELS, [mask(40, 60)]), (PIXELS, [mask(40, 60)])])
    items.at = "__len__"
    with pytest.raises(UserError, match=r"^__len__\(\) of the dataset Failing raised RuntimeError in test_own_dataset.py, line \d+$"):
        OwnDataset(items, INPUT)
    items.at = None
    own = OwnDataset(items, INPUT)
    items.at = "__getitem__"
    line = next(n for n, text in enumerate(open(__file__), 1) if text.endswith("# line\n"))
    told = rf"^__getitem__\(1\) of the dataset Failing raised ValueError in test_own_dataset.py, line {line}: no label$"
    with TrainLoader(own, 2, seed=1, workers=workers) as loader, pytest.raises(UserError, match=told):
        next(iter(loader))


def test_masks_that_begin_at_the_corner_keep_their_pixels():
    corner = mask(40, 60, 0, 0, 40, 60)
    own = OwnDataset(Items([(np.zeros((40, 60, 3), np.uint8), [corner])]), InputConfig(min_size=40, max_size=60))
    assert own.example(0).targets.bitmaps[0].all()
    assert own.example(0).targets.boxes.tolist() == [[0, 0, 59, 39]]
    for first, second in ((True, False), (False, True), (True, True)):
        shape = mask(40, 60)
        shape[:2, 0] = first, second
        own = OwnDataset(Items([(PIXELS, [shape])]), InputConfig(min_size=40, max_size=60))
        assert np.array_equal(own.example(0).targets.bitmaps[0], shape)


PIXELS = np.zeros((40, 60, 3), np.uint8)


@pytest.mark.parametrize(
    "items, words",
    [
        (Items(), "is empty"),
        (5, "needs the methods __len__ and __getitem__"),
        ({1, 2}, "needs the methods __len__ and __getitem__"),
        (type("Endless", (), {"__getitem__": lambda self, index: index})(), "needs the methods __len__ and __getitem__"),
        (Items([PIXELS]), r"item 0 of the dataset is an array uint8 \[40, 60, 3\], not \(picture, instances\)"),
        (Items([(PIXELS, [], 3)]), r"item 0 of the dataset is tuple of 3, not \(picture, instances\)"),
        (Items(["pq"]), r"item 0 of the dataset is of type str, not \(picture, instances\)"),
        (Items([(PIXELS, [mask(40, 60) * np.uint8(2)])]), "other values than 0 and 1"),
        (Items([(PIXELS[..., 0], [])]), r"its picture is an array uint8 \[40, 60\]"),
        (Items([(PIXELS[..., :2], [])]), r"its picture is an array uint8 \[40, 60, 2\]"),
        (Items([(PIXELS, None)]), "its instances are of type NoneType"),
        (Items([(PIXELS / 255, [])]), r"its picture is an array float64 \[40, 60, 3\]"),
        (Items([("no/such.png", [])]), "cannot read image no/such.png"),
        (Items([(PIXELS, [mask(60, 40)])]), "its instance 0 is a mask of 40x60, the picture is 60x40"),
        (Items([(PIXELS, [mask(40, 60) * np.uint8(255)])]), "other values than 0 and 1"),
        (Items([(PIXELS, [[1, 2, 3]])]), "neither a mask nor a list of polygons"),
        (Items([(PIXELS, [3])]), "neither a mask nor a list of polygons"),
        (Items([(PIXELS, mask(40, 60))]), r"its instances are an array bool \[40, 60\], not masks"),
        (Items([(PIXELS, np.float32([[4, 4, 24, 24]]))]), r"its instances are an array float32 \[1, 4\], not masks"),
        (Items([(PIXELS[:0], [])]), r"its picture is an array uint8 \[0, 60, 3\]"),
        (Items, r"the dataset is the class Items: give an object, Items\(...\)"),
        ("imgs:train.json", "the dataset is the text imgs:train.json: a COCO json goes into data.train"),
    ],
)
def test_what_is_not_as_described_is_named(items, words):
    with pytest.raises(UserError, match=words) as caught:
        OwnDataset(items, INPUT).example(0)
    assert "\n" not in str(caught.value)


def test_sizes_that_are_told_are_believed_until_the_picture_says_otherwise():
    class Telling(Items):
        asked = 0

        def __getitem__(self, index):
            Telling.asked += 1
            return super().__getitem__(index)

        def original_size(self, index):
            return (40, 60) if index < 9 else (60, 40)

    own = OwnDataset(Telling([(PIXELS, [mask(40, 60)])] * 10), INPUT)
    assert Telling.asked == 1, "every picture was read"
    own.example(3)
    with pytest.raises(UserError, match=r"item 9 of the dataset is 60x40, not 40x60 as original_size\(9\) says, \(height"):
        own.example(9)
    for told in (None, "40x60", (40.5, 60), 40):
        Telling.original_size = lambda self, index, told=told: told
        with pytest.raises(UserError, match=r"original_size\(0\) of the dataset gives .*, not \(height, width\)"):
            OwnDataset(Telling([(PIXELS, [mask(40, 60)])]), INPUT)
    Telling.original_size = lambda self, index: (60, 40)
    with pytest.raises(UserError, match="item 0 of the dataset is 60x40, not 40x60 as original_size"):
        OwnDataset(Telling([(PIXELS, [mask(40, 60)])]), INPUT)


def test_a_pil_image_is_read_as_its_file_would_be(tmp_path):
    """Pillow's own conversion makes nearly all of 16 bits white, and its EXIF rotation would be lost."""
    wide = Image.fromarray((np.arange(40 * 60, dtype=np.uint16) * 20).reshape(40, 60))
    wide.save(tmp_path / "wide.png")
    turned = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    upright = INPUT.model_copy(update={"exif": "apply"})
    for name in ("wide.png", "turned.png"):
        file = tmp_path / name
        size = (60, 40) if name == "turned.png" else (40, 60)
        for given, settings in ((file, INPUT), (file, upright)):
            shape = mask(*size) if settings is INPUT else mask(40, 60)
            one, other = (OwnDataset(Items([(p, [shape])]), settings)[0] for p in (given, Image.open(file)))
            assert np.array_equal(one.image.pixels, other.image.pixels)
            assert len(np.unique(one.image.pixels)) > 50
    with pytest.raises(UserError, match="item 0 of the dataset: its pixels are floating-point"):
        OwnDataset(Items([(Image.fromarray(np.ones((40, 60), np.float32)), [mask(40, 60)])]), INPUT)


@pytest.mark.parametrize(
    "instances",
    [
        [],
        [np.zeros((40, 60), bool)],
        [[[4, 4, 24, 24]]],  # a box
        [[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]],  # shares of the picture
        [[[100, 100, 200, 100, 200, 200]]],  # outside
    ],
)
def test_a_dataset_of_which_no_instance_remains_would_train_on_background_alone(instances):
    with pytest.raises(UserError, match="none of the 2 items of the dataset has an instance that covers a pixel"):
        OwnDataset(Items([(PIXELS, instances)] * 2), INPUT)
    assert len(OwnDataset(Items([(PIXELS, instances), (PIXELS, [mask(40, 60)])]), INPUT)) == 2


def test_the_rows_of_a_mask_do_not_pass_for_polygons():
    with pytest.raises(UserError, match="its instance 0.*is a mask in numbers, a row in each list"):
        OwnDataset(Items([(PIXELS, [mask(40, 60).astype(int).tolist()])]), INPUT)


SCRIPT = """
    import sys, os
    import numpy as np
    from itertools import islice
    from jrdp.config import InputConfig
    from jrdp.data.loader import TrainLoader
    from jrdp.data.own import OwnDataset

    SIDE = 40  # a global of the script that the workers need

    def colour(index):
        return np.full((SIDE, 60, 3), 10 * index, np.uint8)

    class Mine:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            mask = np.zeros((SIDE, 60), bool)
            mask[5:20, 5 + index:30] = True
            mask[0, 0] = os.getpid() != MAIN
            return colour(index), [mask]

    MAIN = os.getpid()
    print("started")  # once: the workers do not run the script again
    config = InputConfig(min_size=40, max_size=60, mean=(0, 0, 0))
    with TrainLoader(OwnDataset(Mine(), config), 2, seed=0, workers=2, flip_probability=0.0) as loader:
        for _, batch, targets in islice(loader, 2):
            for image, target, image_id in zip(batch.images, targets, batch.image_ids):
                assert image[0, 0, 0] == 10 * image_id, (image[0, 0, 0], image_id)
                assert target.boxes[0].tolist() == [0, 0, 29, 19], target.boxes  # made in another process
            print(sorted(batch.image_ids))
"""


@pytest.mark.parametrize("way", ["script", "standard input"])
def test_a_dataset_of_the_main_script_reaches_the_workers(tmp_path, way):
    script = textwrap.dedent(SCRIPT)
    path = tmp_path / "mine.py"
    path.write_text(script)
    command, text = ([sys.executable, str(path)], None) if way == "script" else ([sys.executable, "-"], script)
    environment = {**__import__("os").environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("started") == 1 and sorted(sum(map(eval, lines[1:]), [])) == [0, 1, 2, 3]
