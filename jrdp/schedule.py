"""The learning-rate schedule (convention 6). Needs no Jittor: checkpoints of PyTorch are written by it too."""

from __future__ import annotations

from bisect import bisect_right

from jrdp.config import SolverConfig


def rate_factor(solver: SolverConfig, iteration: int) -> float:
    """What the base rate is multiplied by at `iteration`, which counts from 1.

    Constant warm-up, then a step schedule. As the released code runs under torch >= 1.1, where iteration i has
    `last_epoch = i`: the warm-up covers iterations 1..499 of 500 and the decay starts at iteration 6000.
    """
    warmup = solver.warmup_factor if iteration < solver.warmup_iterations else 1.0
    return warmup * solver.gamma ** bisect_right(sorted(solver.steps), iteration)


def learning_rate(solver: SolverConfig, iteration: int) -> float:
    """The learning rate of the weights at `iteration`, which counts from 1; biases have their own factor over it."""
    return solver.base_lr * rate_factor(solver, iteration)
