"""Bad input to the command line: one clear line, exit code 2, nothing half-written."""

import fcntl
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from command_line import run_jrdp
from PIL import Image
from safetensors.numpy import load_file, save_file
from small_datasets import write_clip

from jrdp.dataset_tools.sample import write_sample


@pytest.fixture
def run(monkeypatch, capsys):
    """`run("test", "--out", ...)` -> (exit code, standard error)."""

    def call(*arguments):
        code, _, error = run_jrdp(monkeypatch, capsys, *arguments)
        return code, error

    return call


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli-sample")
    write_sample(folder, train=2, val=1)
    return folder


def refused(result, *words):
    code, error = result
    lines = [line for line in error.splitlines() if line.strip()]
    assert code == 2, error
    assert len(lines) == 1 and lines[0].startswith("jrdp: error: "), error
    for word in words:
        assert str(word) in lines[0], error


def dataset(sample, name="val"):
    return f"data.test=[{sample}/imgs:{sample}/{name}.json]"


def test_config_missing_unreadable_unknown_key_wrong_type(run, tmp_path):
    refused(run("train", "--out", tmp_path / "o", "--config", tmp_path / "no.yaml"), "no.yaml", "No such file")
    (tmp_path / "bad.yaml").write_text("solver: {")
    refused(run("train", "--out", tmp_path / "o", "--config", tmp_path / "bad.yaml"), "bad.yaml", "not valid YAML")
    refused(run("train", "--out", tmp_path / "o", "--set", "solver.lr=1"), "unknown key solver.lr")
    refused(run("train", "--out", tmp_path / "o", "--set", "solver.base_lr=high"), "solver.base_lr", "number")
    assert not (tmp_path / "o").exists()


def test_missing_dataset(run, tmp_path, weights):
    refused(run("test", "--weights", weights, "--out", tmp_path / "o"), "isod_test", "datasets/isod", "docs/data.md")
    refused(run("test", "--weights", weights, "--out", tmp_path / "o", "--set", "data.test=[nonsense]"), "nonsense")
    refused(run("data", "check", "isod_train", "--set", f"data.root={tmp_path}"), tmp_path)
    assert not (tmp_path / "o").exists()


def changed(sample, tmp_path, change):
    content = json.loads((sample / "val.json").read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return f"data.test=[{sample}/imgs:{path}]"


def test_json_without_categories_or_segmentation(run, tmp_path, weights, sample):
    setting = changed(sample, tmp_path, lambda content: content.pop("categories"))
    common = ("test", "--weights", weights, "--out", tmp_path / "o")
    refused(run(*common, "--set", setting), "changed.json", "categories")
    setting = changed(sample, tmp_path, lambda content: [one.pop("segmentation") for one in content["annotations"]])
    refused(run(*common, "--set", setting), "changed.json", "no instance has a mask")
    assert not (tmp_path / "o").exists()


def test_an_instance_without_a_mask_is_counted(run, tmp_path, weights, sample):
    setting = changed(sample, tmp_path, lambda content: content["annotations"][0].pop("segmentation"))
    code, error = run("test", "--weights", weights, "--out", tmp_path / "o", "--set", setting, "--set", "input.min_size=64")
    assert code == 0, error
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["segm"]["without_mask"] == 1


def test_folder_without_pictures_and_missing_picture(run, tmp_path, weights):
    (tmp_path / "empty").mkdir()
    refused(run("predict", "--weights", weights, "--out", tmp_path / "o", tmp_path / "empty"), "no pictures", "empty")
    refused(run("predict", "--weights", weights, "--out", tmp_path / "o", tmp_path / "none.jpg"), "none.jpg")
    assert not (tmp_path / "o").exists()


def test_corrupt_picture_is_skipped_and_the_others_are_done(run, tmp_path, weights):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"this is no picture")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:60])
    code, error = run("predict", "--weights", weights, "--out", tmp_path / "o", folder, "--set", "input.min_size=64")
    assert code == 1
    assert "b.png" in error and "c.png" in error and "a.png" not in error
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "a.png", "a_instances.png", "predictions.asked.json", "predictions.json"
    ]
    results = json.loads((tmp_path / "o" / "predictions.json").read_text())
    assert results and {result["file_name"] for result in results} == {"a.png"}


@pytest.mark.parametrize("engine", ["plain", "fast"])
def test_answers_that_are_no_numbers_name_the_picture(run, tmp_path, seeded, sample, engine):
    """Weights that are finite, of a network that is not."""
    tensors, path = dict(seeded("r50")), tmp_path / "diverged.safetensors"
    tensors["rpn.head.bbox_tower.10.weight"] = tensors["rpn.head.bbox_tower.10.weight"] * np.float32(100)
    tensors["rpn.head.bbox_pred.weight"] = np.sign(tensors["rpn.head.bbox_pred.weight"]) * np.float32(3e38)
    save_file(tensors, str(path))
    common = ("--weights", path, "--out", tmp_path / "o", "--set", f"test.engine={engine}", "--set", "input.min_size=64")
    words = ("the network's answers for", f"{sample}/imgs/val_000.png are not finite (distances at P3)")
    refused(run("predict", *common, sample / "imgs" / "val_000.png"), *words)
    refused(run("test", *common, "--set", dataset(sample)), *words)
    write_clip(tmp_path / "clip.mp4", 2)
    refused(run("predict", *common, tmp_path / "clip.mp4"), words[0], "clip.mp4, frame 0 are not finite (distances at P3)")


def test_checkpoint_of_another_backbone_truncated_or_none(run, tmp_path, weights, sample):
    out = tmp_path / "o"
    common = ("--out", out, "--set", dataset(sample))
    refused(run("test", "--weights", weights, *common, "--set", "model.backbone.name=r101"), "r50", "101")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(weights.read_bytes()[:5_000_000])
    refused(run("test", "--weights", truncated, *common), "truncated.safetensors")
    (tmp_path / "no.pth").write_text("hello")
    refused(run("test", "--weights", tmp_path / "no.pth", *common), "no.pth", "not a checkpoint")
    refused(run("test", "--weights", tmp_path / "missing.pth", *common), "missing.pth")
    assert not out.exists()


def test_output_folder_that_cannot_be_written(run, tmp_path, weights, sample):
    (tmp_path / "file").write_text("")
    refused(run("test", "--weights", weights, "--out", tmp_path / "file", "--set", dataset(sample)), "file")
    refused(run("predict", "--weights", weights, "--out", tmp_path / "file", sample / "imgs"), "file")
    # A folder without write permission; root may write everywhere, so use one that even root cannot write to.
    locked = "/proc/jrdp" if os.geteuid() == 0 else str(tmp_path / "locked" / "out")
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
    refused(run("test", "--weights", weights, "--out", locked, "--set", dataset(sample)), locked)


def test_cuda_without_a_gpu(run, tmp_path, weights, sample):
    from jrdp.machine import runtime

    if runtime.prepare().cuda.usable:
        pytest.skip("this machine has a usable GPU")
    common = ("predict", "--weights", weights, "--out", tmp_path / "o", sample / "imgs")
    refused(run(*common, "--device", "cuda"), "cuda", "GPU")
    refused(run(*common, "--device", "tpu"), "tpu")


def test_tf32_without_a_gpu(run, tmp_path, weights, sample):
    train = ("train", "--out", tmp_path / "o", "--device", "cpu", "--set", "train.tf32=true")
    refused(run(*train), "train.tf32", "need a GPU")
    test = ("test", "--weights", weights, "--out", tmp_path / "o", "--device", "cpu", "--set", dataset(sample))
    refused(run(*test, "--set", "test.tf32=true"), "test.tf32", "need a GPU")
    compare = ("compare", "gradients", "--out", tmp_path / "o", "--dataset", "sample", "--tf32")
    refused(run(*compare), "--tf32 needs a GPU", "--device cuda")
    assert not (tmp_path / "o").exists()


def test_weights_of_another_preprocessing_are_refused(run, tmp_path, weights, sample):
    from safetensors.numpy import load_file

    tensors = {name: value for name, value in load_file(str(weights)).items() if name.startswith("backbone.body.")}
    header = {"preprocessing": {"channel_order": "rgb", "scale": 1.0, "stride_in_1x1": False}}
    path = tmp_path / "torchvision_like.safetensors"
    save_file(tensors, str(path), metadata={"jrdp": json.dumps(header)})
    setting = f"data.train=[{sample}/imgs:{sample}/train.json]"
    result = run("train", "--weights", path, "--out", tmp_path / "o", "--set", setting, "--set", "data.test=[]")
    refused(result, "input.channel_order=rgb", "input.scale=1.0", "model.backbone.stride_in_1x1=false")


def test_unknown_options_and_help_are_typers_own(run):
    assert run("predict", "--nonsense")[0] == 2
    for command in ("doctor", "train", "test", "predict", "convert", "analyze", "compare", "data"):
        assert run(command, "--help")[0] == 0


def test_the_installed_command_exits_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jrdp", "train", "--out", str(tmp_path / "o"), "--set", "a=1"],
        capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 2 and done.stderr.startswith("jrdp: error: ") and "Traceback" not in done.stderr


MOODY = """
from tiny_parts import Tiny

class Moody(Tiny):
    def execute(self, images):
        if images.shape[0] > 1:
            raise ValueError("one picture at a time, please")
        return super().execute(images)
"""


def test_what_a_backbone_of_one_s_own_raises_later_is_one_line_with_the_place(run, tmp_path, sample, monkeypatch):
    """Not called a mistake of ours; and a training that has not made a step leaves nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moody_part.py").write_text(MOODY)
    settings = (f"data.train=[{sample}/imgs:{sample}/train.json]", "data.test=[]", "input.min_size=64", "data.workers=0")
    line = ("train", "--out", tmp_path / "o", "--device", "cpu", "--set", "model.backbone.name=moody_part:Moody")
    result = run(*line, *(word for setting in settings for word in ("--set", setting)))
    refused(result, "your own code raised ValueError in moody_part.py, line 7: one picture at a time, please")
    assert not (tmp_path / "o").exists()


def test_nothing_to_resume(run, tmp_path):
    refused(run("train", "--out", tmp_path / "o", "--resume"), "nothing to resume", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_settings_that_a_command_never_looks_at_are_refused(run, tmp_path, weights, sample):
    out, common = tmp_path / "o", ("--weights", weights)
    predict = ("predict", *common, "--out", out, sample / "imgs")
    refused(run(*predict, "--set", "solver.base_lr=1"), "--set solver.base_lr has no effect on jrdp predict")
    refused(run(*predict, "--set", "data.root=x"), "--set data.root has no effect")
    refused(run("test", *common, "--out", out, "--set", "train.amp=true"), "train.amp has no effect on jrdp test")
    refused(run("export", tmp_path / "x.onnx", *common, "--set", "test.engine=fast"), "no effect on jrdp export")
    refused(run("data", "check", "a:b", "--set", "input.min_size=9"), "no effect on jrdp data check")
    refused(run("data", "stats", "a:b", "--set", "solver.gamma=1"), "no effect on jrdp data stats")
    refused(run("bench", "--cost", "--out", out, "--set", "input.min_size=9"), "no effect on jrdp bench --cost")
    refused(run(*predict, "--set", "solver.nonsense=1"), "unknown key solver.nonsense")
    assert not out.exists() and not (tmp_path / "x.onnx").exists()


def test_start_weights_whose_name_is_no_text_are_one_line(run, tmp_path, weights):
    name = tmp_path / os.fsdecode(b"w\xff.safetensors")
    for there in (False, True):
        if there:
            name.write_bytes(weights.read_bytes())
        refused(run("train", "--weights", name, "--out", tmp_path / "o"), "--weights", "w\\udcff", "not UTF-8", "rename the file")
    assert not (tmp_path / "o").exists()


def test_options_without_effect_are_refused(run, tmp_path, weights, sample):
    out = tmp_path / "o"
    predict = ("predict", "--weights", weights, "--out", out)
    refused(run(*predict, sample / "imgs", "--frames", 3), "--frames has no effect on pictures")
    (tmp_path / "v.mp4").write_bytes(b"x")
    refused(run(*predict, tmp_path / "v.mp4", "--jobs", 2), "--jobs has no effect on videos")
    refused(run("bench", "--out", out, "--compiled"), "--compiled has no effect without --twin-python")
    cost = ("bench", "--cost", "--out", out)
    refused(run(*cost, "--rounds", 3, "--no-training"), "--rounds, --no-training have no effect with --cost")
    refused(run(*cost, "--weights", weights, "--threads", 1), "--weights, --threads have no effect with --cost")
    refused(run("train", "--out", out, "--seed", 1, "--set", "train.seed=2"), "--seed and --set train.seed")
    refused(run("train", "--out", out, "--weights", weights, "--set", "train.weights=x"), "--weights and --set train.weights")
    assert not out.exists()


@pytest.mark.parametrize("command", ["test", "predict"])
def test_what_an_interrupted_run_has_done_is_not_dropped(run, tmp_path, weights, sample, command):
    out = tmp_path / "o"
    out.mkdir()
    kept = out / {"test": "test.partial.jsonl", "predict": "predictions.partial.jsonl"}[command]
    kept.write_text('{"asked": {}}\n{"results": []}\n')
    what = ["--set", dataset(sample)] if command == "test" else [sample / "imgs"]
    asked = [command, "--weights", weights, "--out", out, *what]
    refused(run(*asked), kept, "(1 entry)", "add --resume", "remove that file")
    with open(kept, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(run(*asked), "another process is writing into", out)
    refused(run(*asked, "--resume"), "--resume with other", "remove that file")
    assert kept.read_text().count("\n") == 2


def test_a_file_in_place_of_the_output_folder_is_noticed_before_the_work(run, tmp_path, sample):
    taken = tmp_path / "a.png"
    taken.write_bytes(b"a picture")
    truth = sample / "val.json"
    for command in (
        ("analyze", "--ground-truth", truth, "--compare", f"a={tmp_path / 'none.json'}"),
        ("compare", "detections", tmp_path / "none.json", tmp_path / "none.json", "--dataset", f"{sample}/imgs:{truth}"),
        ("data", "stats", f"{sample}/imgs:{truth}"),
        ("bench", "--cost"),
        ("data", "sample"),
    ):
        out = (taken,) if command[-1] == "sample" else ("--out", taken)
        refused(run(*command, *out), f"{taken} is a file, not a folder")
    assert taken.read_bytes() == b"a picture"


def test_resuming_with_other_start_weights_is_refused():
    from jrdp.config import load_config
    from jrdp.engine.run_folder import differences

    saved, same = load_config(None, ["train.weights=a/b.pth"]), load_config(None, ["train.weights=./a/../a/b.pth"])
    assert differences(load_config(), saved) == [] and differences(same, saved) == []
    assert differences(load_config(None, ["train.weights=c.pth"]), saved) == ["train.weights"]
    assert differences(saved, load_config()) == ["train.weights"]
    partly = load_config(None, ["train.weights=a/b.pth", "train.partial_weights=true"])
    assert differences(partly, saved) == ["train.partial_weights"] and differences(saved, partly) == []


def test_no_dataset_tool_replaces_an_input(run, tmp_path):
    """The same bytes after every command whose output is named like something it reads."""
    write_sample(tmp_path / "s", train=1, val=1)
    imgs, annotations = tmp_path / "s" / "imgs", tmp_path / "s" / "dataset_1.json"
    (tmp_path / "s" / "val.json").rename(annotations)
    before = annotations.read_bytes()
    refused(run("data", "stats", f"{imgs}:{annotations}", "--out", tmp_path / "s"), "would replace the input")
    assert annotations.read_bytes() == before
    (imgs / "val_000.png").rename(imgs / "dataset_1.png")
    picture = (imgs / "dataset_1.png").read_bytes()
    refused(run("data", "stats", f"{imgs}:{annotations}", "--out", imgs), "would replace the input")
    assert (imgs / "dataset_1.png").read_bytes() == picture
    (tmp_path / "masks").mkdir()
    Image.new("L", (96, 64), 1).save(tmp_path / "masks" / "train_000.png")
    mask = (tmp_path / "masks" / "train_000.png").read_bytes()
    refused(run("data", "convert", tmp_path / "masks", imgs, tmp_path / "masks" / "train_000.png"), "would replace the input")
    assert (tmp_path / "masks" / "train_000.png").read_bytes() == mask
    own = tmp_path / "own"
    own.mkdir()
    (own / "train.json").write_text('{"images": []}')
    refused(run("data", "sample", own), "train.json", "not of a sample set")
    assert sorted(path.name for path in own.iterdir()) == ["train.json"]


def test_no_command_replaces_what_somebody_else_made(run, tmp_path, weights, sample):
    """Files of the names that it writes, which are no earlier run's: all of them are as they were."""
    picture, truth = sample / "imgs" / "val_000.png", f"{sample}/imgs:{sample / 'val.json'}"
    write_clip(tmp_path / "clip.mp4", 2)
    model = ("--weights", weights, "--set", "input.min_size=64", "--device", "cpu")
    commands = {
        ("predict", *model, picture): ("val_000.png", "val_000_instances.png", "predictions.json", "predictions.asked.json"),
        ("predict", *model, tmp_path / "clip.mp4"): ("clip.mp4", "clip.json"),
        ("test", *model, "--set", f"data.test=[{truth}]"): ("metrics.json", "bbox.json", "segm.json", "pr_curves.png"),
        ("data", "stats", truth): ("dataset_1.json", "dataset_1.png"),
        ("bench", "--cost"): ("cost.json",),
        ("bench", "--weights", weights): ("bench.json",),
        ("compare", "layers", "--images", picture, "--weights", weights): ("report.html", "report.json"),
        ("compare", "twin-test", "--weights", weights, "--dataset", truth): ("metrics.json", "segm.json"),
    }
    for number, (command, names) in enumerate(commands.items()):
        for name in names:
            out = tmp_path / f"{number}-{name}"
            out.mkdir()
            (out / name).write_text('{"theirs": 1}')
            refused(run(*command, "--out", out), out, name, "not from an earlier run of this command")
            assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, '{"theirs": 1}')]
    results = tmp_path / "results"
    for command in list(commands)[:4]:  # an earlier run's are replaced, into one folder
        for _ in range(2):
            code, error = run(*command, "--out", results)
            assert code == 0, error
    found = ("compare", "detections", results / "segm.json", results / "segm.json", "--dataset", truth, "--out", results)
    analysed = ("analyze", "--ground-truth", sample / "val.json", "--compare", f"a={results / 'segm.json'}", "--out", results)
    assert run(*found)[0] == 0 and run(*found)[0] == 0
    refused(run(*analysed), results, "report.html", "not from an earlier run of this command")
    (results / "report.html").unlink()
    assert run(*analysed)[0] == 0 and run(*analysed)[0] == 0


def test_an_empty_argument_is_no_path(run, tmp_path, weights, monkeypatch):
    """As a path it is the working folder: a variable that is not set would predict or fill it."""
    monkeypatch.chdir(tmp_path)
    refused(run("predict", "--weights", weights, "--out", tmp_path / "o", ""), "one of the arguments is empty")
    refused(run("data", "sample", ""), "one of the arguments is empty")
    assert list(tmp_path.iterdir()) == []


COMPARE = {
    "layers": ("--images", "imgs", ["solver.base_lr=1", "test.engine=fast", "test.batch_size=2", "data.root=x"], ["model.fcos.post_nms_top_n=9"]),
    "gradients": ("--dataset", "sample", ["solver.base_lr=1", "test.batch_size=2"], ["solver.batch_size=2", "train.engine=fast"]),
    "training": ("--dataset", "sample", ["test.batch_size=2", "train.weights=x"], ["solver.base_lr=1", "data.flip_probability=0"]),
    "twin-test": ("--dataset", "a:b.json", ["solver.base_lr=1", "data.train=[x]", "test.engine=plain"], ["data.root=x", "test.mask_threshold=0.4"]),
    "speed": ("--rounds", "1", ["data.root=x", "test.engine=fast", "solver.batch_size=2", "train.engine=fast"], ["test.precision=float32"]),
}


@pytest.mark.parametrize("command", COMPARE)
def test_what_a_comparison_never_looks_at_is_refused(run, monkeypatch, tmp_path, weights, sample, command):
    monkeypatch.chdir(sample)
    option, value, unused, used = COMPARE[command]
    line = ("compare", command, option, value, "--weights", weights, "--out", tmp_path / "o", "--twin-python", tmp_path / "none")
    for setting in unused:
        refused(run(*line, "--set", setting), f"--set {setting.partition('=')[0]} has no effect on jrdp compare {command}")
    for setting in used:  # goes on, to the Python that is not there
        code, text = run(*line, "--set", setting)
        assert code == 2 and "no effect" not in text
    assert not (tmp_path / "o").exists()


def test_a_seed_of_which_nothing_is_drawn_is_refused(run, tmp_path, weights, sample):
    body = {name: value for name, value in load_file(str(weights)).items() if name.startswith("backbone.body.")}
    save_file(body, str(tmp_path / "body.safetensors"))
    line = ("compare", "layers", "--images", sample / "imgs", "--out", tmp_path / "o", "--twin-python", tmp_path / "none")
    refused(run(*line, "--weights", weights, "--seed", 1), "--seed has no effect beside weights of the whole network")
    for more in (("--weights", tmp_path / "body.safetensors"), ()):  # goes on, to the Python that is not there
        code, text = run(*line, *more, "--seed", 1)
        assert code == 2 and "no effect" not in text
    bench = ("bench", "--out", tmp_path / "o")
    refused(run(*bench, "--set", "test.engine=plain"), "--set test.engine has no effect on jrdp bench")
    refused(run(*bench, "--no-training", "--set", "solver.batch_size=2"), "no effect on jrdp bench --no-training")


def test_options_of_a_short_comparison_are_refused_for_a_whole_one(run, tmp_path):
    line = ("compare", "training", "--evaluate", "--out", tmp_path / "o")
    refused(run(*line, "--loss-tolerance", 0.02), "--loss-tolerance has no effect with --evaluate")
    refused(run(*line, "--parameter-tolerance", 0.1), "--parameter-tolerance has no effect with --evaluate")
    refused(run(*line, "--seeds", 1, "--seed", 1), "--seed has no effect beside --seeds")
