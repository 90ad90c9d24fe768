"""`jrdp export`: the ONNX file in ONNX Runtime against the network it was made from."""

import json
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

onnxruntime = pytest.importorskip("onnxruntime", reason="the export needs pip install '.[onnx]'")
onnx = pytest.importorskip("onnx", reason="the export needs pip install '.[onnx]'")

import jrdp
from jrdp import cli, interchange
from jrdp.config import Config
from jrdp.data.transforms import batch_images, prepare_image, read_image, resize_image
from jrdp.errors import UserError
from jrdp.export import export
from jrdp.interchange.layout import network_layout

BOX_TOLERANCE = 0.01  # pixels of the network's input
SCORE_TOLERANCE = 1e-4
MASK_TOLERANCE = 1e-3
PHOTOGRAPHS = 11
GOLDEN = ("a_480x320", "b_267x400", "c_500x333", "d_320x480")


def noise_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Coarse noise, in the spirit of a photograph's large areas."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


def assert_same(session, model, picture: Image.Image) -> int:
    """The same instances from both, in the same order; returns how many."""
    resized = np.asarray(resize_image(picture, model.config.input))
    boxes, scores, masks = session.run(["boxes", "scores", "masks"], {"image": resized})
    wanted = model.engine.detect(batch_images([prepare_image(picture, model.config.input)]))[0]
    assert boxes.shape == wanted.boxes.shape and scores.shape == wanted.scores.shape
    np.testing.assert_allclose(boxes, wanted.boxes, rtol=0, atol=BOX_TOLERANCE)
    np.testing.assert_allclose(scores, wanted.scores, rtol=0, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(masks, wanted.mask_probabilities, rtol=0, atol=MASK_TOLERANCE)
    return len(boxes)


def open_both(folder, weights, config=None):
    target = folder / "model.onnx"
    export(target, weights, config)
    model = jrdp.load(weights, config, device="cpu")
    return onnxruntime.InferenceSession(str(target)), model


def random_weights(config: Config, path):
    """Weights of any configuration that give detections: branches small, so that activations stay of order one."""
    model = config.model
    layout = network_layout(
        model.backbone.name, model.pyramid.enhancement, model.pyramid.levels, model.pyramid.fusion, model.fcos.channels
    )
    tensors = {}
    for entry in layout:
        rng = np.random.default_rng(zlib.crc32(entry.name.encode()))
        shape = entry.shape
        if len(shape) == 4:
            value = rng.standard_normal(shape) * np.sqrt(1.5 / np.prod(shape[1:]))
            value *= 0.3 if entry.name.endswith("conv3.weight") else 1
        elif entry.name.endswith(("running_var", ".scale")) or (entry.name.endswith("weight")):
            value = rng.uniform(0.8, 1.2, shape)
        else:
            value = 0.1 * rng.standard_normal(shape)
        tensors[entry.name] = value.astype(np.float32)
    tensors["backbone.body.stem.conv1.weight"] *= 0.02
    tensors["rpn.head.cls_logits.bias"][...] = -2.5
    tensors["rpn.head.bbox_pred.bias"][...] = 3.0
    save_file(tensors, str(path))
    return path


@pytest.fixture(scope="module")
def released(seeded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    save_file(seeded("r50"), str(folder / "r50.safetensors"))
    return open_both(folder, folder / "r50.safetensors")


@pytest.mark.parametrize("name", GOLDEN)
def test_pictures_of_the_goldens(released, golden, name):
    session, model = released
    count = assert_same(session, model, read_image(golden / "imgs" / f"{name}.png"))
    assert count == len(np.load(golden / "r50" / f"infer_{name}.npz")["det/scores"])


@pytest.mark.parametrize("size", [(1000, 320), (33, 700), (64, 64), (211, 320)])
def test_any_picture_size(released, size):
    session, model = released
    assert assert_same(session, model, noise_picture(*size)) > 0


def test_the_file_is_valid_and_says_how_to_resize(released, tmp_path):
    session, _ = released
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["min_size"], metadata["max_size"], metadata["mask_threshold"]) == ("320", "480", "0.5")
    assert Config.model_validate(json.loads(metadata["config"])) == Config()
    assert [(x.name, x.type) for x in session.get_inputs()] == [("image", "tensor(uint8)")]
    assert [x.name for x in session.get_outputs()] == ["boxes", "scores", "masks"]


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": {"name": "x101"}},
        {"backbone": {"name": "r101", "stride_in_1x1": False}, "pyramid": {"upsample": "bilinear"}},
        {"pyramid": {"enhancement": "none"}},
        {"pyramid": {"enhancement": "progressive", "fusion": "3x3"}, "fcos": {"channels": 256}},
        {"pyramid": {"enhancement": "dense", "levels": "p3-p5"}},
        {"pyramid": {"enhancement": "top_down_regularized"}},
        {"pyramid": {"enhancement": "pa"}},
    ],
    ids=lambda change: "-".join(str(v) for section in change.values() for v in section.values()),
)
def test_every_supported_design(tmp_path, change):
    values = {"model": change, "input": {"min_size": 96, "max_size": 160, "channel_order": "rgb", "scale": 1.0,
              "mean": (0.48, 0.45, 0.4), "std": (0.01, 0.012, 0.011)}}
    config = Config.model_validate(values)
    weights = random_weights(config, tmp_path / "w.safetensors")
    session, model = open_both(tmp_path, weights, config)
    assert assert_same(session, model, noise_picture(120, 170)) > 5


def test_photographs_with_trained_weights(shared, tmp_path):
    weights = shared / "weights" / "small_cpu_half.safetensors"
    photographs = sorted((shared / "data" / "ecssd" / "imgs").glob("*.jpg"))[:PHOTOGRAPHS]
    if not weights.is_file() or len(photographs) < PHOTOGRAPHS:
        pytest.skip(f"needs {weights} and {PHOTOGRAPHS} photographs of ecssd")
    session, model = open_both(tmp_path, weights)
    for photograph in photographs:
        assert assert_same(session, model, read_image(photograph)) > 5


@pytest.mark.parametrize(
    "setting, word",
    [
        ("model.pyramid.enhancement=bifpn", "bifpn"),
        ("model.pyramid.enhancement=nas_fpn", "nas_fpn"),
        ("model.mask.head=single_level", "single_level"),
        ("model.pyramid.enhancement=dense", "does not fit the network"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_no_file(seeded, tmp_path, monkeypatch, capsys, setting, word):
    save_file(seeded("r50"), str(tmp_path / "w.safetensors"))
    target = tmp_path / "out.onnx"
    arguments = ["jrdp", "export", str(target), "--weights", str(tmp_path / "w.safetensors"), "--set", setting]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and len(lines) == 1 and word in lines[0]
    assert not target.exists()


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.onnx"):
        export(tmp_path / "model.pth", tmp_path / "w.safetensors")


def test_without_the_package_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="pip install"):
        export(tmp_path / "model.onnx", tmp_path / "w.safetensors")


def test_the_checker_of_onnx_accepts_it(seeded):
    from jrdp.export.onnx_file import build

    model = build(interchange.WeightFile(seeded("r50")), Config())
    onnx.checker.check_model(model, full_check=True)
