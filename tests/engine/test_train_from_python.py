"""Training from Python: a dataset and a network of one's own, tests on the way, fine-tuning from a part of weights."""

import json
import random
import shutil
import threading

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jrdp
from jrdp.config import Config, load_config
from jrdp.data.own import GIVEN
from jrdp.dataset_tools.sample import write_sample
from jrdp.engine.checkpoint import load_checkpoint
from jrdp.engine.start import fill_partly, read_start, start_from_scratch
from jrdp.errors import UserError
from jrdp.interchange import WeightFile, match_part
from jrdp.models.rdpnet import RDPNet
from jrdp.models.state import named_tensors
from jrdp.structures import ImageBatch

SETTINGS = [
    "model.backbone.name=tiny_parts:Tiny",
    "model.fcos.channels=32",
    "model.pyramid.enhancement=none",
    "model.fcos.pre_nms_threshold=0.0",  # so that an untrained network finds something
    "model.fcos.pre_nms_top_n=5",
    "model.fcos.post_nms_top_n=5",
    "input.min_size=64",
    "input.max_size=96",
    "data.workers=0",
    "data.test=[]",
    "solver.batch_size=2",
    "solver.base_lr=0.001",
    "solver.warmup_iterations=0",
    "train.log_period=100",
]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=4, val=2, seed=3)
    return folder


def settings(sample, iterations, *more):
    sets = [f"data.train=[{sample}/imgs:{sample}/train.json]", f"solver.max_iterations={iterations}", "solver.steps=[100]"]
    return load_config(None, [*SETTINGS, *sets, *more])


def train(config, out, **options):
    return jrdp.train(config, out, device="cpu", **options)


def same_weights(one, other):
    first, second = load_file(str(one)), load_file(str(other))
    return list(first) == list(second) and all(np.array_equal(first[name], second[name]) for name in first)


def records(out):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


class Squares:
    """Grey pictures with one bright square each."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        picture = np.full((64, 96, 3), 60, np.uint8)
        mask = np.zeros((64, 96), bool)
        mask[16:48, 10 * index : 10 * index + 32] = True
        picture[mask] = 220
        return picture, [mask]


def test_a_dataset_and_steps_of_ones_own(sample, tmp_path, capsys):
    seen = []
    result = train(settings(sample, 3), tmp_path / "run", dataset=Squares(), on_step=seen.append)
    assert [step.iteration for step in seen] == [1, 2, 3] and result["losses"] == seen[-1].losses
    told = capsys.readouterr().out
    assert "training on 4 pictures, 3 iterations of 2" in told
    (line,) = [line for line in told.splitlines() if line.startswith("predict: jrdp predict")]
    assert "--set model.backbone.name=tiny_parts:Tiny" in line  # without it the weights would be refused
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").config.data.train == [GIVEN]
    with pytest.raises(UserError, match="unknown dataset"):  # the folder alone does not tell the dataset
        train(settings(sample, 4, f"data.train=['{GIVEN}']"), tmp_path / "run", resume=True)
    on = train(settings(sample, 4), tmp_path / "run", dataset=Squares(), resume=True)
    assert on["iteration"] == 4 and [line["iteration"] for line in records(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_dataset_that_cannot_be_copied_is_refused_before_anything_is_written(sample, tmp_path):
    squares = Squares()
    squares.lock = threading.Lock()
    with pytest.raises(UserError, match="the dataset Squares cannot be copied .*use data.workers=0"):
        train(settings(sample, 1, "data.workers=1"), tmp_path / "run", dataset=squares)
    assert not (tmp_path / "run").exists()


class Unlabelled(Squares):
    def __getitem__(self, index):
        if self.asked == 7:  # to find an instance, to learn the sizes, to measure the norms on a batch of two
            raise KeyError("mask")
        self.asked += 1
        return super().__getitem__(index)

    asked = 0


def test_what_a_dataset_raises_before_the_first_step_leaves_nothing(sample, tmp_path):
    told = r"^__getitem__\(\d\) of the dataset Unlabelled raised KeyError in test_train_from_python.py, line \d+: 'mask'$"
    for workers in (0, 1):
        with pytest.raises(UserError, match=told):
            train(settings(sample, 2, f"data.workers={workers}"), tmp_path / "run", dataset=Unlabelled())
        assert list((tmp_path / "run").iterdir()) == []


def test_the_hosts_random_numbers_stay_its_own(sample, tmp_path):
    def numbers():
        return random.random(), np.random.rand()

    def seeded():
        random.seed(5)
        np.random.seed(5)

    def stop(_):
        numbers()
        raise RuntimeError("enough")

    seeded()
    expected = numbers()
    seeded()
    with pytest.raises(RuntimeError, match="enough"):
        train(settings(sample, 1, "train.checkpoint_period=1"), tmp_path / "run", on_step=stop)
    assert numbers() == expected
    seeded()
    jrdp.load(tmp_path / "run" / "last.safetensors", device="cpu", overrides=["model.backbone.name=tiny_parts:Tiny"])
    assert numbers() == expected


def test_what_on_step_raises_ends_the_training(sample, tmp_path):
    def stop(step):
        if step.iteration == 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(settings(sample, 5, "train.checkpoint_period=1"), tmp_path / "run", on_step=stop)
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").iteration == 2


@pytest.mark.parametrize("argument", [{"config": {"solver": {}}}, {"model": 3}, {"on_step": "print"}])
def test_another_kind_of_argument_is_named_before_anything_is_written(tmp_path, argument):
    (name,) = argument
    with pytest.raises(TypeError, match=f"^{name}: expected .*, not {type(argument[name]).__name__}$"):
        jrdp.train(**{"out": tmp_path / "run", "device": "cpu", **argument})
    assert not (tmp_path / "run").exists()


def test_a_loaded_network_is_trained_on(sample, tmp_path):
    train(settings(sample, 1), tmp_path / "first")
    model = jrdp.load(tmp_path / "first" / "final.safetensors", device="cpu")
    before = {name: value.numpy() for name, value in named_tensors(model.network).items()}
    result = train(settings(sample, 2), tmp_path / "second", model=model.network)
    after = load_file(str(tmp_path / "second" / "final.safetensors"))
    moved = [name for name in before if not np.array_equal(before[name], after[name])]
    assert "backbone.body.second.weight" in moved and "backbone.body.norm.weight" not in moved
    assert result["iteration"] == 2
    with pytest.raises(TypeError, match="not SalientInstanceModel; give its .network"):
        train(settings(sample, 2), tmp_path / "third", model=model)
    other = settings(sample, 2, "model.pyramid.enhancement=dense", "model.fcos.nms_threshold=0.7")
    with pytest.raises(UserError, match="model.fcos.nms_threshold, model.pyramid.enhancement differ; give the one it was"):
        train(other, tmp_path / "third", model=model.network)  # the weights would be saved with this configuration
    assert not (tmp_path / "third").exists()
    model.save_weights(tmp_path / "saved.safetensors")
    assert same_weights(tmp_path / "saved.safetensors", tmp_path / "second" / "final.safetensors")
    again = jrdp.load(tmp_path / "saved.safetensors", device="cpu")
    picture = sorted((sample / "imgs").iterdir())[0]
    assert np.array_equal(again.predict(picture).boxes, model.predict(picture).boxes)


@pytest.fixture(scope="module")
def tested(sample, tmp_path_factory):
    """A run of four iterations, tested at every second one."""
    out = tmp_path_factory.mktemp("tested") / "run"
    config = settings(
        sample, 4, "train.eval_period=2", "train.checkpoint_period=1", "train.tensorboard=true",
        f"data.test=[{sample}/imgs:{sample}/val.json]",
    )  # fmt: skip
    kept = []

    def keep(step):
        if step.iteration == 3:
            kept.append(shutil.copytree(out, out.parent / "at3"))

    result = train(config, out, on_step=keep)
    return config, out, kept[0], result


def test_tests_on_the_way_are_logged_and_the_best_is_kept(tested):
    config, out, _, result = tested
    lines = records(out)
    assert ["metrics" in line for line in lines] == [False, True, False, True]
    (name,) = result["metrics"]
    assert lines[3]["metrics"] == result["metrics"]
    assert lines[3]["metrics"][name] == json.loads((out / "eval" / "metrics.json").read_text())
    aps = {line["iteration"]: line["metrics"][name]["segm"]["AP"] for line in lines if "metrics" in line}
    best = load_checkpoint(out / "last.safetensors").progress["best"]
    assert best == {"iteration": max(aps, key=aps.get), "ap": max(aps.values())}
    assert same_weights(out / "best.safetensors", out / "final.safetensors") == (best["iteration"] == 4)
    assert (out / "validation" / "segm.json").exists() and (out / "curves.png").stat().st_size > 10000
    assert list((out / "tensorboard").glob("events*"))


def test_a_run_with_tests_on_the_way_is_resumed_bit_for_bit(tested):
    config, out, at3, _ = tested
    train(config, at3, resume=True)
    assert records(at3) == records(out)
    for name in ("final.safetensors", "best.safetensors", "last.state-4.safetensors"):
        assert same_weights(at3 / name, out / name), name
    assert load_checkpoint(at3 / "last.safetensors").progress == load_checkpoint(out / "last.safetensors").progress


def test_tests_on_the_way_change_nothing_in_the_training(sample, tested, tmp_path):
    _, out, _, _ = tested
    train(settings(sample, 4), tmp_path / "run")
    assert same_weights(tmp_path / "run" / "final.safetensors", out / "final.safetensors")


@pytest.mark.parametrize(
    "setting, words",
    [
        ("train.eval_period=1", "eval_period has no effect without a test set"),
        ("train.partial_weights=true", "partial_weights has no effect without weights"),
    ],
)
def test_settings_without_effect_are_refused_before_anything_is_written(sample, tmp_path, setting, words):
    with pytest.raises(UserError, match=words):
        train(settings(sample, 1, setting), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_part_of_weights_starts_a_training_when_asked(sample, tmp_path, capsys):
    train(settings(sample, 1), tmp_path / "first")
    weights = load_file(str(tmp_path / "first" / "final.safetensors"))
    kept = {name: value for name, value in weights.items() if not name.startswith("roi_heads.")}
    kept["rpn.head.cls_logits.weight"] = np.zeros((3, 32, 3, 3), np.float32)
    kept["something.else.weight"] = np.zeros(2, np.float32)
    save_file(kept, str(tmp_path / "part.safetensors"))
    from_part = [f"train.weights={tmp_path}/part.safetensors", "solver.base_lr=1e-30"]
    with pytest.raises(UserError, match="does not fit the network.*; train.partial_weights=true takes what fits"):
        train(settings(sample, 1, *from_part), tmp_path / "strict")
    capsys.readouterr()
    train(settings(sample, 1, *from_part, "train.partial_weights=true"), tmp_path / "partial")
    told = capsys.readouterr().out
    filled = len(weights) - len([name for name in weights if name.startswith("roi_heads.")]) - 1
    assert f"{filled} of the network's {len(weights)} tensors are filled" in told
    assert "as the file has none of that name" in told and "roi_heads.mask.feature_extractor" in told
    assert "another shape: 1 (rpn.head.cls_logits: 1)" in told and "not used: 1 (something.else.weight: 1)" in told
    after = load_file(str(tmp_path / "partial" / "final.safetensors"))
    assert np.array_equal(after["backbone.body.first.weight"], weights["backbone.body.first.weight"])
    assert np.array_equal(after["backbone.body.norm.running_var"], weights["backbone.body.norm.running_var"])
    assert np.abs(after["rpn.head.cls_logits.weight"]).max() > 0


def test_a_part_without_the_backbone_has_its_norms_measured(sample, tmp_path, capsys):
    train(settings(sample, 1), tmp_path / "first")
    weights = load_file(str(tmp_path / "first" / "final.safetensors"))
    save_file({n: v for n, v in weights.items() if n.startswith("rpn.")}, str(tmp_path / "part.safetensors"))
    capsys.readouterr()
    more = [f"train.weights={tmp_path}/part.safetensors", "train.partial_weights=true"]
    train(settings(sample, 1, *more), tmp_path / "partial")
    assert "batch norm of the backbone measured on one batch: 1 of 1 layers" in capsys.readouterr().out
    after = load_file(str(tmp_path / "partial" / "final.safetensors"))
    assert (after["backbone.body.norm.running_var"] != 1).all()


def test_the_weights_of_another_backbone_fill_their_part_and_what_stays_random_is_said():
    config = load_config(None, ["model.backbone.name=r101", "train.partial_weights=true", "train.weights=r50.safetensors"])
    network, smaller = RDPNet(config.model), RDPNet(load_config(None, []).model)
    tensors = {name: value.numpy() for name, value in named_tensors(smaller).items()}
    for name in tensors:
        if name.endswith("running_var"):
            tensors[name] = tensors[name] + 2
    file = WeightFile({name: value for name, value in tensors.items() if ".stem." not in name}, path="r50.safetensors")
    picture = ImageBatch(np.random.default_rng(0).normal(0, 50, (1, 3, 64, 96)).astype(np.float32), [(64, 96)], [(64, 96)], [0])
    told = fill_partly(network, file, lambda: picture)
    assert "measured on one batch: 52 of 104 layers" in told
    assert "frozen and random: 1 tensors (backbone.body.stem: 1); model.backbone.freeze_at=0 lets them learn" in told
    after = named_tensors(network)
    assert (after["backbone.body.layer3.5.bn1.running_var"].numpy() == 3).all()  # filled, and so not measured
    assert (after["backbone.body.layer3.6.bn1.running_var"].numpy() != 1).all()
    assert "frozen and random: 11 tensors" in start_from_scratch(RDPNet(Config().model), picture)
    learning = load_config(None, ["model.backbone.freeze_at=0"]).model
    assert "frozen" not in start_from_scratch(RDPNet(learning), picture)


def test_partial_weights_are_read_whatever_their_backbone_is(weights):
    other = ["model.backbone.name=r101", f"train.weights={weights}"]
    with pytest.raises(UserError, match="its backbone is ResNet-50, the configuration has ResNet-101.*partial_weights"):
        read_start(load_config(None, other))
    assert read_start(load_config(None, [*other, "train.partial_weights=true"])).likeness.backbone == "r50"


def test_weights_of_which_nothing_fits_are_refused():
    file = WeightFile({"a.weight": np.zeros(2, np.float32), "b": np.zeros(3, np.int64)}, path="w.pth")
    with pytest.raises(UserError, match="w.pth: no tensor has the name and shape"):
        match_part({"a.weight": (3,), "b": (3,)}, file)
    part = match_part({"a.weight": (2,), "b": (3,), "c": (1,)}, file)
    assert list(part.tensors) == ["a.weight"] and part.missing == ["c"] and part.misshaped == ["b"] and part.unused == []


def test_the_fast_engine_gives_way_to_the_network_when_that_is_asked_for(weights, sample):
    model = jrdp.load(weights, device="cpu", overrides=["input.min_size=64", "input.max_size=96"])
    picture = sorted((sample / "imgs").iterdir())[0]
    fast = model.predict(picture)
    assert not hasattr(model.engine, "losses")
    network = model.network
    assert network is model.network and hasattr(network, "losses")
    plain = model.predict(picture)
    assert len(fast.scores) == len(plain.scores) and np.allclose(fast.scores, plain.scores, atol=1e-4)
    network.rpn.head.cls_logits.bias.assign(np.float32([-100]))
    assert model.predict(picture).scores.max(initial=0) < 1e-6 < plain.scores.max(), "what the network learns does not show"


def test_the_default_configuration_varies_nothing():
    config = Config()
    assert config.solver.accumulate == 1 and config.solver.clip_norm is None and config.train.eval_period is None
    assert not (config.train.partial_weights or config.train.dynamic_loss_scale or config.train.tensorboard)
    assert not (config.data.min_sizes or config.data.brightness or config.data.contrast or config.data.saturation or config.data.hue)
