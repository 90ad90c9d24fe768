"""`jrdp compare training --evaluate`: a whole training in both frameworks, seed by seed, and the AP of what comes out.

Rounding makes two trainings part after some hundred steps, whatever the framework. So the figures to look at are the
loss curves over each other, the AP of both beside the spread of the seeds, and the return trip: each framework's
weights evaluated in both must give the same AP.

Everything is kept in the output folder as it comes, so that a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import yaml

from jrdp import interchange
from jrdp.comparison.batches import training_batches
from jrdp.comparison.exchange import load_arrays
from jrdp.comparison.measures import relative
from jrdp.comparison.pair import Options, Pair, open_pair
from jrdp.comparison.report import Report, new_figure, text_table, versions_text
from jrdp.comparison.training import LOSSES
from jrdp.comparison.twin_test import twin_test
from jrdp.config import Config, load_config
from jrdp.engine.evaluate import folder_names
from jrdp.errors import UserError
from jrdp.files import make_folder, write_json, write_text
from jrdp.interchange.published import locate

SIDES = ("jittor", "torch")
NAMES = {"jittor": "Jittor", "torch": "PyTorch"}
SHOWN = ("AP", "AP50", "AP70")
COMMON_STEPS = 5


def compare_whole_training(
    options: Options,
    datasets: list[str],
    out: Path,
    steps: int,
    seeds: list[int],
    first_tolerance: float = 1e-5,
    return_tolerance: float = 0.001,
    print_line: Callable[[str], None] = print,
) -> bool:
    """Train both sides for `steps` steps for each seed, evaluate on `data.test`, and write the report.

    The start is `options.weights`, else the configuration's train.weights, else synthetic. A seed is that of the data
    order, the mirroring and the parts that the start weights do not have, initialised as `jrdp train` does. True when each
    loss of step 1 is within `first_tolerance` (relative) and every AP of one set of weights is within
    `return_tolerance`, or what one instance of the test set counts, in the two frameworks: a decision within rounding (a
    mask's pixel, an IoU at the NMS threshold) can find or lose one. At the end both sides take some steps more from
    PyTorch's state: where each such step is the same, it is not the steps that make the two trainings end apart. What
    the trainings end with is reported beside the seeds' spread; it is not judged, as there is nothing that it should be
    equal to.
    """
    given = options.weights
    if given is None:
        named = load_config(options.config, options.settings).train.weights
        options = dataclasses.replace(options, weights=None if named is None else locate(named))
    report = Report(f"A training of {steps} steps in Jittor and in PyTorch, {len(seeds)} seed(s)")
    histories: dict[int, list[dict]] = {}
    metrics: dict[int, dict[str, dict]] = {}
    common: dict[int, list[dict]] = {}
    versions: dict[str, str] = {}
    for seed in seeds:
        folder = out / f"seed{seed}"
        chosen = dataclasses.replace(options, seed=seed, initialise=options.weights is not None)
        with open_pair(chosen) as pair:
            make_folder(folder)
            config, versions = pair.config, pair.versions
            if not config.data.test:
                raise UserError("data.test is empty: name the sets that --evaluate is to test on")
            histories[seed] = _train(pair, datasets, folder, steps, seed, print_line)
            common[seed] = _steps_in_common(pair, datasets, folder, steps, seed)
        metrics[seed] = _evaluate(options, config, folder, steps, print_line)

    _judge_first_steps(report, histories, first_tolerance)
    rows = _metric_rows(metrics)
    wrong = _wrong_trips(metrics, return_tolerance)
    for row, is_wrong in zip(rows, wrong):
        if is_wrong:
            report.failures.append(
                f"weights trained in {row[1]} (seed {row[0]}) have another {row[3]} AP in the two frameworks on {row[2]}"
            )
    report.text(f"Start: {options.weights or 'synthetic weights'}; {versions_text(versions)}")
    for seed, history in histories.items():
        report.plot(_plot(history), f"Seed {seed}: losses, mean of 10 steps; Jittor thin over PyTorch broad")
    report.heading("Losses at the end")
    loss_rows = _loss_rows(histories)
    loss_columns = ["seed", "loss", "Jittor", "PyTorch", "difference", "scatter of the steps"]
    report.table(loss_columns, loss_rows)
    report.heading("Further steps of both from PyTorch's state at the end")
    common_columns = ["seed", "step", "losses, largest relative difference", "parameters apart, of the way travelled"]
    common_rows = [[seed, *row.values()] for seed, rows in common.items() for row in rows]
    report.table(common_columns, common_rows)
    report.heading("AP, and the return trip")
    columns = ["seed", "trained in", "data set", "of"]
    columns += [f"{name} {NAMES[side]}" for name in SHOWN for side in SIDES]
    report.table(columns, rows, wrong)
    report.heading("Jittor's training beside PyTorch's")
    spread = _spread_rows(metrics)
    spread_columns = ["data set", "of", "measure", "Jittor", "PyTorch", "difference", "spread of the seeds"]
    report.table(spread_columns, spread)
    report.write(
        out,
        {
            "tolerances": {"first": first_tolerance, "return": return_tolerance},
            "steps": steps,
            "seeds": seeds,
            "config": None if options.config is None else str(options.config),
            "settings": options.settings,
            "weights": None if options.weights is None else options.weights.name,
            "weights_of_config": given is None and options.weights is not None,
            "pictures_per_step": config.solver.batch_size,
            "size": [config.input.min_size, config.input.max_size],
            "losses": [dict(zip(loss_columns, row)) for row in loss_rows],
            "common": [dict(zip(("seed", "step", "losses", "apart"), row)) for row in common_rows],
            "metrics": {str(seed): value for seed, value in metrics.items()},
            "spread": [dict(zip(spread_columns, row)) for row in spread],
        },
    )
    print_line(text_table(loss_columns, loss_rows))
    print_line(text_table(common_columns, common_rows))
    print_line(text_table(columns, rows))
    print_line(text_table(spread_columns, spread))
    return report.verdict(out, print_line)


def _train(
    pair: Pair, datasets: list[str], folder: Path, steps: int, seed: int, print_line: Callable[[str], None]
) -> list[dict]:
    """Both sides step by step; leaves `jittor_N.pth` and `torch_N.pth` (after N steps), and what is needed to go on.

    Raises `UserError` when the folder holds a training of other settings, or a longer one.
    """
    record, settings = folder / "history.json", folder / "config.yaml"
    text = yaml.safe_dump(pair.config.model_dump(mode="json"))
    if settings.is_file() and settings.read_text(encoding="utf-8") != text:
        raise UserError(f"{folder} holds a training with another configuration: give another --out, or remove it")
    write_text(settings, text)
    history: list[dict] = []
    states = {side: folder / f"{side}_state.npz" for side in SIDES}
    if record.is_file():
        history = json.loads(record.read_text(encoding="utf-8"))
        if len(history) > steps:
            raise UserError(f"{folder} holds {len(history)} steps: give --steps {len(history)} or more, or another --out")
        _resume(pair, states)
        print_line(f"seed {seed}: goes on after step {len(history)}")
    period = pair.config.train.checkpoint_period
    remaining = steps - len(history)
    batches = training_batches(pair.config, datasets, seed, remaining, pair.folder, first=len(history))
    for step, batch in enumerate(batches, start=len(history) + 1):
        history.append({"step": step, **_step(pair, batch, step)})
        if step % pair.config.train.log_period == 0 or step == steps:
            both = ", ".join(f"{_mean_total(history[-10:], side):.4f} ({NAMES[side]})" for side in SIDES)
            print_line(f"seed {seed}, step {step}: loss {both}")
        if step % period == 0 or step == steps:
            _suspend(pair, states)
            write_json(record, history)
    for side in SIDES:
        tensors = _weights(states[side])
        metadata = {"config": pair.config.model_dump(mode="json")}
        interchange.write(folder / f"{side}_{steps}.pth", interchange.WeightFile(tensors, metadata=metadata))
    return history


def _steps_in_common(pair: Pair, datasets: list[str], folder: Path, steps: int, seed: int) -> list[dict]:
    """`COMMON_STEPS` further steps of both sides from the twin's state after `steps`; kept in `common_N.json`.

    Of each: losses, the largest relative difference of the four; apart, the distance of the two sides' parameters behind
    it over the way that the twin's have travelled.
    """
    record = folder / f"common_{steps}.json"
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    start = folder / "torch_state.npz"
    reached = {side: pair.folder / f"{side}_common.npz" for side in SIDES}
    _resume(pair, {side: start for side in SIDES})
    before, found = _weights(start), []
    batches = training_batches(pair.config, datasets, seed, COMMON_STEPS, pair.folder, first=steps)
    for step, batch in enumerate(batches, start=steps + 1):
        losses = _step(pair, batch, step)
        _suspend(pair, reached)
        jittor, torch = (_weights(reached[side]) for side in SIDES)
        apart = _distance(jittor, torch) / _distance(torch, before)
        worst = max(relative(losses["jittor"][name], losses["torch"][name]) for name in LOSSES)
        found.append({"step": step, "losses": worst, "apart": apart})
    write_json(record, found)
    return found


def _step(pair: Pair, batch: Path, step: int) -> dict[str, dict[str, float]]:
    """A step of both sides; the losses before it."""
    jittor = pair.jittor.ask("step", batch=str(batch), iteration=step)
    # Nothing but time differs: what the released network also sends through the mask head does not train it.
    return {"jittor": jittor, "torch": pair.torch.ask("step", batch=str(batch), iteration=step, only_positive=True)}


def _suspend(pair: Pair, states: dict[str, Path]) -> None:
    pair.jittor.ask("suspend", out=str(states["jittor"]))
    pair.torch.ask("suspend", out=str(states["torch"]))


def _resume(pair: Pair, states: dict[str, Path]) -> None:
    pair.jittor.ask("resume", state=str(states["jittor"]))
    pair.torch.ask("resume", state=str(states["torch"]))


def _weights(state: Path) -> dict[str, np.ndarray]:
    """The network's tensors of a state that was suspended."""
    return {n[len("weight/") :]: v for n, v in load_arrays(state).items() if n.startswith("weight/")}


def _distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(one[name] - other[name], dtype=np.float64).sum() for name in one)))


def _evaluate(
    options: Options, config: Config, folder: Path, steps: int, print_line: Callable[[str], None]
) -> dict[str, dict]:
    """Metrics by "weights of", then "evaluated in", then data set; those that are there already are not done again."""
    settings = folder / "config.yaml"
    found: dict[str, dict] = {}
    for trained in SIDES:
        weights = folder / f"{trained}_{steps}.pth"
        for side in SIDES:
            for name, place in zip(config.data.test, folder_names(config.data.test)):
                target = folder / f"eval_{steps}" / f"{trained}_weights_in_{side}" / place
                if not (target / "metrics.json").is_file():
                    print_line(f"testing {weights} in {NAMES[side]} on {name}")
                    if side == "jittor":
                        _test_in_jittor(options, settings, weights, name, target)
                    else:
                        chosen = dataclasses.replace(options, weights=weights, config=settings, settings=[])
                        twin_test(chosen, name, target, print_line=lambda line: None)
                values = json.loads((target / "metrics.json").read_text(encoding="utf-8"))
                found.setdefault(trained, {}).setdefault(side, {})[place] = values
    return found


def _test_in_jittor(options: Options, config: Path, weights: Path, name: str, target: Path) -> None:
    command = [sys.executable, "-m", "jrdp", "test", "--weights", str(weights), "--config", str(config)]
    command += ["--set", f"data.test=[{json.dumps(name)}]", "--device", options.device, "--out", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
        raise UserError(f"jrdp test ended with {done.returncode}: {words}")


def _judge_first_steps(report: Report, histories: dict[int, list[dict]], tolerance: float) -> None:
    for seed, history in histories.items():
        for name in LOSSES:
            error = relative(history[0]["jittor"][name], history[0]["torch"][name])
            if not error <= tolerance:
                report.failures.append(
                    f"seed {seed}: {name} of step 1 differs by {error:.3g} (tolerance {tolerance:g})"
                )


def _loss_rows(histories: dict[int, list[dict]]) -> list[list]:
    """Means over the last tenth of the steps; scatter: standard error of that mean, from PyTorch's steps."""
    rows = []
    for seed, history in histories.items():
        last = history[-max(1, len(history) // 10) :]
        for name in (*LOSSES, "total"):
            ours, theirs = ([_loss(entry[side], name) for entry in last] for side in SIDES)
            scatter = float(np.std(theirs) / np.sqrt(len(theirs)))
            difference = float(np.mean(ours) - np.mean(theirs))
            rows.append([seed, name, float(np.mean(ours)), float(np.mean(theirs)), difference, scatter])
    return rows


def _trips(metrics: dict[int, dict[str, dict]]) -> Iterator[tuple[int, str, str, str, dict[str, dict]]]:
    """seed, side that trained, data set, kind, and the measures by the side that evaluated."""
    for seed, by_weights in metrics.items():
        for trained, by_side in by_weights.items():
            for place in by_side["jittor"]:
                for kind in ("bbox", "segm"):
                    yield seed, trained, place, kind, {side: by_side[side][place][kind] for side in SIDES}


def _metric_rows(metrics: dict[int, dict[str, dict]]) -> list[list]:
    """seed, trained in, data set, kind, then each measure in Jittor and in PyTorch."""
    return [
        [seed, NAMES[trained], place, kind, *(found[side][name] for name in SHOWN for side in SIDES)]
        for seed, trained, place, kind, found in _trips(metrics)
    ]


def _wrong_trips(metrics: dict[int, dict[str, dict]], tolerance: float) -> list[bool]:
    """For each of `_metric_rows`, whether the two frameworks' APs of these weights are further apart than is allowed."""
    wrong = []
    for *_, found in _trips(metrics):
        ours, theirs = (found[side] for side in SIDES)
        allowed = max(tolerance, 1 / max(ours["instances"], 1))
        wrong.append(max(abs(ours[name] - theirs[name]) for name in SHOWN) > allowed)
    return wrong


def _spread_rows(metrics: dict[int, dict[str, dict]]) -> list[list]:
    """Each framework's own weights evaluated in itself, mean over the seeds, and the largest gap between two seeds."""
    rows = []
    for place in next(iter(metrics.values()))["jittor"]["jittor"]:
        for kind in ("bbox", "segm"):
            for name in SHOWN:
                values = {s: [metrics[seed][s][s][place][kind][name] for seed in metrics] for s in SIDES}
                ours, theirs = (float(np.mean(values[side])) for side in SIDES)
                gap = max(float(np.ptp(values[side])) for side in SIDES) if len(metrics) > 1 else "one seed"
                rows.append([place, kind, name, ours, theirs, ours - theirs, gap])
    return rows


def _loss(losses: dict[str, float], name: str) -> float:
    return sum(losses[n] for n in LOSSES) if name == "total" else losses[name]


def _mean_total(history: list[dict], side: str) -> float:
    return float(np.mean([_loss(entry[side], "total") for entry in history]))


def _plot(history: list[dict], window: int = 10):
    figure, axes = new_figure(10, 4)
    kernel = np.ones(min(window, len(history))) / min(window, len(history))
    steps = np.array([entry["step"] for entry in history])[len(kernel) - 1 :]
    for index, name in enumerate(LOSSES):
        for side, style in (("torch", {"linewidth": 5, "alpha": 0.35}), ("jittor", {"linewidth": 1.2, "label": name})):
            values = np.convolve([entry[side][name] for entry in history], kernel, mode="valid")
            axes.plot(steps, values, color=f"C{index}", **style)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    return figure
