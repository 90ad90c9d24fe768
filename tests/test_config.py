"""The configuration: defaults, overrides, and every way of getting it wrong."""

import pathlib

import pytest

from jrdp.config import Config, dump_config, load_config, parse_config
from jrdp.errors import UserError

CONFIGS = sorted(pathlib.Path(__file__).parent.parent.glob("configs/**/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_in_the_repository_loads(path):
    assert isinstance(load_config(path), Config)


def test_r50_isod_is_the_default_written_out():
    path = pathlib.Path(__file__).parent.parent / "configs" / "r50_isod.yaml"
    assert load_config(path) == Config()
    written = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert "\n".join(written).strip() == dump_config(Config()).strip()


def test_dump_and_load_are_inverse(tmp_path):
    config = load_config(None, ["solver.base_lr=0.01", "data.train=[a:b, c]", "train.weights=w.pth"])
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.yaml") == config


def test_overrides_win_over_the_file_and_the_file_over_the_base(tmp_path):
    (tmp_path / "c.yaml").write_text("solver:\n  base_lr: 0.5\n  momentum: 0.5\n")
    config = load_config(tmp_path / "c.yaml", ["solver.base_lr=0.25"])
    assert (config.solver.base_lr, config.solver.momentum, config.solver.batch_size) == (0.25, 0.5, 4)
    assert load_config(None, ["solver.momentum=0.1"], base=config).solver.base_lr == 0.25


def test_stride_follows_the_backbone_unless_set():
    assert load_config(None, []).model.backbone.strides_in_1x1
    assert not load_config(None, ["model.backbone.name=x101"]).model.backbone.strides_in_1x1
    assert load_config(None, ["model.backbone.name=x101", "model.backbone.stride_in_1x1=true"]).model.backbone.strides_in_1x1


@pytest.mark.parametrize(
    "override, words",
    [
        ("solver.lr=1", ["unknown key solver.lr", "base_lr"]),
        ("optimizer.lr=1", ["unknown key optimizer", "solver"]),
        ("solver.base_lr=fast", ["solver.base_lr", "number", "'fast'"]),
        ("solver.base_lr=-1", ["solver.base_lr", "greater than 0", "-1"]),
        ("model.backbone.name=r18", ["model.backbone.name", "r50", "'r18'"]),
        ("data.train=isod_train", ["data.train", "list"]),
        ("data.train=[]", ["data.train", "at least 1"]),
        ("input.max_size=100", ["max_size (100)", "min_size (320)"]),
        ("input.std=[1,0,1]", ["input.std.1", "greater than or equal to 0.000001"]),
        ("input.std=[1,1e-30,1]", ["input.std.1"]),
        ("input.mean=[1,1e30,1]", ["input.mean.1", "less than or equal to 1000000"]),
        ("input.scale=1e308", ["input.scale"]),
        ("solver.base_lr=1e30", ["solver.base_lr"]),
        ("solver.bias_lr_factor=1e30", ["solver.bias_lr_factor"]),
        ("solver.weight_decay=1e30", ["solver.weight_decay"]),
        ("solver.bias_weight_decay=1e30", ["solver.bias_weight_decay"]),
        ("solver.gamma=1e30", ["solver.gamma"]),
        ("solver.warmup_factor=1e30", ["solver.warmup_factor"]),
        ("solver.steps=[6000, 5000]", ["steps: [6000, 5000] should increase"]),
        ("solver.steps=[6000, 6000]", ["steps: [6000, 6000] should increase"]),
        ("model.fcos.channels=33", ["model.fcos.channels", "multiple of 32"]),
        ("data.min_sizes=[320, 16384]", ["data.min_sizes: 16384 makes pictures up to 24576 wide", "the largest is 16384"]),
        ("data.test=[a:b, c:d, a:b]", ["data: test: a:b is named twice"]),
        ("data.root=''", ["data.root", "at least 1 character"]),
        ("train.weights=''", ["train.weights", "at least 1 character"]),
        ("input.mean=[1,2]", ["input.mean"]),
        ("train.seed=true", ["train.seed", "integer", "not True"]),
        ("train.seed=010", ["train.seed", "integer", "not '010'"]),
        ("solver.max_iterations='9'", ["integer", "not '9'"]),
        ("solver.max_iterations=9.5", ["integer", "not 9.5"]),
        ("solver.steps=[true]", ["solver.steps.0", "integer", "not True"]),
        ("train.amp=1", ["train.amp", "boolean", "not 1"]),
        ("solver.base_lr=true", ["solver.base_lr", "number", "not True"]),
        ("input.mean=[1,'2',3]", ["input.mean.1", "number", "not '2'"]),
        ("solver={gamma: 0.5, gamma: 0.1}", ["'gamma' is given twice"]),
        ("solver={steps: [], gamma: 0.5}", ["gamma: 0.5 has no effect with steps: []"]),
        ("solver={warmup_iterations: 0, warmup_factor: 0.5}", ["warmup_factor: 0.5 has no effect with warmup_iterations: 0"]),
        ("solver", ["--set 'solver'", "key.key=value"]),
        ("solver..x=1", ["--set"]),
        ("solver.base_lr.x=1", ["solver.base_lr"]),
        ("solver=[", ["not valid YAML"]),
    ],
)
def test_bad_overrides_are_named(override, words):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "override, value", [("1e-4", 1e-4), ("2", 2.0), ("3.", 3.0), (".5", 0.5), ("1.5E+2", 150.0), ("0x10", 16.0)]
)
def test_numbers_are_read_as_people_write_them(override, value):
    read = load_config(None, [f"solver.base_lr={override}"]).solver.base_lr
    assert isinstance(read, float) and read == value


@pytest.mark.parametrize(
    "content, words",
    [
        (b"- a\n- b\n", ["mapping", "list"]),
        (b"solver: {", ["not valid YAML"]),
        (b"solver:\n\tgamma: 0.1\n", ["not valid YAML", "a tab", "line 2"]),
        (b"\xff\xfe\x00", ["cannot read"]),
        (b"solver:\n  base_lr: [1]\n", ["solver.base_lr"]),
    ],
)
def test_bad_files_are_named(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_config(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_empty_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == Config()


def test_parse_names_the_origin():
    with pytest.raises(UserError, match="stored in x.safetensors"):
        parse_config({"what": 1}, "stored in x.safetensors")


@pytest.mark.parametrize(
    "value", ["2020-13-45", "0b_", "!!int foo", "[" * 5000, "9" * 5000, "&a [*a]", ".inf", ".nan", "!!binary x", "\ud800", "-1"]
)
def test_hostile_values_are_one_line(value):
    with pytest.raises(UserError) as caught:
        load_config(None, [f"solver.base_lr={value}"])
    assert len(str(caught.value)) < 1500 and "\n" not in str(caught.value)


def test_an_alias_bomb_ends(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="holds more than"):
        load_config(tmp_path / "bomb.yaml")


def test_anchors_may_be_used(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {train: &sets [a], test: *sets}\n")
    assert load_config(tmp_path / "c.yaml").data.test == ["a"]


def test_numbers_have_bounds():
    for setting in ("input.scale=.inf", "input.mean=[.nan,1,1]", "train.seed=99999999999999999999", "input.max_size=2000000000"):
        with pytest.raises(UserError):
            load_config(None, [setting])


@pytest.mark.parametrize(
    "settings, words",
    [
        (["enhancement=pa", "fusion=3x3"], "fusion: 3x3 has no effect with enhancement: pa"),
        (["enhancement=nas_fpn", "fusion=3x3"], "fusion: 3x3 has no effect"),
        (["enhancement=bifpn", "fusion=3x3"], "fusion: 3x3 has no effect"),
        (["enhancement=none", "fusion=3x3"], "fusion: 3x3 has no effect"),
        (["enhancement=none", "levels=p3-p5"], "levels: p3-p5 has no effect with enhancement: none"),
    ],
)
def test_pyramid_settings_without_effect_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        load_config(None, [f"model.pyramid.{setting}" for setting in settings])


def test_pyramid_settings_with_effect_are_taken():
    def pyramid(*settings):
        return load_config(None, [f"model.pyramid.{setting}" for setting in settings]).model.pyramid

    for enhancement in ("progressive", "dense", "regularized", "top_down_regularized"):
        taken = pyramid(f"enhancement={enhancement}", "fusion=3x3", "levels=p3-p5")
        assert (taken.enhancement, taken.fusion, taken.levels) == (enhancement, "3x3", "p3-p5")
    assert pyramid("enhancement=pa", "levels=p3-p5").levels == "p3-p5"
