"""`jrdp test --jobs N`; see `jrdp.engine.jobs`."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional

from jrdp.config import Config
from jrdp.engine.evaluate import Asked, Batch, Found, TestSets, evaluate_found, find_in_batch
from jrdp.engine.jobs import AHEAD, Job, ModelSource, job_pool


def evaluate_with_jobs(
    jobs: int, source: ModelSource, config: Config, test_sets: TestSets, out: Path, asked: Optional[Asked] = None
) -> dict:
    """`evaluate_datasets` with `jobs` processes; `config` is what `source` leads to. Raises as `predict_with_jobs`."""
    job = _TestJob(source, test_sets)
    with job_pool(jobs, job.load, job.find) as pool:

        def find(number: int, batches: list[Batch]) -> Iterator[Found]:
            return pool.in_order(((number, batch) for batch in batches), AHEAD * jobs)

        return evaluate_found(find, config, test_sets, out, asked)


class _TestJob(Job):
    def __init__(self, source: ModelSource, test_sets: TestSets):
        super().__init__(source)
        self._datasets = [dataset for _, dataset in test_sets]

    def find(self, number: int, batch: Batch) -> Found:
        dataset = self._datasets[number]
        images = [dataset.image(index) for index in batch]
        return find_in_batch(self.model.engine, self.model.config, dataset, images)
