"""`jrdp bench`: both frameworks in turn in one run, part by part, and one prediction in a fresh process."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

import numpy as np
from PIL import Image

from jrdp import interchange
from jrdp.comparison.exchange import load_arrays, save_arrays, save_batch
from jrdp.comparison.pair import refuse_idle_precision
from jrdp.comparison.process import Worker
from jrdp.comparison.report import machine, text_table
from jrdp.comparison.synthetic import disc_masks, synthetic_state
from jrdp.comparison.timing.onnxruntime_side import OnnxRuntimeSide, onnxruntime_version
from jrdp.comparison.worker import TRAINING_STEPS
from jrdp.config import Config, load_config
from jrdp.data.transforms import batch_images, prepare_image, read_image
from jrdp.engine.weights import config_of
from jrdp.errors import UserError
from jrdp.export.onnx_file import unsupported
from jrdp.files import make_folder, refuse_others, write_text
from jrdp.structures import Targets

ROIS = 100
WARM_UP = 2  # untimed runs of each part, in which kernels are compiled and caches are filled
FORMS = ("channels_last", "bfloat16")  # of PyTorch, with `rivals`
OF_TRAINING = ("forward of a training batch", *TRAINING_STEPS)  # solver.batch_size times the picture, plain network
COLUMNS = ["part", "Jittor ms", "PyTorch ms", "ratio", "least", "most"]


@dataclass
class BenchOptions:
    """config, settings, weights: as everywhere; without weights, synthetic ones.

    picture: a file, or None for a generated one of 720x480. twin_python: an interpreter that has torch, or None to
    time Jittor alone. compiled: also the twin compiled with frozen weights. rivals: also the twin in channels_last memory,
    and there with bfloat16 autocast where the processor has that. onnxruntime: also `detect` beside the exported network in
    ONNX Runtime. threads: of each side, None for all cores. engine: "fast" or "plain", of the Jittor side's prediction.
    training: also a training step, and its forward pass alone without gradients.
    """

    config: Optional[Path] = None
    settings: list[str] = field(default_factory=list)
    weights: Optional[Path] = None
    picture: Optional[Path] = None
    twin_python: Optional[str] = None
    compiled: bool = False
    rivals: bool = False
    onnxruntime: bool = False
    threads: Optional[int] = None
    rounds: int = 7
    engine: str = "fast"
    training: bool = True
    seed: int = 1


@dataclass
class _Inputs:
    """Files in the run's temporary folder."""

    state: Path
    batch: Path
    rois: Path
    operators: Path
    training: Path
    picture: Path


def run_bench(options: BenchOptions, out: Path, print_line: Callable[[str], None] = print) -> dict:
    """Time everything, print the table and write `bench.json` to `out`; returns what is written.

    In each round every part runs once on each side, the first of the two changing from round to round. A ratio is the
    median of the rounds' own ratios, so that a slow moment of the machine meets both sides.

    Raises:
        UserError: for bad options or weights, or when a side cannot be started.
    """
    threads = options.threads or os.cpu_count() or 1
    if options.engine not in ("plain", "fast"):
        raise UserError(f"unknown --engine {options.engine!r}: choose plain, fast")
    runtimes = {"onnxruntime": onnxruntime_version()} if options.onnxruntime else {}
    refuse_others(out, "bench.json", [b'"conditions"', b'"parts"'])
    make_folder(out)
    file = None if options.weights is None else interchange.read(options.weights)
    config = load_config(options.config, options.settings) if file is None else config_of(
        file, options.config, options.settings
    )
    refuse_idle_precision(config, options.engine)
    problem = unsupported(config.model) if options.onnxruntime else None
    if problem is not None:
        raise UserError(f"--onnxruntime: this network cannot be exported to ONNX: {problem}")
    values = config.model_dump(mode="json")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="jrdp-bench-") as name, contextlib.ExitStack() as workers:
        folder = Path(name)
        pythons = {"jittor-bench": sys.executable}
        if options.twin_python is not None:
            pythons["torch-bench"] = options.twin_python
        sides = {kind: workers.enter_context(Worker(kind, python, folder, threads)) for kind, python in pythons.items()}
        inputs, versions, parts = _prepare(options, file, config, sides, folder)
        seconds = {}
        for part in parts:
            if options.training or part not in OF_TRAINING:
                seconds[part] = _alternate(part, {kind: sides[kind] for kind in parts[part]}, options.rounds)
                print_line(f"timed {part}")
        obstacle = sides["jittor-bench"].ask("bfloat16_obstacle") if options.rivals else None
        workers.close()
        run = _Run(options, values, inputs, folder, threads)
        if options.compiled and options.twin_python is not None:
            seconds.update(run.against_torch("compiled", ("network",)))
        if options.rivals and options.twin_python is not None:
            timed = ("network", *TRAINING_STEPS) if options.training else ("network",)
            for form in FORMS:
                if form == "bfloat16" and obstacle:
                    print_line(f"left out: PyTorch in bfloat16 ({obstacle})")
                else:
                    seconds.update(run.against_torch(form, timed))
        if options.onnxruntime:
            seconds.update(run.against_onnxruntime(config))
        first = {
            kind: _first_prediction(kind, python, values, inputs, folder, threads, options.engine)
            for kind, python in pythons.items()
        }
    rows = [_row(part, rounds) for part, rounds in seconds.items()]
    conditions = {
        "machine": machine(),
        "threads": threads,
        "rounds": options.rounds,
        "load_average_before": load_before,
        "load_average_after": os.getloadavg()[0],
        "engine": options.engine,
        "precision": config.test.precision,
        "training_engine": config.train.engine,
        "training_precision": config.train.precision,
        "backbone": config.model.backbone.name,
        "rois": ROIS,
        "versions": {**versions, **runtimes},
        "date": time.strftime("%Y-%m-%d"),
    }
    result = {"conditions": conditions, "parts": rows, "first_prediction": first, "seconds": seconds}
    write_text(out / "bench.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    print_line(format_bench(result))
    print_line(f"written to {out / 'bench.json'}")
    return result


def format_bench(result: dict) -> str:
    """The tables of `run_bench` as text."""
    c = result["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in c["versions"].items())
    training = f"{c['training_engine']} in {_named(c['training_precision'])}"
    lines = [
        f"{c['machine']}; {c['threads']} threads on each side, {c['rounds']} rounds in turn; {versions}",
        f"{c['backbone']}, engine {c['engine']} in {_named(c['precision'])}, training {training}, {c['rois']} RoIs; "
        f"load average {c['load_average_before']:.1f} before, {c['load_average_after']:.1f} after (below 1 is quiet)",
        "",
    ]
    keys = ("part", "jittor_ms", "torch_ms", "ratio", "least", "most")
    rows = [["-" if row[key] is None else row[key] for key in keys] for row in result["parts"]]
    lines += [text_table(COLUMNS, rows), ""]
    names = {"jittor-bench": "Jittor", "torch-bench": "PyTorch"}
    first = result["first_prediction"]
    rows = [
        [names[kind], f["seconds"], f["peak_mib"], *["-" if f[k] is None else f[k] for k in ("packed_mib", "kernels")]]
        for kind, f in first.items()
    ]
    lines += [text_table(["one picture, new process", "seconds", "peak MiB", "packed MiB", "kernels"], rows)]
    return "\n".join(lines)


def _named(precision: str) -> str:
    return "float32" if precision == "auto" else precision


def _prepare(options: BenchOptions, file, config: Config, sides: dict[str, Worker], folder: Path):
    """Give both sides the same network and inputs; the parts with the sides that have each."""
    values = config.model_dump(mode="json")
    files = [folder / name for name in ("state.npz", "batch.npz", "rois.npz", "operators.npz", "training.npz")]
    inputs = _Inputs(*files, _picture(options, folder))
    image = prepare_image(read_image(inputs.picture), config.input)
    batch = batch_images([image])
    height, width = batch.sizes[0]
    rng = np.random.default_rng(options.seed)
    rois = np.concatenate([np.zeros((ROIS, 1), np.float32), _boxes(rng, ROIS, height, width)], axis=1)
    save_batch(inputs.batch, batch)
    count = config.solver.batch_size
    save_batch(inputs.training, batch_images([image] * count), [_square(height, width)] * count)
    save_arrays(inputs.rois, {"rois": rois})
    save_arrays(inputs.operators, {"rois": rois, **_operator_inputs(rng, *batch.images.shape[2:])})

    versions: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for kind, worker in sides.items():
        if kind == "jittor-bench":
            built = worker.ask("build", config=values, device="cpu", engine=options.engine)
            shapes = {name: tuple(shape) for name, shape in built["shapes"].items()}
            save_arrays(inputs.state, _state(options, file, shapes))
        else:
            built = worker.ask("build", config=values, device="cpu", timing=True)
        versions.update(built["versions"])
        worker.ask("load", state=str(inputs.state))
        worker.ask("prepare_timing", batch=str(inputs.batch), rois=str(inputs.rois), compiled=False)
        for part in worker.ask("prepare_more", **_more(inputs)):
            parts.setdefault(part, []).append(kind)
    return inputs, versions, parts


def _more(inputs: _Inputs) -> dict[str, str]:
    return {"inputs": str(inputs.operators), "picture": str(inputs.picture), "training": str(inputs.training)}


def _alternate(part: str, sides: dict[str, Worker], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {kind: [] for kind in sides}
    for number in range(-WARM_UP, rounds):
        for kind in list(sides) if number % 2 == 0 else reversed(list(sides)):
            took = sides[kind].ask("time", part=part)
            if number >= 0:
                seconds[kind].append(took)
    return seconds


@dataclass
class _Run:
    """What every comparison with another form of the network starts from."""

    options: BenchOptions
    values: dict  # the configuration
    inputs: _Inputs
    folder: Path
    threads: int

    def against_torch(self, form: str, parts: tuple[str, ...]) -> dict[str, dict[str, list[float]]]:
        """Seconds of `parts` again, beside the twin in this form, both in new processes; by the row's name.

        form: "compiled" (with frozen weights), or one of `FORMS`.
        """
        with self.jittor() as ours, Worker("torch-bench", self.options.twin_python, self.folder, self.threads) as theirs:
            theirs.ask("build", config=self.values, device="cpu", timing=True)
            theirs.ask("load", state=str(self.inputs.state))
            if form in FORMS:
                theirs.ask("use_form", form=form)
            self.prepare(theirs, compiled=form == "compiled")
            sides = {"jittor-bench": ours, "torch-bench": theirs}
            return {f"{part}, PyTorch {form}": _alternate(part, sides, self.options.rounds) for part in parts}

    def against_onnxruntime(self, config: Config) -> dict[str, dict[str, list[float]]]:
        """Seconds of `detect` again, beside the exported network in ONNX Runtime in this process."""
        theirs = OnnxRuntimeSide(load_arrays(self.inputs.state), config, self.inputs.picture, self.threads)
        with self.jittor() as ours:
            sides = {"jittor-bench": ours, "onnxruntime": theirs}
            return {"detect, ONNX Runtime": _alternate("detect", sides, self.options.rounds)}

    @contextlib.contextmanager
    def jittor(self):
        with Worker("jittor-bench", sys.executable, self.folder, self.threads) as ours:
            ours.ask("build", config=self.values, device="cpu", engine=self.options.engine)
            ours.ask("load", state=str(self.inputs.state))
            self.prepare(ours)
            yield ours

    def prepare(self, worker: Worker, compiled: bool = False) -> None:
        inputs = self.inputs
        worker.ask("prepare_timing", batch=str(inputs.batch), rois=str(inputs.rois), compiled=compiled)
        worker.ask("prepare_more", **_more(inputs))


def _first_prediction(
    kind: str, python: str, values: dict, inputs: _Inputs, folder: Path, threads: int, engine: str
) -> dict:
    """From starting the process to the result of one picture: seconds, peak memory, kernels."""
    started = time.perf_counter()
    with Worker(kind, python, folder, threads) as worker:
        answer = worker.ask(
            "predict_once", config=values, state=str(inputs.state), picture=str(inputs.picture), engine=engine
        )
        return {"seconds": time.perf_counter() - started, **answer}


def _row(part: str, seconds: dict[str, list[float]]) -> dict:
    ours = np.array(seconds["jittor-bench"])
    row = {"part": part, "jittor_ms": 1e3 * float(np.median(ours)), "torch_ms": None}
    row.update({"ratio": None, "least": None, "most": None})
    others = [kind for kind in seconds if kind != "jittor-bench" and seconds[kind]]
    if others:
        theirs = np.array(seconds[others[0]])
        ratios = ours / theirs
        row["torch_ms"] = 1e3 * float(np.median(theirs))
        row.update({"ratio": float(np.median(ratios)), "least": float(ratios.min()), "most": float(ratios.max())})
    return row


def _state(options: BenchOptions, file, shapes: dict[str, tuple]) -> dict[str, np.ndarray]:
    if file is None:
        return synthetic_state(shapes, options.seed)
    matched = interchange.match(shapes, file).tensors
    return {name: np.asarray(matched[name], np.float32) for name in shapes}


def _picture(options: BenchOptions, folder: Path) -> Path:
    if options.picture is not None:
        return options.picture
    rng = np.random.default_rng(options.seed)
    coarse = Image.fromarray(rng.integers(0, 256, (15, 22, 3), dtype=np.uint8))
    path = folder / "picture.jpg"
    coarse.resize((720, 480), Image.BICUBIC).save(path, quality=90)
    return path


def _boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Boxes of 20 pixels and more inside a picture, float32 `[count, 4]`."""
    x1, y1 = rng.uniform(0, width - 21, count), rng.uniform(0, height - 21, count)
    x2, y2 = rng.uniform(x1 + 20, width - 1), rng.uniform(y1 + 20, height - 1)
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)


def _square(height: int, width: int) -> Targets:
    x1, y1, x2, y2 = width * 0.25, height * 0.25, width * 0.75, height * 0.75
    outline = np.array([x1, y1, x2, y1, x2, y2, x1, y2])
    return Targets(np.array([[x1, y1, x2, y2]], np.float32), [[outline]], [None], (height, width))


def _operator_inputs(rng: np.random.Generator, height: int, width: int) -> dict[str, np.ndarray]:
    arrays = {}
    for k in range(5):
        stride = 8 << k
        arrays[f"level{k}"] = rng.standard_normal((1, 128, -(-height // stride), -(-width // stride)), dtype=np.float32)
    for count in (1000, 5000):
        arrays[f"boxes{count}"] = _boxes(rng, count, 320, 480)
        arrays[f"scores{count}"] = rng.random(count, dtype=np.float32)
    arrays["masks"] = disc_masks(ROIS)
    return arrays
