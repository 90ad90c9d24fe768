"""`jrdp convert` as a function: files in, files out, strictly."""

import json
import pickle

import numpy as np
import pytest

from jrdp import interchange
from jrdp.config import Config, parse_config
from jrdp.errors import UserError
from jrdp.interchange import BFloat16, WeightFile, to_pytorch
from jrdp.interchange import native as native_files
from jrdp.interchange.layout import LAST_SCALE, network_layout
from jrdp.interchange.training_state import TrainingState


EVERYTHING_FROZEN = 5  # the backbone's momentum, most of the bytes, is not needed here


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A released-style training checkpoint: legacy format, "module." prefix, momentum, iteration."""
    layout = network_layout("r50", freeze_at=EVERYTHING_FROZEN)
    rng = np.random.default_rng(0)
    tensors = {entry.name: rng.standard_normal(entry.shape, np.float32).astype(np.float16) for entry in layout}
    trainable = [entry for entry in layout if entry.trainable]
    moving = [entry for entry in trainable if entry.name != LAST_SCALE]
    momentum = {entry.name: rng.standard_normal(entry.shape, np.float32) for entry in moving}
    optimizer, scheduler = to_pytorch(TrainingState(momentum, 300), [entry.name for entry in trainable])
    path = tmp_path_factory.mktemp("convert") / "released.pth"
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    interchange.write(path, WeightFile(named, optimizer=optimizer, scheduler=scheduler, iteration=300), legacy=True)
    return path, tensors, momentum


def config_of_the_run():
    return Config(model={"backbone": {"freeze_at": EVERYTHING_FROZEN}})


@pytest.fixture(scope="module")
def native(checkpoint):
    """The released-style checkpoint converted: RUN/last.safetensors and its training state."""
    path = checkpoint[0].parent / "run" / "last.safetensors"
    path.parent.mkdir()
    report = str(interchange.convert(checkpoint[0], path))
    assert "380 tensors, 0 left out" in report and "iteration 300 is in last.state-300.safetensors" in report
    return path


def test_a_run_becomes_native(checkpoint, native):
    _, tensors, momentum = checkpoint
    assert sorted(path.name for path in native.parent.iterdir()) == ["last.safetensors", "last.state-300.safetensors"]
    file = interchange.read(native)
    assert file.iteration == 300 and file.metadata["state"] == "last.state-300.safetensors"
    assert all(file.tensors[name].tobytes() == tensor.tobytes() for name, tensor in tensors.items())
    assert parse_config(file.metadata["config"], "here") == config_of_the_run()
    assert file.metadata["preprocessing"]["stride_in_1x1"] is True
    state = interchange.read(native.parent / "last.state-300.safetensors")
    assert state.iteration == 300 and list(state.tensors) == list(momentum)
    assert all(np.array_equal(state.tensors[name], buffer) for name, buffer in momentum.items())


def test_a_native_run_goes_back(checkpoint, native, tmp_path):
    path, tensors, _ = checkpoint
    for legacy in (False, True):
        interchange.convert(native, tmp_path / "back.pth", legacy=legacy)
        first, back = interchange.read(path), interchange.read(tmp_path / "back.pth")
        assert list(back.tensors) == list(tensors) and back.prefix == "" and back.iteration == 300
        assert all(back.tensors[name].tobytes() == tensor.tobytes() for name, tensor in tensors.items())
        assert back.scheduler["last_epoch"] == 300
        for ours, theirs in zip(back.optimizer["param_groups"], first.optimizer["param_groups"]):
            assert ours.keys() == theirs.keys() and ours["params"] == theirs["params"]
            assert ours["lr"] == pytest.approx(theirs["lr"]) and ours["weight_decay"] == theirs["weight_decay"]
        for index, entry in first.optimizer["state"].items():
            assert np.array_equal(back.optimizer["state"][index]["momentum_buffer"], entry["momentum_buffer"])


def test_the_engine_resumes_from_a_converted_run(checkpoint, native):
    load_checkpoint = pytest.importorskip("jrdp.engine.checkpoint").load_checkpoint
    _, tensors, momentum = checkpoint
    state = load_checkpoint(native)
    assert state.iteration == 300 and state.config == config_of_the_run()
    assert set(state.tensors) == set(tensors) and set(state.momentum) == set(momentum)
    assert all(np.array_equal(state.momentum[name], buffer) for name, buffer in momentum.items())


def test_a_lost_training_state_is_an_error(native, tmp_path):
    (tmp_path / "last.safetensors").symlink_to(native)
    with pytest.raises(UserError, match="state-300.safetensors, which is missing"):
        interchange.convert(tmp_path / "last.safetensors", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_momentum_that_does_not_fit_leaves_nothing(tmp_path):
    entries = network_layout("r50")
    optimizer, scheduler = to_pytorch(TrainingState({}, 300), [entry.name for entry in entries if entry.trainable][:-1])
    tensors = {entry.name: np.zeros(entry.shape, np.float16) for entry in entries}
    file = WeightFile(tensors, optimizer=optimizer, scheduler=scheduler, iteration=300)
    interchange.write(tmp_path / "bad.pth", file)
    with pytest.raises(UserError, match="trainable ones"):
        interchange.convert(tmp_path / "bad.pth", tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_the_weights_alone_of_a_training_that_is_not_ours(tmp_path):
    """What torch's AdamW, and SGD with groups of another order, leave behind."""
    layout = network_layout("r50", freeze_at=EVERYTHING_FROZEN)
    tensors = {entry.name: np.zeros(entry.shape, np.float16) for entry in layout}
    optimizer = {"state": {0: {"exp_avg": np.zeros(3)}}, "param_groups": [{"params": [0], "lr": 0.1}]}
    interchange.write(tmp_path / "a.pth", WeightFile(tensors, optimizer=optimizer, scheduler={}, iteration=7))
    for name in ("b.safetensors", "b.pth"):
        with pytest.raises(UserError, match="--weights-only converts the weights without the training state"):
            interchange.convert(tmp_path / "a.pth", tmp_path / name)
        assert not (tmp_path / name).exists()
        interchange.convert(tmp_path / "a.pth", tmp_path / name, weights_only=True)
        file = interchange.read(tmp_path / name)
        assert file.iteration == 7 and file.optimizer is None and "state" not in file.metadata
        assert all(file.tensors[key].tobytes() == tensor.tobytes() for key, tensor in tensors.items())


@pytest.mark.parametrize("stored", [300, 300.0, np.array(300), np.array([300.0])])
def test_iterations_as_people_store_them(stored, tmp_path):
    value = {"model": {"a": np.zeros(2, np.float32)}, "iteration": stored}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    assert interchange.read(tmp_path / "x.pkl").iteration == 300


def test_types_survive_and_the_table_tells_all(tmp_path):
    layout = network_layout("r50")
    tensors = {entry.name: np.zeros(entry.shape, np.float16) for entry in layout}
    tensors["rpn.head.cls_logits.bias"] = BFloat16(np.array([0x4049], np.uint16))
    tensors["backbone.body.stem.bn1.num_batches_tracked"] = np.asarray(1, np.int64)
    interchange.write(tmp_path / "a.pth", WeightFile(tensors))
    report = interchange.convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(tensors) + 1
    counter = next(line for line in lines if "num_batches_tracked" in line)
    assert "left out: a counter" in counter and " - " in counter
    assert "ResNet-50, regularized pyramid (1x1_3x3 fusion), 128-channel head, multi_level mask head" in lines[-1]
    interchange.convert(tmp_path / "b.safetensors", tmp_path / "c.pth")
    final = interchange.read(tmp_path / "c.pth").tensors
    assert final["rpn.head.cls_logits.bias"].bits.tolist() == [0x4049]
    assert all(final[entry.name].dtype == np.float16 for entry in layout if entry.name != "rpn.head.cls_logits.bias")
    report = interchange.convert(tmp_path / "c.pth", tmp_path / "d.pkl")
    assert any("bfloat16 is stored as float32" in note for note in report.notes)
    assert interchange.read(tmp_path / "d.pkl").tensors["rpn.head.cls_logits.bias"].tolist() == [3.140625]


def test_variants_are_inferred_and_stored(tmp_path):
    entries = network_layout("r50", "dense", "p3-p5", "3x3", 64, "single_level")
    tensors = {entry.name: np.zeros(entry.shape, np.float16) for entry in entries}
    interchange.write(tmp_path / "a.pth", WeightFile(tensors))
    interchange.convert(tmp_path / "a.pth", tmp_path / "b.safetensors")
    model = parse_config(interchange.read(tmp_path / "b.safetensors").metadata["config"], "here").model
    assert (model.pyramid.enhancement, model.pyramid.levels, model.pyramid.fusion) == ("dense", "p3-p5", "3x3")
    assert (model.fcos.channels, model.mask.head) == (64, "single_level")
    tensors["backbone.fpn.own_idea.0.weight"] = np.zeros(3, np.float32)  # a pyramid without a table: taken as it is
    interchange.write(tmp_path / "c.pth", WeightFile({k: v for k, v in tensors.items() if "refine" not in k}))
    interchange.convert(tmp_path / "c.pth", tmp_path / "d.pth")
    assert "backbone.fpn.own_idea.0.weight" in interchange.read(tmp_path / "d.pth").tensors


def test_a_run_whose_pyramid_is_ones_own_goes_both_ways(tmp_path):
    """Its names may look like one of the paper's with other shapes, and running statistics have no momentum."""
    layout = network_layout("r50", "none", freeze_at=EVERYTHING_FROZEN)
    own = {
        "backbone.fpn.refine_block_4.0.weight": (256, 768, 1, 1),
        "backbone.fpn.norm.weight": (256,),
        "backbone.fpn.norm.running_mean": (256,),
    }
    rng = np.random.default_rng(0)
    shapes = {**{entry.name: entry.shape for entry in layout}, **own}
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    moving = [entry.name for entry in layout if entry.trainable and entry.name != LAST_SCALE] + list(own)[:2]
    tensors["backbone.fpn.order"] = np.arange(4, dtype=np.int32)
    config = Config(model={"backbone": {"freeze_at": EVERYTHING_FROZEN}, "pyramid": {"enhancement": "mine:Pyramid"}})
    path = tmp_path / "last.safetensors"
    state = TrainingState({name: tensors[name] for name in moving}, 7)
    metadata = {**native_files.header(config, 7), "state": native_files.write_state(path, state)}
    interchange.write(path, WeightFile(tensors, metadata=metadata, iteration=7))

    interchange.convert(path, tmp_path / "x.pth")
    file = interchange.read(tmp_path / "x.pth")
    assert all(np.array_equal(file.tensors[name], tensor) for name, tensor in tensors.items())
    assert file.tensors["backbone.fpn.order"].dtype == np.int32
    assert len(file.optimizer["state"]) == len(moving)
    report = str(interchange.convert(tmp_path / "x.pth", tmp_path / "back.safetensors"))
    assert f"momentum of {len(moving)} parameters at iteration 7" in report
    back = interchange.read(tmp_path / "back.safetensors")
    found = native_files.read_state(back).momentum
    assert set(found) == set(moving) and all(np.array_equal(found[name], tensors[name]) for name in moving)
    assert parse_config(back.metadata["config"], "here") == config
    with pytest.raises(UserError, match="1 parameters differ.*; --weights-only converts"):
        metadata["state"] = native_files.write_state(path, TrainingState({**state.momentum, "backbone.fpn.odd": np.zeros(1, np.float32)}, 7))
        interchange.write(path, WeightFile(tensors, metadata=metadata, iteration=7))
        interchange.convert(path, tmp_path / "y.pth")


def test_the_order_of_the_file_stays_with_its_optimizer(tmp_path):
    """From .pth to .pth the optimizer goes along as it is, and tells its parameters by the order of the names."""
    layout = network_layout("r50", freeze_at=EVERYTHING_FROZEN)
    names = [entry.name for entry in layout]
    towers = {"cls_tower": "bbox_tower", "bbox_tower": "cls_tower"}
    turned = [next((name.replace(one, other) for one, other in towers.items() if one in name), name) for name in names]
    shapes = {entry.name: entry.shape for entry in layout}
    trainable = {entry.name for entry in layout if entry.trainable}
    momentum = {name: np.broadcast_to(np.float32(number), shapes[name]) for number, name in enumerate(names) if name in trainable}
    momentum.pop(LAST_SCALE)
    optimizer, scheduler = to_pytorch(TrainingState(momentum, 300), [name for name in turned if name in trainable])
    tensors = {name: np.zeros(shapes[name], np.float16) for name in turned}
    interchange.write(tmp_path / "a.pth", WeightFile(tensors, optimizer=optimizer, scheduler=scheduler, iteration=300))
    interchange.convert(tmp_path / "a.pth", tmp_path / "b.pth")
    assert list(interchange.read(tmp_path / "b.pth").tensors) == turned
    for name in ("a.pth", "b.pth"):
        interchange.convert(tmp_path / name, tmp_path / "c.safetensors")
        file = interchange.read(tmp_path / "c.safetensors")
        found = native_files.read_state(file).momentum
        assert list(file.tensors) == names and all(np.array_equal(found[key], momentum[key]) for key in momentum)


def test_what_cannot_be_converted(checkpoint, tmp_path):
    path, tensors, _ = checkpoint
    with pytest.raises(UserError, match="suffix"):
        interchange.convert(path, tmp_path / "x.onnx")
    with pytest.raises(UserError, match="No such file"):
        interchange.convert(tmp_path / "absent.pth", tmp_path / "x.pth")
    interchange.write(tmp_path / "other.pth", WeightFile({"encoder.weight": np.zeros(3, np.float32)}))
    with pytest.raises(UserError, match="no checkpoint of RDPNet .* encoder.weight"):
        interchange.convert(tmp_path / "other.pth", tmp_path / "x.pth")
    partial = dict(list(tensors.items())[:-1])
    interchange.write(tmp_path / "partial.pth", WeightFile(partial))
    with pytest.raises(UserError, match="1 missing .roi_heads.mask.predictor.mask_fcn_logits.bias"):
        interchange.convert(tmp_path / "partial.pth", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_the_header_in_a_pth_survives(tmp_path):
    entries = network_layout("r50")
    header = {"config": Config().model_dump(mode="json"), "preprocessing": {"channel_order": "bgr"}, "iteration": 5}
    tensors = {entry.name: np.zeros(entry.shape, np.float16) for entry in entries}
    interchange.write(tmp_path / "a.safetensors", WeightFile(tensors, metadata=header, iteration=5))
    interchange.convert(tmp_path / "a.safetensors", tmp_path / "b.pth")
    file = interchange.read(tmp_path / "b.pth")
    assert file.metadata == json.loads(json.dumps(header)) and file.iteration == 5 and file.others == []
