"""The Python face: `jrdp.load(...).predict(...)` and its files, against the released network's numbers."""

import copy
import json
import os
import pickle
import signal

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import jrdp
from jrdp import interchange
from jrdp.config import Config
from jrdp.engine import predict
from jrdp.engine.pictures import list_pictures, output_names
from jrdp.engine.predict import coco_results, predict_files
from jrdp.errors import UserError
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import named_tensors


@pytest.fixture(scope="module")
def model(weights):
    return jrdp.load(weights, device="cpu", overrides=["test.engine=plain"])


@pytest.fixture(scope="module")
def prediction(model, golden):
    return model.predict(golden / "imgs" / "b_267x400.png")


def by_score(boxes, scores):
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order]


def test_configuration_is_inferred_from_the_tensors(model):
    assert model.config.model.backbone.name == "r50"
    assert model.config.model.pyramid.enhancement == "regularized"


def test_boxes_scores_and_masks_are_the_released_ones(prediction, golden):
    numbers = np.load(golden / "r50" / "infer_b_267x400.npz")
    boxes, scores = by_score(numbers["det/boxes_orig"], numbers["det/scores"])
    assert np.abs(prediction.boxes - boxes).max() < 0.02
    assert np.abs(prediction.scores - scores).max() < 1e-4
    assert prediction.masks.shape == (len(scores), 400, 267) and prediction.masks.dtype == bool
    order = np.argsort(-numbers["det/scores"], kind="stable")
    areas = numbers["det/mask_areas"][order]
    assert np.abs(prediction.masks.sum((1, 2)) - areas).max() <= np.maximum(3, 0.002 * areas.max())


def test_file_image_and_array_are_the_same_picture(model, prediction, golden):
    path = golden / "imgs" / "b_267x400.png"
    image = Image.open(path)
    for picture in (str(path), image, np.asarray(image.convert("RGB"))):
        assert np.array_equal(model.predict(picture).boxes, prediction.boxes)
    swapped = model.predict(np.asarray(image.convert("RGB"))[:, :, ::-1])
    assert len(swapped.scores) != len(prediction.scores) or np.abs(swapped.scores - prediction.scores).max() > 1e-3
    for array in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((3, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="RGB uint8"):
            model.predict(array)
    for other in (None, 3, [path], b"a.png"):
        with pytest.raises(TypeError, match=f"a file, a PIL image or an array, not {type(other).__name__}"):
            model.predict(other)


def test_a_single_picture_is_no_list_of_pictures(model, golden):
    path = golden / "imgs" / "b_267x400.png"
    for single in (path, str(path), Image.open(path), np.asarray(Image.open(path))):
        with pytest.raises(TypeError, match="predict takes a single one"):
            model.predict_batch(single)


def test_a_model_is_copied_but_not_sent_to_another_process(model):
    assert copy.deepcopy(model).config == model.config
    with pytest.raises(TypeError, match="call jrdp.load there"):
        pickle.dumps(model)


def test_an_opened_picture_is_turned_and_scaled_as_its_file_is(model, golden, tmp_path):
    photo = Image.open(golden / "imgs" / "b_267x400.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    grey = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "wide.png")
    upright = model.predict(photo)
    for name in ("turned.png", "wide.png"):
        file, image = model.predict(tmp_path / name), model.predict(Image.open(tmp_path / name))
        assert np.array_equal(file.photo, image.photo) and np.array_equal(file.boxes, image.boxes)
    assert np.array_equal(model.predict(Image.open(tmp_path / "turned.png")).photo, upright.photo)
    assert np.array_equal(image.photo[:, :, 0], np.asarray(photo.convert("L")))
    with pytest.raises(UserError, match="floating-point numbers"):
        model.predict(Image.fromarray(np.zeros((4, 4), np.float32)))


@pytest.mark.parametrize(
    "argument, words",
    [
        ({"weights": None}, "weights: expected a file or the name of one, not NoneType"),
        ({"weights": {}}, "weights: expected .*, not dict"),
        ({"config": {"test": {}}}, "config: expected a YAML file or .*, not dict"),
        ({"overrides": "test.batch_size=1"}, "overrides: expected a list such as .*, not str"),
        ({"overrides": {"test.batch_size": 1}}, "overrides: expected a list such as .*, not dict"),
        ({"overrides": [3]}, "overrides: expected strings such as .*, not 3"),
    ],
)
def test_another_kind_of_argument_of_load_is_named(weights, argument, words):
    with pytest.raises(TypeError, match=words):
        jrdp.load(**{"weights": weights, "device": "cpu", **argument})


def test_loading_draws_no_random_numbers_and_leaves_no_initial_weight(weights):
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    network = jrdp.load(weights, device="cpu", overrides=["test.engine=plain"]).network
    assert np.random.rand() == expected
    stored = interchange.read(weights).tensors
    assert all(np.array_equal(value.numpy(), stored[name]) for name, value in named_tensors(network).items())
    assert np.abs(RDPNet(Config().model).rpn.head.cls_logits.weight.numpy()).max() > 0  # others start as they should


def test_fast_engine_gives_the_same_predictions(weights, prediction, golden):
    fast = jrdp.load(weights, device="cpu", overrides=["test.engine=fast"]).predict(golden / "imgs" / "b_267x400.png")
    assert np.abs(fast.boxes - prediction.boxes).max() < 0.02
    assert np.abs(fast.scores - prediction.scores).max() < 1e-4


def test_threshold_and_run_lengths(prediction):
    shown = prediction.above(0.2)
    assert 0 < len(shown.scores) < len(prediction.scores) and shown.scores.min() > 0.2
    assert len(prediction.above(1.0).scores) == 0 and prediction.above(1.0).masks.shape == (0, 400, 267)
    for rle, mask in zip(prediction.mask_rle()[:5], prediction.masks):
        assert np.array_equal(coco_mask.decode(rle).astype(bool), mask)


def test_save_draws_on_the_photograph(prediction, tmp_path):
    prediction.save(tmp_path / "out.png", threshold=0.2)
    drawn = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"))
    assert drawn.shape == (400, 267, 3) and (drawn != prediction.photo).any()
    prediction.save(tmp_path / "none.png", threshold=1.0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "none.png").convert("RGB")), prediction.photo)


def test_result_entries_hold_box_mask_and_name(prediction):
    entries = coco_results(prediction, 7, "b.png")
    assert len(entries) == len(prediction.scores)
    x1, y1, x2, y2 = prediction.boxes[0].tolist()
    assert entries[0]["bbox"] == pytest.approx([x1, y1, x2 - x1 + 1, y2 - y1 + 1])
    assert entries[0]["image_id"] == 7 and entries[0]["file_name"] == "b.png"
    assert entries[0]["segmentation"]["size"] == [400, 267]


def test_files_of_a_folder(model, golden, tmp_path):
    (tmp_path / "out").mkdir()
    pictures = list_pictures([golden / "imgs"])[:2]
    assert predict_files(model, pictures, tmp_path / "out", 0.2) == []
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"{stem}{suffix}.png" for stem in ("a_480x320", "b_267x400") for suffix in ("", "_instances")}
    assert names == {*pictures, "predictions.json", "predictions.asked.json"}
    index = np.asarray(Image.open(tmp_path / "out" / "a_480x320_instances.png"))
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    shown = [entry for entry in results if entry["file_name"] == "a_480x320.png" and entry["score"] > 0.2]
    assert index.shape == (320, 480) and 0 < index.max() <= len(shown)


def test_files_are_the_same_whoever_draws_and_however_many_share_a_run(model, golden, tmp_path, monkeypatch):
    good = golden / "imgs" / "b_267x400.png"
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:2000])
    pictures = [good, tmp_path / "broken.png", good]
    written = {}
    for name, few, size in (("here", 100, 1), ("process", 0, 1), ("batches", 0, 2)):
        out = tmp_path / name
        out.mkdir()
        (out / "b_267x400.png_2.png").mkdir()  # the third picture's overlay cannot be written
        monkeypatch.setattr(predict, "_FEW", few)
        monkeypatch.setattr(model.config.test, "batch_size", size)
        failed = predict_files(model, pictures, out, 0.2)
        assert len(failed) == 2 and "broken.png" in failed[0] and "b_267x400.png_2.png: it is a folder" in failed[1]
        written[name] = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        assert sorted(written[name]) == [
            "b_267x400.png.png", "b_267x400.png_instances.png", "predictions.json", "predictions.partial.jsonl"
        ]
    assert written["here"]["predictions.json"] != b"[]\n"
    assert written["here"] == written["process"]
    for name in ("b_267x400.png.png", "predictions.json"):  # one picture was broken, so no run had two of them
        assert written["batches"][name] == written["here"][name]


def die(*picture):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_drawing_process_that_is_killed_is_one_line_and_nothing_counts_as_done(model, golden, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "_FEW", 0)
    monkeypatch.setattr(predict, "finish_picture", die)
    with pytest.raises(UserError, match="process that draws.* was killed by SIGKILL"):
        predict_files(model, [golden / "imgs" / "b_267x400.png"], tmp_path, 0.2)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.partial.jsonl"]


def test_pictures_that_share_a_run_are_given_to_the_network_together(model, golden, tmp_path, monkeypatch):
    runs = []
    whole = type(model).predict_ready

    def counted(self, pictures):
        runs.append(len(pictures))
        return whole(self, pictures)

    monkeypatch.setattr(type(model), "predict_ready", counted)
    monkeypatch.setattr(model.config.test, "batch_size", 2)
    good = golden / "imgs" / "b_267x400.png"
    assert predict_files(model, [good] * 3, tmp_path, 0.2) == []
    assert runs == [2, 1]
    found = json.loads((tmp_path / "predictions.json").read_text())
    scores = [[entry["score"] for entry in found if entry["image_id"] == number] for number in (1, 2, 3)]
    assert scores[0] == scores[1] and np.abs(np.array(scores[0]) - np.array(scores[2])).max() < 1e-4


def test_output_names_never_collide():
    from pathlib import Path

    names = output_names([Path("x/a.jpg"), Path("y/a.jpg"), Path("a.png"), Path("b.png"), Path("b_instances.png")])
    assert len(set(names)) == 5
    outputs = [f"{name}{suffix}" for name in names for suffix in (".png", "_instances.png")]
    assert len(set(outputs)) == len(outputs)
    assert output_names([Path("one.jpg"), Path("two.jpg")]) == ["one", "two"]


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(UserError, match="101"):
        jrdp.load(weights, device="cpu", overrides=["model.backbone.name=r101"])
