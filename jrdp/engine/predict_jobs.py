"""`jrdp predict --jobs N`; see `jrdp.engine.jobs`."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Optional

from jrdp.engine.jobs import AHEAD, Job, ModelSource, job_pool
from jrdp.engine.predict import Outcome, batches_of, collect, predict_now, tasks_of
from jrdp.engine.record import Record, Task
from jrdp.files import make_folder, protect


def predict_with_jobs(
    jobs: int,
    source: ModelSource,
    pictures: list[Path],
    out: Path,
    threshold: float,
    record: Optional[Record] = None,
    batch_size: int = 1,
) -> list[str]:
    """`predict_files` with `jobs` processes; creates `out` once the first job has its model.

    Raises:
        UserError: where the first job cannot load the model (nothing is written then), where another cannot, and when a job dies.
    """
    job = _PredictJob(source, out, threshold)
    with job_pool(jobs, job.load, job.predict) as pool:
        make_folder(out)
        if record is None:  # an empty one is false
            record = Record(out, {}, resume=False)
        tasks = record.remaining(tasks_of(pictures))
        found = pool.in_order(zip(batches_of(tasks, batch_size)), AHEAD * jobs)
        return collect(zip(tasks, chain.from_iterable(found)), len(pictures), out, record)


class _PredictJob(Job):
    def __init__(self, source: ModelSource, out: Path, threshold: float):
        super().__init__(source)
        self._out = out
        self._threshold = threshold

    def predict(self, batch: list[Task]) -> list[Outcome]:
        protect(*(task.picture for task in batch))
        reads = [partial(self.model.ready, task.picture) for task in batch]
        return predict_now(self.model, reads, batch, self._out, self._threshold)
