"""The `jrdp` command: thin wrappers around the library; a `UserError` becomes one line and exit code 2."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # python -m jrdp.cli is python -m jrdp, from its first lines on
    import runpy

    runpy.run_module("jrdp", run_name="__main__")

from dataclasses import asdict
from pathlib import Path
from typing import List, Optional

import typer

from jrdp import endings
from jrdp.comparison import cli as comparison
from jrdp.errors import UserError
from jrdp.files import check_target, make_folder, protect, refuse_others
from jrdp.options import find_weights, is_upright, refuse_given, refuse_options, refuse_unused_settings

app = typer.Typer(
    help="Salient instance segmentation (RDPNet) in Jittor.", no_args_is_help=True, add_completion=True,
    pretty_exceptions_enable=False, rich_markup_mode=None,
)
data_app = typer.Typer(help="Verify, describe and make datasets; fetch ImageNet weights.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(comparison.app, name="compare")


def _print_version(wanted: bool) -> None:
    if wanted:
        from jrdp import __version__

        print(f"jrdp {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Salient instance segmentation (RDPNet) in Jittor."""


LARGEST_SEED = 2**31 - 1  # what Jittor takes

ConfigOption = typer.Option(
    None, "--config", help="YAML configuration; default: the one stored in the weights, or configs/r50_isod.yaml's."
)
SetOption = typer.Option([], "--set", metavar="KEY=VALUE", help="Override one configuration key, dotted; repeatable.")
DeviceOption = typer.Option(
    "auto", "--device", autocompletion=lambda: ["auto", "cpu", "cuda"], help="auto, cpu or cuda."
)
OutOption = typer.Option(..., "--out", help="Output folder.")
WEIGHTS = "a file (.safetensors, .pth, .pkl), or a name as in `jrdp weights`"


def _published_names() -> List[str]:
    from jrdp.interchange.published import PUBLISHED

    return [entry.name for entry in PUBLISHED]


WeightsOption = typer.Option(
    ..., "--weights", callback=find_weights, autocompletion=_published_names, help=f"Weights: {WEIGHTS}."
)
ExifOption = typer.Option(
    "ignore", "--exif", autocompletion=lambda: ["ignore", "apply"],
    help="ignore, or apply: turn pictures upright as their EXIF says, where that is how they were annotated (input.exif).",
)
JobsOption = typer.Option(
    None, "--jobs", min=1, metavar="N",
    help="Processes that share the pictures and the cores (OMP_NUM_THREADS each, where that is set): more pictures a "
    "second. Each holds a model of its own, in main memory or on the GPU. Default: 1; for `predict` on a CPU, 2 from "
    "100 pictures on.",
)


@app.command()
def doctor(
    device: str = DeviceOption,
    warm: bool = typer.Option(False, "--warm", help="Compile ahead what prediction and training need."),
) -> None:
    """Print versions, compiler, oneDNN, CUDA and GPU; try a convolution and each op; say what to fix."""
    from jrdp.doctor.report import run_doctor

    raise typer.Exit(run_doctor(device=device, warm=warm))


@app.command()
def train(
    out: Path = OutOption,
    config: Optional[Path] = ConfigOption,
    weights: Optional[Path] = typer.Option(
        None, "--weights", callback=find_weights, help=f"Start from these weights (train.weights): {WEIGHTS}."
    ),
    settings: List[str] = SetOption,
    resume: bool = typer.Option(False, "--resume", help="Continue OUT/last.safetensors with its configuration."),
    device: str = DeviceOption,
    seed: Optional[int] = typer.Option(None, "--seed", min=0, max=LARGEST_SEED, help="Random seed (train.seed)."),
) -> None:
    """Train; writes config.yaml, log.jsonl, curves.png, last and final weights, and the test results to OUT."""
    from jrdp.machine import runtime
    from jrdp.config import load_config, start_from

    if seed is not None and any(setting.replace(" ", "").startswith("train.seed=") for setting in settings):
        raise UserError("--seed and --set train.seed are the same setting: give one of them")
    if weights is not None and any(setting.replace(" ", "").startswith("train.weights=") for setting in settings):
        raise UserError("--weights and --set train.weights are the same setting: give one of them")
    base = None
    if resume and config is None:
        from jrdp.engine.checkpoint import load_checkpoint

        base = load_checkpoint(out / "last.safetensors").config
    own = resume and config is not None and config.exists() and config.resolve() == (out / "config.yaml").resolve()
    protect(*filter(None, (None if own else config, weights)))  # a run that goes on writes its configuration anew
    chosen = load_config(config, settings, base=base)
    if weights is not None:
        start_from(chosen, weights)
    if seed is not None:
        chosen.train.seed = seed
    runtime.start(device, seed=chosen.train.seed, tf32=chosen.train.tf32)
    from jrdp.engine.train import train as run

    run(chosen, out, resume=resume)


@app.command()
def test(
    weights: Path = WeightsOption,
    out: Path = OutOption,
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    device: str = DeviceOption,
    jobs: Optional[int] = JobsOption,
    resume: bool = typer.Option(False, "--resume", help="Keep what an interrupted run of the same command has found."),
) -> None:
    """Detect on the test sets (data.test) and evaluate; writes bbox.json, segm.json, metrics.json, pr_curves.png."""
    from jrdp import interchange
    from jrdp.machine import runtime
    from jrdp.data.catalog import load_dataset
    from jrdp.engine.evaluate import Asked, batches_of, evaluate_datasets, records_of, refuse_others_results
    from jrdp.engine.growing_file import refuse_unfinished, weights_asked
    from jrdp.engine.weights import config_of

    refuse_unused_settings("test", settings)
    protect(weights, *filter(None, [config]))
    file = interchange.read(weights)
    chosen = config_of(file, config, settings)
    test_sets = [(name, load_dataset([name], chosen, training=False)) for name in chosen.data.test]
    if not test_sets:
        raise UserError("data.test is empty: name a dataset, for example --set 'data.test=[images:annotations.json]'")
    for path in records_of(chosen.data.test, out):
        if not resume:
            refuse_unfinished(path)
        if not path.exists():
            refuse_others_results(path.parent)
    asked = Asked({"weights": weights_asked(weights), "config": chosen.model_dump(mode="json")}, resume)
    for note in filter(None, (dataset.note for _, dataset in test_sets)):
        print(note)
    jobs = min(jobs or 1, max(len(batches_of(dataset, chosen)) for _, dataset in test_sets))
    if jobs > 1:
        from jrdp.engine.evaluate_jobs import evaluate_with_jobs
        from jrdp.engine.jobs import ModelSource

        del file  # every job reads its own
        evaluate_with_jobs(jobs, ModelSource(weights, config, device, tuple(settings)), chosen, test_sets, out, asked)
        return
    runtime.start(device, tf32=chosen.test.tf32)
    from jrdp.engine.predictor import build

    evaluate_datasets(build(file, chosen).engine, chosen, test_sets, out, asked)


@app.command()
def predict(
    paths: List[Path] = typer.Argument(..., help="Pictures, folders of pictures, videos, or a camera's index (0)."),
    weights: Path = WeightsOption,
    out: Path = OutOption,
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    threshold: float = typer.Option(0.5, "--threshold", min=0.0, max=1.0, help="Draw instances scored above this."),
    frames: Optional[int] = typer.Option(None, "--frames", min=1, help="Stop a video or camera after so many frames."),
    device: str = DeviceOption,
    jobs: Optional[int] = JobsOption,
    resume: bool = typer.Option(False, "--resume", help="Keep what an interrupted run of the same command has done."),
) -> None:
    """Find salient instances; writes predictions.json, NAME.png (overlay) and NAME_instances.png (index mask).

    By predictions.asked.json, a digest of the request, --resume knows whether a finished run was asked the same.
    A video gives NAME.mp4 (overlay) and NAME.json (the detections of every frame), in one process.
    """
    import jrdp
    from jrdp.engine.frame_record import video_asked, video_is_finished
    from jrdp.engine.growing_file import refuse_unfinished, weights_asked
    from jrdp.engine.jobs import ModelSource, jobs_for
    from jrdp.engine.pictures import check_output_folder, list_pictures, output_names, refuse_replacing, split_videos
    from jrdp.engine.predict import finishing_process, predict_files, tasks_of
    from jrdp.engine.record import Record, is_finished

    refuse_unused_settings("predict", settings)
    named = paths
    paths, videos = split_videos(paths)
    if not videos:
        refuse_options("on pictures: it is for videos and cameras", frames=frames)
    if not paths:
        refuse_options("on videos and cameras, which one process does", jobs=jobs if jobs and jobs > 1 else None)
    pictures = list_pictures(paths)
    sources = [*pictures, *(video for video in videos if not isinstance(video, int))]
    check_output_folder(named, sources, out)
    protect(*sources, weights, *([config] if config else []))
    tasks = tasks_of(pictures)
    asked = {
        "weights": weights_asked(weights),
        "config": config.read_text(encoding="utf-8", errors="replace") if config and config.is_file() else None,
        "settings": list(settings),
        "threshold": threshold,
    }
    if resume and pictures and is_finished(out, asked, tasks):
        print(f"nothing left to do for {len(pictures)} pictures: {out / 'predictions.json'}")
        pictures = []
    record = Record(out, asked, resume) if pictures else None
    names = output_names(
        [Path(f"camera_{video}") if isinstance(video, int) else video for video in videos],
        taken=["predictions", "predictions.partial", "predictions.asked", *(task.name for task in tasks)],
    )
    if not resume:
        for name in ["predictions"] * bool(pictures) + names:
            refuse_unfinished(out / f"{name}.partial.jsonl")
    else:
        done = [
            name
            for video, name in zip(videos, names)
            if video_is_finished(out, name, video_asked(video, threshold, asked), frames)
        ]
        for name in done:
            print(f"nothing left to do for the video {out / f'{name}.mp4'}")
        videos, names = [v for v, n in zip(videos, names) if n not in done], [n for n in names if n not in done]
    refuse_replacing(out, [task.name for task in tasks] if pictures else [], names)
    failed: List[str] = []
    jobs = jobs or jobs_for(len(pictures) - (record.kept if record is not None else 0), device)
    if jobs > 1:
        from jrdp.engine.weights import batch_size_of

        size = batch_size_of(weights, config, settings)
        jobs = min(jobs, -(-len(pictures) // size))
    else:
        jobs = min(jobs, len(pictures))
    if jobs > 1:
        from jrdp.engine.predict_jobs import predict_with_jobs

        source = ModelSource(weights, config, device, tuple(settings))
        failed = predict_with_jobs(jobs, source, pictures, out, threshold, record, size)
    with finishing_process(len(pictures) if jobs == 1 else 0) as finish:
        if jobs == 1 or videos:
            model = jrdp.load(weights, config, device, settings)
            make_folder(out)
        if jobs == 1:
            failed = predict_files(model, pictures, out, threshold, record, finish)
    if videos:
        from jrdp.engine.video import predict_video

        def complain(text: str) -> None:
            failed.append(text)
            print(f"jrdp: {text}", file=sys.stderr)

        for video, name in zip(videos, names):
            try:
                predict_video(model, video, out, name, threshold, frames, asked, resume, complain)
            except UserError as error:
                if len(videos) == 1 and not pictures:
                    raise
                failed.append(str(error))
                print(f"jrdp: skipped: {error}", file=sys.stderr)
    raise typer.Exit(1 if failed else 0)


@app.command("weights")
def weights_command(
    name: Optional[str] = typer.Argument(
        None, autocompletion=_published_names, help="One of them: where to get it, or a check of it."
    ),
) -> None:
    """List the authors' weights; with NAME, say where to get it and where to put it, or check it where it is there."""
    from jrdp.interchange import published

    print(published.overview() if name is None else published.about(name))


@app.command()
def convert(
    source: Path = typer.Argument(..., metavar="SRC", callback=find_weights),
    target: Path = typer.Argument(..., metavar="DST"),
    legacy: bool = typer.Option(False, "--legacy", help="Write .pth in the format of torch < 1.6."),
    weights_only: bool = typer.Option(False, "--weights-only", help="Leave the momentum behind."),
) -> None:
    """Convert weights by suffix: .pth (zip or legacy), .pkl (Jittor, Caffe2), .safetensors; strict, prints a table."""
    from jrdp import interchange

    protect(source)
    print(interchange.convert(source, target, legacy=legacy, weights_only=weights_only))


@app.command()
def export(
    target: Path = typer.Argument(..., metavar="MODEL.onnx", help="The ONNX file to write."),
    weights: Path = WeightsOption,
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
) -> None:
    """Write the whole network as ONNX: picture in; boxes, scores and masks out (docs/export.md). Needs the onnx extra."""
    from jrdp.export import export as run

    refuse_unused_settings("export", settings)
    protect(weights, *filter(None, [config]))
    if target.suffix == ".onnx":
        check_target(target)  # noticed before the work
    print(run(target, weights, config, settings))


@app.command()
def demo(
    weights: Path = WeightsOption,
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    port: int = typer.Option(7860, "--port", min=1, max=65535, help="Of 127.0.0.1, where the page is served."),
    device: str = DeviceOption,
) -> None:
    """Serve a page on this machine to try a model on: drop a photograph, move the threshold. Needs the demo extra."""
    import jrdp
    from jrdp.demo.page import need_gradio, serve

    refuse_unused_settings("demo", settings)
    need_gradio()
    serve(jrdp.load(weights, config, device, settings), port)


@app.command()
def analyze(
    context: typer.Context,
    ground_truth: Path = typer.Option(..., "--ground-truth", help="COCO annotations."),
    compare: List[str] = typer.Option(..., "--compare", metavar="NAME=FILE", help="A COCO results file; repeatable."),
    out: Path = OutOption,
    images: Optional[Path] = typer.Option(None, "--images", help="Picture folder, for the gallery."),
    iou_type: str = typer.Option("segm", "--iou-type", help="segm or bbox."),
    exif: str = ExifOption,
) -> None:
    """Analyse result files of any system: curves, error classes and their cost, tables, gallery; report.html."""
    from jrdp.analysis.analyze import analyze as run
    from jrdp.analysis.analyze import format_comparison

    runs = {}
    for entry in compare:
        name, separator, path = entry.partition("=")
        if not separator or not name or not path:
            raise UserError(f"--compare {entry!r} is not of the form NAME=FILE")
        if name in runs:
            raise UserError(f"--compare names {name!r} twice: give each file a name of its own")
        runs[name] = Path(path)
    protect(ground_truth, *runs.values())
    if iou_type not in ("segm", "bbox"):
        raise UserError(f"--iou-type {iou_type!r} is not segm or bbox")
    upright = is_upright(exif)
    if images is None:
        refuse_given(context, "without --images, since no photograph is read", "exif")
    refuse_others(out, "analysis.json", [b'"iou_type"', b'"runs"'], "report.html")
    for name in ("analysis.json", "report.html"):
        check_target(out / name)  # noticed before the work
    print(format_comparison(run(ground_truth, runs, out, images, iou_type, upright=upright)))
    print(f"report: {out / 'report.html'}")


@app.command()
def bench(
    out: Path = OutOption,
    cost: bool = typer.Option(False, "--cost", help="Only count parameters and multiply-adds by stage, at 320x480."),
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    weights: Optional[Path] = typer.Option(
        None, "--weights", callback=find_weights, help="Default: synthetic ones."
    ),
    picture: Optional[Path] = typer.Option(None, "--picture", help="Default: a generated one of 720x480."),
    twin_python: Optional[str] = typer.Option(None, "--twin-python", help="The Python that has torch."),
    compiled: bool = typer.Option(False, "--compiled", help="Also against the twin compiled with frozen weights."),
    rivals: bool = typer.Option(
        False, "--rivals", help="Also against the twin in channels_last, and with bfloat16 where the processor has it."
    ),
    onnxruntime: bool = typer.Option(False, "--onnxruntime", help="Also against the exported network in ONNX Runtime."),
    threads: Optional[int] = typer.Option(None, "--threads", min=1, help="Threads of each side; default: all cores."),
    rounds: int = typer.Option(7, "--rounds", min=1, help="Timed rounds; medians are printed."),
    engine: str = typer.Option("fast", "--engine", help="Of Jittor's prediction: fast or plain."),
    training: bool = typer.Option(True, "--training/--no-training", help="Also time a training step."),
) -> None:
    """Time operators, stages, network, end to end and a training step, in turn with the PyTorch twin; bench.json."""
    protect(*filter(None, (config, weights, picture)))
    if twin_python is None:
        refuse_options("without --twin-python", compiled=compiled, rivals=rivals)
    if cost:
        refuse_options(
            "with --cost, which only counts", weights=weights, picture=picture, twin_python=twin_python, threads=threads,
            rounds=rounds if rounds != 7 else None, engine=engine if engine != "fast" else None, no_training=not training,
            onnxruntime=onnxruntime,
        )
        refuse_unused_settings("bench --cost", settings)
        from jrdp.machine import runtime
        from jrdp.config import load_config
        from jrdp.files import write_json

        model = load_config(config, settings).model
        refuse_others(out, "cost.json", [b'"multiply_adds"'])
        make_folder(out)
        runtime.start("cpu", seed=0)
        from jrdp.comparison.timing.cost import cost_table, count_cost

        costs = count_cost(model)
        write_json(out / "cost.json", [asdict(entry) for entry in costs], indent=1)
        print(cost_table(costs))
        return
    refuse_unused_settings("bench" if training else "bench --no-training", settings)
    from jrdp.comparison.timing.bench import BenchOptions, run_bench

    run_bench(
        BenchOptions(
            config, settings, weights, picture, twin_python, compiled, rivals, onnxruntime, threads, rounds, engine, training
        ),
        out,
    )


@data_app.command("check")
def data_check(
    names: List[str] = typer.Argument(..., help="Dataset names, or images_folder:annotations.json."),
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
) -> None:
    """Verify datasets on disk and name each broken file or annotation; exit code 1 when there are any."""
    from jrdp.config import load_config
    from jrdp.dataset_tools import check

    refuse_unused_settings("data check", settings)
    chosen = load_config(config, settings)
    reports = [check.check_dataset(name, chosen.data.root, upright=chosen.input.exif == "apply") for name in names]
    for report in reports:
        print(report.text())
    raise typer.Exit(0 if all(report.ok for report in reports) else 1)


@data_app.command("stats")
def data_stats(
    names: List[str] = typer.Argument(..., help="Dataset names, or images_folder:annotations.json."),
    out: Optional[Path] = typer.Option(None, "--out", help="Folder for NAME.png (plots) and NAME.json."),
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
) -> None:
    """Instances per picture, sizes and aspect ratios of datasets."""
    from jrdp.config import load_config
    from jrdp.data.catalog import locate
    from jrdp.dataset_tools.stats import dataset_statistics
    from jrdp.files import write_json

    refuse_unused_settings("data stats", settings)
    root = load_config(config, settings).data.root
    if out is not None:
        for name in names:
            place = locate(name, root)
            protect(place.annotations, *place.images.iterdir())
        make_folder(out)  # a folder that cannot be written to is noticed before the work
    file_names = [name if ":" not in name else f"dataset_{number}" for number, name in enumerate(names, start=1)]
    for file_name in file_names if out is not None else ():
        refuse_others(out, f"{file_name}.json", [b'"instances_per_picture"'], f"{file_name}.png")
    for name, file_name in zip(names, file_names):
        statistics = dataset_statistics(name, root)
        print(statistics.text())
        if out is not None:
            write_json(out / f"{file_name}.json", statistics.as_dict(), indent=1)
            print(f"  plots: {statistics.plot(out / f'{file_name}.png')}")


@data_app.command("convert")
def data_convert(
    masks: Path = typer.Argument(..., help="Folder of index masks, .mat files, or folders of one mask per instance."),
    images: Path = typer.Argument(..., help="Folder of the photographs."),
    out: Path = typer.Argument(..., metavar="OUT.json", help="The COCO json to write."),
    segmentation: str = typer.Option("rle", "--segmentation", help="rle (lossless) or polygons."),
    ignore: List[int] = typer.Option([], "--ignore", help="Index values that are no instance; repeatable."),
    variable: Optional[str] = typer.Option(None, "--variable", help="The .mat variable that holds the instances."),
    soft: bool = typer.Option(False, "--soft", help="NAME.png is one instance with soft edges: above half is inside."),
    exif: str = ExifOption,
) -> None:
    """Turn instance maps into a COCO json."""
    from jrdp.dataset_tools.instance_maps import convert_instance_maps

    if segmentation not in ("rle", "polygons"):
        raise UserError(f"--segmentation {segmentation!r} is not rle or polygons")
    upright = is_upright(exif)
    print(convert_instance_maps(masks, images, out, segmentation, tuple(ignore), variable, soft, upright=upright).text())


@data_app.command("sample")
def data_sample(
    directory: Path = typer.Argument(..., metavar="DIR"),
    train: int = typer.Option(64, "--train", min=1, help="Training pictures."),
    val: int = typer.Option(16, "--val", min=1, help="Validation pictures."),
    seed: int = typer.Option(0, "--seed", min=0, max=LARGEST_SEED, help="Another seed gives other pictures."),
) -> None:
    """Write the embedded sample set to DIR: generated pictures with exact masks, no download."""
    from jrdp.dataset_tools.sample import write_sample

    print(write_sample(directory, train=train, val=val, seed=seed))


@data_app.command("weights")
def data_weights(
    backbone: str = typer.Argument(..., help="r50, r101 or x101."),
    target: Path = typer.Argument(..., metavar="DST", help="The .safetensors file to write."),
    source: Optional[Path] = typer.Option(None, "--source", help="A file at hand instead of a download."),
) -> None:
    """Fetch ImageNet weights of a backbone, check them, and store them with their preprocessing."""
    from jrdp.files import sha256_of
    from jrdp.interchange import write_imagenet_weights

    file = write_imagenet_weights(backbone, target, source)
    print(f"{target}: {len(file.tensors)} tensors, {file.metadata['preprocessing']}")
    print(f"{target}: SHA-256 {sha256_of(target)}")


def main() -> None:
    """The `jrdp` command, from its arguments to its exit code."""
    from jrdp.machine import plain_progress
    from jrdp.machine.runtime import own_process

    own_process()
    # OpenCV and its decoders write many lines about a damaged video or a missing camera: jrdp has one of its own.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        code = endings.run(_run)
    finally:
        plain_progress.end()
    endings.leave(code)


def _run() -> None:
    if "" in sys.argv[1:]:  # as a path it would mean the working folder
        raise UserError("one of the arguments is empty: is a variable of the command line not set?")
    app()
