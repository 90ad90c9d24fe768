"""Tests during training (`train.eval_period`), and which weights did best in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np

from jrdp.config import Config
from jrdp.engine.convolutions import convolutions_as_defined
from jrdp.engine.evaluate import evaluate_datasets
from jrdp.engine.network import for_prediction


@dataclass
class Best:
    """The iteration whose masks had the largest AP so far (the mean over the test sets), and that AP."""

    iteration: int = 0
    ap: float = -1.0


def validate(network, config: Config, test_sets, out: Path) -> dict:
    """The metrics of each test set, as training left the network; files go to `out`."""
    with convolutions_as_defined(network, config.train):
        return evaluate_datasets(for_prediction(network, config), config, test_sets, out)


def mask_ap(metrics: dict) -> float:
    """The mean over the test sets of the masks' AP."""
    return float(np.mean([kinds["segm"]["AP"] for kinds in metrics.values()]))


def better(best: Best, metrics: Optional[dict], iteration: int) -> bool:
    """Whether an iteration did better than all before; `best` then holds it."""
    if metrics is None or not mask_ap(metrics) > best.ap:
        return False
    best.iteration, best.ap = iteration, mask_ap(metrics)
    return True
