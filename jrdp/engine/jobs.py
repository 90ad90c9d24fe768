"""Many pictures: several processes that each hold a model and a share of the cores, as `--jobs N` asks for.

Jittor holds Python's global lock while it computes, so no thread can read, draw or encode beside a network; a process
can. And N processes with a share of the cores each do more pictures a second than one with all of them, because what
cannot be spread over cores then runs N times at once. For a large folder on a CPU there are two, where nobody says.

This process holds no network and imports no Jittor: it hands out pictures, at most two for each job, and puts together
what comes back in the order of the pictures, so the results are those of one job.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Optional

import jrdp
from jrdp.data.workers import WorkerDied, WorkerPool
from jrdp.errors import UserError
from jrdp.machine import runtime
from jrdp.machine.memory import available_memory

if TYPE_CHECKING:
    from jrdp.engine.predictor import SalientInstanceModel

AHEAD = 2  # tasks for each job: one to work on, and one that waits for it
_MANY = 100  # pictures
_MEMORY_OF_A_JOB = 3 << 30  # bytes, for the largest backbone and photographs
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


def jobs_for(pictures: int, device: str) -> int:
    """How many jobs predict a folder where nobody says: two on a CPU of several cores, for so many pictures that they make
    up for a second start, and with memory for both; else one."""
    if pictures < _MANY or runtime.cores() < 2 or "OMP_NUM_THREADS" in os.environ:
        return 1
    if available_memory() < 2 * _MEMORY_OF_A_JOB or (device != "cpu" and runtime.prepare().cuda.usable):
        return 1
    return 2


def threads_per_job(jobs: int) -> int:
    """Cores of this machine that this process may use, divided among the jobs; at least 1."""
    return max(1, runtime.cores() // jobs)


class Job:
    """A picklable job; its model exists in the process that has called `load`."""

    def __init__(self, source: ModelSource):
        self._source = source
        self.model: Optional[SalientInstanceModel] = None

    def load(self) -> None:
        self.model = self._source.load()


@contextmanager
def job_pool(jobs: int, load: Callable[[], None], work: Callable) -> Iterator[WorkerPool]:
    """Processes, one of which has loaded its model; the others follow."""
    environment = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads_per_job(jobs))}
    with WorkerPool(work, jobs, "job", _ADVICE, environment, setup=load) as pool:
        try:
            pool.wait_for_first()
            yield pool
        except WorkerDied as error:
            raise UserError(str(error)) from error


def _silence() -> None:
    """Drop what Jittor prints from now on, which would end up in the main process's progress bar."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
