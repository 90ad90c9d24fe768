"""Runs `scripts/ablation.sh`: designs x seeds, each trained and tested by `jrdp train`, and a table of them."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from jrdp.config import dump_config, load_config, parse_config
from jrdp.errors import UserError
from jrdp.files import make_folder, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("AP", "AP50", "AP70", "AP75")


def merge(recipe: dict, design: dict) -> dict:
    """`design` over `recipe`, section by section."""
    merged = dict(recipe)
    for key, value in design.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def train(config: Path, run: Path, seed: int, options: list[str]) -> None:
    """One run; nothing to do when it is finished, resumed when it was interrupted."""
    if (run / "final.safetensors").exists() and list(run.glob("eval/**/metrics.json")):
        print(f"{run}: finished before")
        return
    command = [sys.executable, "-m", "jrdp", "train"]
    command += ["--config", str(config), "--out", str(run), "--seed", str(seed)]
    if (run / "last.safetensors").exists():
        command.append("--resume")
    print(" ".join(command), flush=True)
    if subprocess.run([*command, *options], check=False).returncode:
        raise UserError(f"{run}: training failed; run the same command again to go on after mending the cause")


def collect(runs: dict[str, list[Path]]) -> dict:
    """Design -> test set -> metric of masks -> mean, spread (sample standard deviation) and values over the seeds."""
    table: dict = {}
    for design, folders in runs.items():
        for folder in folders:
            for file in sorted(folder.glob("eval/**/metrics.json")):
                name = file.parent.name if file.parent.name != "eval" else "test"
                values = table.setdefault(design, {}).setdefault(name, {metric: [] for metric in METRICS})
                segm = json.loads(file.read_text())["segm"]
                for metric in METRICS:
                    values[metric].append(segm[metric])
    for sets in table.values():
        for values in sets.values():
            for metric, numbers in values.items():
                spread = statistics.stdev(numbers) if len(numbers) > 1 else None
                values[metric] = {"mean": statistics.fmean(numbers), "spread": spread, "values": numbers}
    return table


def format_table(table: dict, seeds: int) -> str:
    """Mask metrics in percent, as a Markdown table: mean ± spread over the seeds."""
    lines = ["| design | test set | seeds | " + " | ".join(METRICS) + " |"]
    lines.append("| --- | --- | --- |" + " --- |" * len(METRICS))
    for design, sets in table.items():
        for name, values in sets.items():
            cells = []
            for metric in METRICS:
                entry = values[metric]
                spread = "" if entry["spread"] is None else f" ± {100 * entry['spread']:.1f}"
                cells.append(f"{100 * entry['mean']:.1f}{spread}")
            done = f"{len(values['AP']['values'])} of {seeds}"
            lines.append(f"| {design} | {name} | {done} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="ablation.sh", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "configs/r50_isod.yaml", help="how to train")
    parser.add_argument("--seeds", default="1", help="comma-separated")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("designs", nargs="+", type=Path, help="what to train: YAML files")
    options = parser.parse_args(arguments[:split])
    further = arguments[split + 1 :]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    load_config(options.recipe)  # refuses what is missing or wrong
    recipe = yaml.safe_load(options.recipe.read_text()) or {}
    make_folder(options.out)
    runs: dict[str, list[Path]] = {}
    for design in options.designs:
        load_config(design)
        if design.stem in runs:
            raise UserError(f"two designs are called {design.stem}: their runs would be one; rename one of the files")
        config = parse_config(merge(recipe, yaml.safe_load(design.read_text()) or {}), str(design))
        write_text(options.out / f"{design.stem}.yaml", dump_config(config))
        runs[design.stem] = [options.out / f"{design.stem}_seed{seed}" for seed in seeds]
    for number, seed in enumerate(seeds):  # seed by seed, so that an interrupted table compares like with like
        for design, folders in runs.items():
            train(options.out / f"{design}.yaml", folders[number], seed, further)
            table = collect(runs)
            write_json(options.out / "table.json", table, indent=1)
            write_text(options.out / "table.md", format_table(table, len(seeds)) + "\n")
    print(format_table(collect(runs), len(seeds)))
    print(f"table: {options.out / 'table.md'}, {options.out / 'table.json'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"ablation.sh: error: {error}", file=sys.stderr)
        sys.exit(2)
