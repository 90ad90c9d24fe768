"""`jrdp compare`: thin wrappers around the comparisons; exit code 1 when a declared tolerance is exceeded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List, Optional

import typer

from jrdp.comparison.pair import Options, starts_at_random
from jrdp.errors import UserError
from jrdp.files import protect
from jrdp.options import find_weights, refuse_given, refuse_unused_settings, was_given

app = typer.Typer(
    help="Compare Jittor with the PyTorch twin (or two result files), each framework in its own process.",
    no_args_is_help=True,
)

ConfigOption = typer.Option(None, "--config", help="YAML configuration; default: what the weights tell.")
SetOption = typer.Option([], "--set", metavar="KEY=VALUE", help="Override one configuration key, dotted; repeatable.")
WeightsOption = typer.Option(
    None, "--weights", callback=find_weights, help="Weights for both sides: a file or a name; default: synthetic ones."
)
TwinWeightsOption = typer.Option(None, "--twin-weights", callback=find_weights, help="Other weights for the PyTorch side.")
TwinPythonOption = typer.Option(sys.executable, "--twin-python", help="The Python that has torch.")
OutOption = typer.Option(..., "--out", help="Output folder for report.html and report.json.")
DeviceOption = typer.Option("cpu", "--device", help="cpu or cuda, for both sides.")
TwinDeviceOption = typer.Option(None, "--twin-device", help="Another device for the PyTorch side; default: --device.")
ThreadsOption = typer.Option(None, "--threads", min=1, help="Threads of each side; default: all cores.")
SeedOption = typer.Option(1, "--seed", help="Seed of data order and synthetic weights.")
DatasetOption = typer.Option([], "--dataset", help="Dataset name, images:annotations.json, or sample; repeatable.")
PrecisionOption = typer.Option("float32", "--twin-precision", help="float32, or float64: then the tolerances alone decide.")
EngineOption = typer.Option("plain", "--engine", help="Jittor's for prediction: plain, or fast (CPU).")
Tf32Option = typer.Option(False, "--tf32", help="Let both sides multiply float32 in TF32; default: exact (CUDA only).")
ControlOption = typer.Option(
    None, "--negative-control", help="Give the twin a mistake on purpose: rgb, aligned, nms-without-one, ..."
)


@app.command()
def layers(
    context: typer.Context,
    images: List[Path] = typer.Option(..., "--images", help="Pictures, or folders of pictures; repeatable."),
    out: Path = OutOption,
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    weights: Optional[Path] = WeightsOption,
    twin_weights: Optional[Path] = TwinWeightsOption,
    twin_python: str = TwinPythonOption,
    device: str = DeviceOption,
    twin_device: Optional[str] = TwinDeviceOption,
    threads: Optional[int] = ThreadsOption,
    seed: int = SeedOption,
    negative_control: Optional[str] = ControlOption,
    twin_precision: str = PrecisionOption,
    engine: str = EngineOption,
    tf32: bool = Tf32Option,
    twin_backbone: Optional[str] = typer.Option(
        None, "--twin-backbone", metavar="MODULE:CLASS", help="The twin, in PyTorch, of a backbone of your own."
    ),
    twin_pyramid: Optional[str] = typer.Option(
        None, "--twin-pyramid", metavar="MODULE:CLASS", help="The twin, in PyTorch, of a pyramid of your own."
    ),
    tolerance: float = typer.Option(1e-4, "--tolerance", help="Relative L2 of every stage."),
    box_tolerance: float = typer.Option(0.01, "--box-tolerance", help="Network pixels."),
    score_tolerance: float = typer.Option(1e-4, "--score-tolerance", help="Absolute."),
    mask_tolerance: float = typer.Option(1e-3, "--mask-tolerance", help="Absolute, of the mask probabilities."),
) -> None:
    """Every stage of both networks, same input and weights, in units of PyTorch's rounding; names the first one over."""
    from jrdp.comparison.layers import compare_layers

    refuse_unused_settings("compare layers", settings)
    if was_given(context, "seed") and not starts_at_random(weights, twin_weights):
        refuse_given(context, "beside weights of the whole network, since nothing is drawn", "seed")
    options = Options(
        config, settings, weights, twin_weights, twin_python, device, threads, seed, negative_control, twin_precision,
        engine, tf32, twin_device, twin_backbone=twin_backbone, twin_pyramid=twin_pyramid,
    ).checked()
    _check_folder(out)
    passed = compare_layers(
        options, _pictures(images), out, tolerance, box_tolerance, score_tolerance, mask_tolerance
    )
    raise typer.Exit(0 if passed else 1)


@app.command()
def gradients(
    out: Path = OutOption,
    dataset: List[str] = DatasetOption,
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    weights: Optional[Path] = WeightsOption,
    twin_weights: Optional[Path] = TwinWeightsOption,
    twin_python: str = TwinPythonOption,
    device: str = DeviceOption,
    twin_device: Optional[str] = TwinDeviceOption,
    threads: Optional[int] = ThreadsOption,
    seed: int = SeedOption,
    negative_control: Optional[str] = ControlOption,
    twin_precision: str = PrecisionOption,
    tf32: bool = Tf32Option,
    loss_tolerance: float = typer.Option(1e-5, "--loss-tolerance", help="Relative, of each loss."),
    norm_tolerance: float = typer.Option(1e-3, "--norm-tolerance", help="Relative, of each gradient's norm."),
    element_tolerance: float = typer.Option(3e-3, "--element-tolerance", help="Worst element over the largest one."),
) -> None:
    """Losses and the gradient of every parameter for one training batch."""
    from jrdp.comparison.gradients import compare_gradients

    refuse_unused_settings("compare gradients", settings)
    options = Options(
        config, settings, weights, twin_weights, twin_python, device, threads, seed, negative_control, twin_precision,
        tf32=tf32, twin_device=twin_device,
    ).checked()
    _check_folder(out)
    passed = compare_gradients(options, dataset, out, loss_tolerance, norm_tolerance, element_tolerance)
    raise typer.Exit(0 if passed else 1)


@app.command()
def training(
    context: typer.Context,
    out: Path = OutOption,
    dataset: List[str] = DatasetOption,
    steps: int = typer.Option(10, "--steps", min=1, help="SGD steps."),
    evaluate: bool = typer.Option(False, "--evaluate", help="A whole training: AP of both sides on data.test as well."),
    seeds: List[int] = typer.Option([], "--seeds", help="With --evaluate: one training each; repeatable."),
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    weights: Optional[Path] = WeightsOption,
    twin_weights: Optional[Path] = TwinWeightsOption,
    twin_python: str = TwinPythonOption,
    device: str = DeviceOption,
    twin_device: Optional[str] = TwinDeviceOption,
    threads: Optional[int] = ThreadsOption,
    seed: int = SeedOption,
    negative_control: Optional[str] = ControlOption,
    twin_precision: str = PrecisionOption,
    tf32: bool = Tf32Option,
    first_tolerance: float = typer.Option(1e-5, "--first-tolerance", help="Relative, of each loss at step 1."),
    loss_tolerance: float = typer.Option(0.02, "--loss-tolerance", help="Relative, of the total loss at any step."),
    parameter_tolerance: float = typer.Option(
        0.05, "--parameter-tolerance", help="Final distance over the way travelled."
    ),
) -> None:
    """N steps from one start and one order of data: loss curves over each other, distance of the parameters."""
    from jrdp.comparison.training import compare_training
    from jrdp.comparison.whole_training import compare_whole_training

    if seeds and not evaluate:
        raise UserError("--seeds goes with --evaluate; a short comparison takes one --seed")
    if seeds:
        refuse_given(context, "beside --seeds", "seed")
    if evaluate:
        refuse_given(context, "with --evaluate, which judges neither", "loss_tolerance", "parameter_tolerance")
    refuse_unused_settings("compare training --evaluate" if evaluate else "compare training", settings)

    options = Options(
        config, settings, weights, twin_weights, twin_python, device, threads, seed, negative_control, twin_precision,
        tf32=tf32, twin_device=twin_device,
    ).checked()
    _check_folder(out)
    if evaluate:
        passed = compare_whole_training(options, dataset, out, steps, seeds or [seed], first_tolerance)
        raise typer.Exit(0 if passed else 1)
    passed = compare_training(options, dataset, out, steps, first_tolerance, loss_tolerance, parameter_tolerance)
    raise typer.Exit(0 if passed else 1)


@app.command()
def detections(
    first: Path = typer.Argument(..., help="COCO results json of one side."),
    second: Path = typer.Argument(..., help="COCO results json of the other side."),
    dataset: str = typer.Option(..., "--dataset", help="Dataset name or images:annotations.json."),
    out: Path = OutOption,
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    score_tolerance: float = typer.Option(1e-3, "--score-tolerance", help="Absolute, of matched detections."),
    iou_tolerance: float = typer.Option(0.99, "--iou-tolerance", help="Least box or mask IoU of matched detections."),
    ap_tolerance: float = typer.Option(0.001, "--ap-tolerance", help="Absolute, of AP (0..1)."),
) -> None:
    """Two result files of any framework: matched detections, their differences, AP of both."""
    from jrdp.comparison.detections import compare_detections

    refuse_unused_settings("compare detections", settings)
    protect(first, second)
    _check_folder(out)  # noticed before the work
    passed = compare_detections(
        first, second, dataset, _load_config(config, settings), out, score_tolerance, iou_tolerance, ap_tolerance
    )
    raise typer.Exit(0 if passed else 1)


@app.command("twin-test")
def twin_test(
    weights: Path = typer.Option(..., "--weights", callback=find_weights, help="Weights; a .pth is read by torch itself."),
    dataset: str = typer.Option(..., "--dataset", help="Dataset name or images:annotations.json."),
    out: Path = OutOption,
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    twin_python: str = TwinPythonOption,
    device: str = DeviceOption,
    threads: Optional[int] = ThreadsOption,
    limit: Optional[int] = typer.Option(None, "--limit", min=1, help="Only the first pictures."),
) -> None:
    """`jrdp test` with the PyTorch twin: bbox.json, segm.json, metrics.json."""
    from jrdp.comparison.twin_test import twin_test as run

    refuse_unused_settings("compare twin-test", settings)
    options = Options(
        config, settings, weights, twin_python=twin_python, device=device, threads=threads
    ).checked()
    run(options, dataset, out, limit)


@app.command()
def speed(
    out: Path = OutOption,
    images: List[Path] = typer.Option([], "--images", help="One picture; default: noise of 320x480."),
    rounds: int = typer.Option(7, "--rounds", min=1, help="Timed rounds, the two sides in turn."),
    training: bool = typer.Option(False, "--training", help="Also time a training step."),
    config: Optional[Path] = ConfigOption,
    settings: List[str] = SetOption,
    weights: Optional[Path] = WeightsOption,
    twin_python: str = TwinPythonOption,
    device: str = DeviceOption,
    twin_device: Optional[str] = TwinDeviceOption,
    threads: Optional[int] = ThreadsOption,
    seed: int = SeedOption,
    engine: str = EngineOption,
    tf32: bool = Tf32Option,
    compiled: bool = typer.Option(False, "--compiled", help="The twin compiled with frozen weights, not eager."),
    most: Optional[float] = typer.Option(None, "--most", help="Fail when the network's ratio is above this."),
) -> None:
    """Both frameworks in turn in one run, part by part, on one device unless asked: medians, ratios, spread, memory."""
    from jrdp.comparison.timing.speed import compare_speed

    if len(images) > 1 or any(path.is_dir() for path in images):
        raise UserError("--images of compare speed takes one picture")
    refuse_unused_settings("compare speed --training" if training else "compare speed", settings)
    options = Options(
        config, settings, weights, None, twin_python, device, threads, seed, engine=engine, tf32=tf32,
        twin_device=twin_device,
    ).checked()
    pictures = _pictures(images) if images else []
    _check_folder(out)
    passed = compare_speed(options, pictures, out, rounds, training, compiled, most)
    raise typer.Exit(0 if passed else 1)


def _load_config(config, settings):
    from jrdp.config import load_config

    return load_config(config, settings)


def _check_folder(out: Path) -> None:
    from jrdp.comparison.report import check_folder

    check_folder(out)


def _pictures(paths: List[Path]) -> List[Path]:
    """The pictures named, and those in the folders named, by suffix."""
    from jrdp.data.folders import pictures_in

    found: List[Path] = []
    for path in paths:
        if path.is_dir():
            found += pictures_in(path).pictures
        else:
            found.append(path)
    protect(*found)
    if not found:
        raise UserError(f"no picture in {', '.join(str(path) for path in paths)}")
    return found
