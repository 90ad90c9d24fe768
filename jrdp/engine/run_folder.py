"""The folder of a training: empty at the start, or with the checkpoint that `--resume` continues from."""

from __future__ import annotations

import os
from pathlib import Path

from jrdp.config import Config
from jrdp.engine import distributed
from jrdp.engine.checkpoint import Checkpoint, load_checkpoint
from jrdp.errors import UserError
from jrdp.files import make_folder

# What makes a folder that of a run, and what else a run writes into it: each would replace what is there by that name.
_OF_A_RUN = ("last.safetensors", "final.safetensors", "log.jsonl", "config.yaml")
_ALSO_WRITTEN = ("best.safetensors", "curves.png", "eval", "validation", "tensorboard")
# How a run is logged and where its data lies may change when it is resumed.
_FREE = {
    "data.root", "data.workers", "data.test", "train.weights", "train.partial_weights", "train.log_period",
    "train.checkpoint_period", "train.eval_period", "train.tensorboard",
}  # fmt: skip


def open_run(config: Config, out: Path, resume: bool) -> Checkpoint | None:
    """Check and create the run folder; the training state when resuming, else None.

    Of several ranks the main one alone checks: it writes there without waiting for the others, which may come later.

    Raises:
        UserError: for a folder that holds a run already, or a file or folder by a name that a run writes to; for nothing to
            resume; for another configuration than the run had.
    """
    if resume:
        state = load_checkpoint(out / "last.safetensors")
        differing = differences(config, state.config)
        if differing:
            raise UserError(
                f"--resume with another configuration than {out / 'last.safetensors'}: {', '.join(differing)} differ; "
                "give the same --config and --set, or train into another folder"
            )
        return state
    if not distributed.is_main():
        return None
    held = [name for name in _OF_A_RUN if (out / name).exists()]
    if sorted(held) == ["config.yaml", "log.jsonl"] and _nothing_logged(out):
        held = []  # of a run that was killed before its first step
    if held:
        there = "add --resume to continue it, or" if held[0] == "last.safetensors" else "it has no checkpoint to continue;"
        raise UserError(f"{out} already holds a run ({', '.join(held)}): {there} give another --out")
    others = [name for name in _ALSO_WRITTEN if os.path.lexists(out / name)]
    if others:
        raise UserError(f"{out} holds {', '.join(others)}, which a training writes: give another --out, or take it away")
    make_folder(out)
    return None


def forget_unbegun(out: Path) -> None:
    """Remove what a run has written that ended before its first step, so that it can be started anew in its folder."""
    if _nothing_logged(out) and not (out / "last.safetensors").exists():
        for name in ("log.jsonl", "config.yaml"):
            (out / name).unlink(missing_ok=True)


def _nothing_logged(out: Path) -> bool:
    log = out / "log.jsonl"
    return log.is_file() and log.stat().st_size == 0


def differences(config: Config, saved: Config) -> list[str]:
    """Dotted keys that change what a run computes and differ."""
    mine, theirs = _flatten(config.model_dump(mode="json")), _flatten(saved.model_dump(mode="json"))
    return sorted(
        key
        for key in mine
        if mine[key] != theirs.get(key)
        and not (key == "solver.max_iterations" and mine[key] > theirs[key])  # a longer run goes on from the shorter
        and key not in _FREE and not key.startswith("test.")
        or key == "train.weights" and _other_file(mine[key], theirs.get(key))
        or key == "train.partial_weights" and mine[key] and not theirs.get(key)  # it chose what the start was filled with
    )


def _other_file(mine: str | None, theirs: str | None) -> bool:
    """Whether a start is named that the run did not have: resuming would not look at it."""
    return mine is not None and (theirs is None or Path(mine).resolve() != Path(theirs).resolve())


def _flatten(values: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in values.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
