"""Many pictures: several processes that each hold a model and a share of the cores, as `--jobs N` asks for.

Jittor holds Python's global lock while it computes, so no thread can read, draw or encode beside a network; a process
can. And N processes with a share of the cores each do more pictures a second than one with all of them, because what
cannot be spread over cores then runs N times at once.

This process holds no network and imports no Jittor: it hands out pictures, at most two for each job, and puts together
what comes back in the order of the pictures, so the results are those of one job.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Optional

import jrdp
from jrdp.machine import runtime
from jrdp.config import Config
from jrdp.data.workers import WorkerDied, WorkerPool
from jrdp.engine.evaluate import Asked, Batch, Found, TestSets, evaluate_found, find_in_batch
from jrdp.engine.predict import Outcome, batches_of, collect, predict_now, tasks_of
from jrdp.engine.record import Record, Task
from jrdp.errors import UserError
from jrdp.files import make_folder, protect

if TYPE_CHECKING:
    from jrdp.engine.predictor import SalientInstanceModel

_AHEAD = 2  # tasks for each job: one to work on, and one that waits for it
_ADVICE = "if memory ran out, use fewer --jobs; JRDP_VERBOSE=1 shows what it printed"


@dataclass(frozen=True)
class ModelSource:
    """What `jrdp.load` needs; every job loads its own."""

    weights: Path
    config: Optional[Path]
    device: str
    settings: tuple[str, ...]

    def load(self) -> SalientInstanceModel:
        model = jrdp.load(self.weights, self.config, self.device, self.settings)
        if not os.environ.get("JRDP_VERBOSE"):
            _silence()
        return model


def predict_with_jobs(
    jobs: int,
    source: ModelSource,
    pictures: list[Path],
    out: Path,
    threshold: float,
    record: Optional[Record] = None,
    batch_size: int = 1,
) -> list[str]:
    """`predict_files` with `jobs` processes; creates `out` once every job has its model.

    Raises:
        UserError: where the model cannot be loaded (nothing is written then), and when a job dies.
    """
    job = _PredictJob(source, out, threshold)
    with _pool(jobs, job.load, job.predict) as pool:
        make_folder(out)
        if record is None:  # an empty one is false
            record = Record(out, {}, resume=False)
        tasks = record.remaining(tasks_of(pictures))
        found = pool.in_order(zip(batches_of(tasks, batch_size)), _AHEAD * jobs)
        return collect(zip(tasks, chain.from_iterable(found)), len(pictures), out, record)


def evaluate_with_jobs(
    jobs: int, source: ModelSource, config: Config, test_sets: TestSets, out: Path, asked: Optional[Asked] = None
) -> dict:
    """`evaluate_datasets` with `jobs` processes; `config` is what `source` leads to. Raises as `predict_with_jobs`."""
    job = _TestJob(source, test_sets)
    with _pool(jobs, job.load, job.find) as pool:

        def find(number: int, batches: list[Batch]) -> Iterator[Found]:
            return pool.in_order(((number, batch) for batch in batches), _AHEAD * jobs)

        return evaluate_found(find, config, test_sets, out, asked)


def threads_per_job(jobs: int) -> int:
    """Cores of this machine that this process may use, divided among the jobs; at least 1."""
    return max(1, runtime.cores() // jobs)


class _Job:
    """A picklable job; its model exists in the process that has called `load`."""

    def __init__(self, source: ModelSource):
        self._source = source
        self._model: Optional[SalientInstanceModel] = None

    def load(self) -> None:
        self._model = self._source.load()


class _PredictJob(_Job):
    def __init__(self, source: ModelSource, out: Path, threshold: float):
        super().__init__(source)
        self._out = out
        self._threshold = threshold

    def predict(self, batch: list[Task]) -> list[Outcome]:
        protect(*(task.picture for task in batch))
        reads = [partial(self._model.ready, task.picture) for task in batch]
        return predict_now(self._model, reads, batch, self._out, self._threshold)


class _TestJob(_Job):
    def __init__(self, source: ModelSource, test_sets: TestSets):
        super().__init__(source)
        self._datasets = [dataset for _, dataset in test_sets]

    def find(self, number: int, batch: Batch) -> Found:
        dataset = self._datasets[number]
        images = [dataset.image(index) for index in batch]
        return find_in_batch(self._model.engine, self._model.config, dataset, images)


@contextmanager
def _pool(jobs: int, load: Callable[[], None], work: Callable) -> Iterator[WorkerPool]:
    """Processes that have loaded their models."""
    environment = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads_per_job(jobs))}
    with WorkerPool(work, jobs, "job", _ADVICE, environment, setup=load) as pool:
        try:
            pool.wait_until_ready()
            yield pool
        except WorkerDied as error:
            raise UserError(str(error)) from error


def _silence() -> None:
    """Drop what Jittor prints from now on, which would end up in the main process's progress bar."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
