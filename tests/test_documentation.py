"""Every command line of README.md and docs/ works as it is written, in a fresh folder that has what it names.

A command line is an indented line, or one in a fenced block of a shell, that begins with `jrdp`, `bash`, `python`, `pip`
or `mpirun`. Those of `jrdp` are run in this process, in the document's order, so that a later one finds what an earlier
one wrote; small pictures and one iteration are appended (`SHORTER`). What this machine cannot run stands in `REPLACED`
with what is done instead; a line that is neither fails the test. Commands within sentences, and the comments of scripts,
have their subcommand, options and configuration keys looked up.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.numpy import save_file

from jrdp import cli
from jrdp.comparison import process
from jrdp.config import load_config
from jrdp.dataset_tools.sample import write_sample
from jrdp.demo import page
from jrdp.interchange import WeightFile, imagenet
from jrdp.interchange.backbones import DETECTRON_PREPROCESSING
from jrdp.interchange.layout import BACKBONE, LAST_SCALE

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))])
SHELLS = ("", "sh", "bash", "shell", "console")
COMMAND = re.compile(r"(?:[A-Z_]+=\S* )*(jrdp|bash|python|pip|mpirun)(?= [a-z-])")

SMALL = ["--set", "input.min_size=64", "--set", "input.max_size=96"]
ONE_STEP = ["--set", "solver.max_iterations=1", "--set", "solver.batch_size=1", "--set", "data.workers=0"]
SHORTER = {  # by subcommand, what is appended
    "train": [*SMALL, *ONE_STEP], "test": SMALL, "predict": SMALL, "demo": SMALL,
    "data weights": [], "data sample": ["--train", "2", "--val", "1"],
}
REPLACED = {  # what begins like this is not run; the function checks what can be checked
    "bash scripts/": "needs an environment of its own, a GPU or hours: the script must exist and be sound",
    "pip install": "needs the network: the extra must exist",
    "python scripts/": "needs PyTorch or many minutes: its --help must know the options",
    "mpirun": "needs MPI: the command after it must be sound",
}
TWIN = ("compare layers", "compare gradients", "compare training", "compare twin-test", "compare speed", "bench")


def lines_of(document):
    """(line number, text) of every command line."""
    fence = None
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            fence = None if fence is not None else line[3:].strip()
            continue
        inside = line.startswith("    ") if fence is None else fence in SHELLS
        text = line.strip().removeprefix("$ ")
        if inside and COMMAND.match(text):
            yield number, text


def words_of(line):
    """The command without its comment; optional parts in brackets are taken."""
    line = re.sub(r"\s# .*", "", line)
    return shlex.split(re.sub(r"(^|\s)\[(-[^\]]*)\]", r"\1\2", line))


def test_lines_are_found():
    found = {document: [text for _, text in lines_of(document)] for document in DOCUMENTS}
    assert "jrdp doctor" in {" ".join(words_of(line)) for line in found["README.md"]}
    assert sum(map(len, found.values())) > 40
    assert words_of("python a.py OUT [--rounds 7]   # note") == ["python", "a.py", "OUT", "--rounds", "7"]
    assert words_of("jrdp test --set 'data.test=[isod_test]'")[-1] == "data.test=[isod_test]"


@pytest.fixture(scope="module")
def world(seeded, tmp_path_factory):
    """A folder with everything that the documents name: photographs, datasets, weights, results."""
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    random = np.random.default_rng(0)
    for name in ("photos/a.jpg", "photos/b.png", "photo.jpg", "P/b_267x400.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (80, 120, 3), dtype=np.uint8)).save(folder / name)
    write_sample(folder / "sample", train=3, val=2)
    train, val, images = folder / "sample" / "train.json", folder / "sample" / "val.json", folder / "sample" / "imgs"
    for name, jsons in {
        "isod": ["train", "test"], "soc": ["train", "val", "test"], "ecssd": ["train", "val"], "coco_salient": ["train", "val"],
    }.items():
        shutil.copytree(images, folder / "datasets" / name / "imgs")
        for part in jsons:
            shutil.copy(train if part == "train" else val, folder / "datasets" / name / f"{part}.json")
    come = folder / "datasets" / "COME15K"
    for part in ("COME", "COME-E", "COME-H"):
        shutil.copytree(images, come / part / "RGB")
    for part, source in (("train", train), ("test_e", val), ("test_h", val)):
        shutil.copy(source, come / f"{part}.json")
    shutil.copytree(images, folder / "photos" / "imgs")
    shutil.copy(train, folder / "photos" / "train.json")
    shutil.copytree(folder / "datasets" / "ecssd", folder / "ECSSD")
    for name in ("mnt_sets", "DATA"):
        (folder / name).symlink_to("datasets")
    shutil.copy(folder / "datasets" / "isod" / "test.json", folder / "test.json")
    results = [
        {"image_id": a["image_id"], "category_id": 1, "score": 0.9, "bbox": a["bbox"], "segmentation": a["segmentation"]}
        for a in json.loads(val.read_text())["annotations"] if isinstance(a["segmentation"], dict)
    ]
    places = ("eval", "out/twin", "out/trip_twin")
    for place in places:
        (folder / place).mkdir(parents=True)
        (folder / place / "metrics.json").write_text('{"bbox": {"AP50": 0.0}, "segm": {"AP50": 0.0}}')  # as a test leaves it
    for name in ("theirs.json", *(f"{place}/{kind}.json" for place in places for kind in ("bbox", "segm"))):
        boxes = [{key: value for key, value in each.items() if key != "segmentation"} for each in results]
        (folder / name).write_text(json.dumps(boxes if name.endswith("bbox.json") else results))
    (folder / "config.yaml").write_text("input: {min_size: 64, max_size: 96}\n")
    for name in ("MASKS", "IMAGES"):
        (folder / name).mkdir()
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "IMAGES" / "a.png")
    Image.fromarray(np.eye(8, 9, dtype=np.uint8)).save(folder / "MASKS" / "a.png")
    weights = {**seeded("r50"), LAST_SCALE: np.ones(seeded("r50")[LAST_SCALE].shape, np.float32)}
    (folder / "weights").mkdir()
    save_file(weights, str(folder / "W"))
    shutil.copytree(ROOT / "tests" / "golden" / "imgs", folder / "tests" / "golden" / "imgs")
    os.link(folder / "W", folder / "G")
    for name in ("small200", "final", "changed", "weights/r50_isod", "weights/r50_soc", "weights/r50_come"):
        os.link(folder / "W", folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def newcomer(world, tmp_path, monkeypatch, seeded):
    """A fresh copy of the world as the working directory, where nothing is fetched, served or compared with a twin."""
    shutil.copytree(world, tmp_path / "home", symlinks=True, copy_function=os.link)  # nothing is written in place
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.delenv("JRDP_WEIGHTS", raising=False)
    preprocessing = {**DETECTRON_PREPROCESSING, "stride_in_1x1": True}
    body = {name: value for name, value in seeded("r50").items() if name.startswith(BACKBONE)}
    monkeypatch.setattr(
        imagenet, "_fetch", lambda backbone, say: WeightFile(dict(body), metadata={"preprocessing": preprocessing})
    )
    monkeypatch.setattr(page, "need_gradio", lambda: None)
    monkeypatch.setattr(page, "serve", lambda model, port: print(f"serving {model.config.model.backbone.name}"))

    def no_twin(command, **options):
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(process, "subprocess", SimpleNamespace(Popen=no_twin, PIPE=subprocess.PIPE))
    return tmp_path / "home"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_line_works(document, newcomer, monkeypatch, capsys):
    for number, line in lines_of(document):
        place = f"{document}:{number}: {line}"
        words = words_of(line.replace("/mnt/sets", "mnt_sets").replace(" NAME ", " rgb ").replace(" --seed N ", " --seed 1 "))
        while re.fullmatch("[A-Z_]+=.*", words[0]):
            words = words[1:]
        if any(" ".join(words).startswith(start) for start in REPLACED):
            check_replaced(words, place)
            continue
        assert words[0] == "jrdp", f"{place}: neither run nor in REPLACED"
        command, _, rest = find_command(words[1:], place)
        if document == "README.md" and command == "analyze":
            shutil.copy("datasets/isod/test.json", "test.json")  # the set that `jrdp test` above was asked for
        monkeypatch.setattr(sys, "argv", ["jrdp", *words[1:], *SHORTER.get(command, [])])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, error = capsys.readouterr()
        code = ended.value.code or 0
        if command.startswith(TWIN):  # all that comes before the PyTorch side is started has been done
            assert code == 2 and "cannot start" in error and "--twin-python" in error, f"{place}\n{error}"
        elif command in ("data check", "compare detections"):  # they judge: the small sets are not the published ones
            assert code in (0, 1) and "Traceback" not in error, f"{place}\n{out}{error}"
        else:
            assert code == 0, f"{place}\n{out}{error}"


def test_every_python_block_of_the_readme_runs(newcomer, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(sys, "argv", ["jrdp", "export", "model.onnx", "--weights", "r50_isod"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr()
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (newcomer / "out.png").is_file()


def commands_in_sentences():
    """(place, words) of `jrdp ...` in backquotes in the documents, and of the comments in scripts and configs."""
    for document in DOCUMENTS:
        for span in re.findall(r"`(jrdp [^`]+)`", (ROOT / document).read_text(encoding="utf-8")):
            yield f"{document}: {span}", span
    for path in sorted([*(ROOT / "scripts").glob("*.sh"), *(ROOT / "configs").rglob("*.yaml")]):
        for line in path.read_text(encoding="utf-8").splitlines():
            for span in re.findall(r"`(jrdp [^`]+)`", line) if line.startswith("#") else []:
                yield f"{path.name}: {span}", span


@pytest.mark.parametrize("place, line", list(commands_in_sentences()))
def test_commands_in_sentences_exist(place, line):
    words = [word for word in words_of(line) if "..." not in word and word not in ("on", "X")]
    check_words(words[1:], place)


def find_command(words, place):
    """("data check", its click command, the words after it)."""
    command, names = typer.main.get_command(cli.app), []
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{place}: there is no command {words[0]}"
        command = command.commands[words[0]]
        names.append(words[0])
        words = words[1:]
    return " ".join(names), command, words


def check_words(words, place):
    _, command, rest = find_command(words, place)
    if hasattr(command, "commands"):  # `jrdp compare ...`: any of its commands
        return
    options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    options |= {"--help"}
    settings = []
    for position, word in enumerate(rest):
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{place}: no option {word}"
        if word == "--set" and position + 1 < len(rest) and re.search("=[^.A-Z]", rest[position + 1]):
            settings.append(rest[position + 1])
    load_config(None, settings)


def check_replaced(words, place):
    if words[0] == "bash":
        subprocess.run(["bash", "-n", str(ROOT / words[1])], check=True)
    elif words[0] == "pip":
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(words[2:])):
            for name in extra.split(","):
                assert f'"{name}":' in setup, f"{place}: no extra {name}"
    elif words[0] == "python":
        done = subprocess.run(
            [sys.executable, str(ROOT / words[1]), "--help"], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for word in words[2:]:
            assert not word.startswith("--") or word in done.stdout, f"{place}: {words[1]} has no option {word}"
    else:
        check_words(words[words.index("jrdp") + 1 :], place)
