"""Fine-tuning: python examples/fine_tune.py r50_isod.pth photos:train.json runs/mine

The backbone and the pyramid stay as they are; the heads learn on, gently. Where the weights fit a part of the network
only (another number of channels, another pyramid), name them instead as `train.weights` with
`train.partial_weights=true`: what was and what was not filled is printed.
"""

import sys

import jrdp
from jrdp.config import load_config

RECIPE = [
    "solver.base_lr=0.0005",
    "solver.max_iterations=200",
    "solver.steps=[150]",
    "solver.warmup_iterations=20",
    "solver.accumulate=2",  # gradients of two batches for each step
    "solver.clip_norm=10",
    "data.min_sizes=[256,288,320,352]",  # short sides to choose from
    "data.brightness=0.2",
    "data.saturation=0.2",
    "data.test=[]",
]


def main(weights: str, dataset: str, out: str, *overrides: str) -> dict:
    model = jrdp.load(weights)
    from jrdp.models.state import trainable_parameters

    for tensor in trainable_parameters(model.network.backbone).values():
        tensor.stop_grad()
    recipe = [*RECIPE, f"data.train=['{dataset}']", "train.weights=null", *overrides]
    return jrdp.train(load_config(None, recipe, base=model.config), out, model=model.network)


if __name__ == "__main__":
    main(*sys.argv[1:])
