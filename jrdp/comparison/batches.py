"""Training batches for both sides of a comparison: made once, in one order, by jrdp's own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

from jrdp.comparison.exchange import save_batch
from jrdp.config import Config
from jrdp.data.catalog import load_dataset
from jrdp.data.loader import TrainLoader
from jrdp.dataset_tools.sample import write_sample

SAMPLE = "sample"  # the embedded generated pictures


def training_batches(
    config: Config, names: list[str], seed: int, count: int, folder: Path, first: int = 0
) -> Iterator[Path]:
    """`count` batches, from number `first` (0 is the first) on, of `config.solver.batch_size`, each written to a file that the next one overwrites.

    names: datasets as in `data.train`, `sample` for the generated pictures; empty for `data.train` itself.
    Raises `UserError` for a dataset that is missing or malformed.
    """
    chosen = names or config.data.train
    if SAMPLE in chosen:
        sample = write_sample(folder / "sample")
        chosen = [f"{sample.images}:{sample.train}" if name == SAMPLE else name for name in chosen]
    dataset = load_dataset(chosen, config, training=True)
    path = folder / "training_batch.npz"
    loader = TrainLoader(
        dataset,
        batch_size=config.solver.batch_size,
        seed=seed,
        start_iteration=first,
        workers=0,
        flip_probability=config.data.flip_probability,
    )
    with loader:
        for (_, batch, targets), _ in zip(loader, range(count)):
            save_batch(path, batch, targets)
            yield path
