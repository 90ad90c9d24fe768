"""Training batches for ever, in an order that depends on nothing but the seed; and a look-ahead for inference."""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Iterable, Iterator, TypeVar

from jrdp.data.augmentation import Augmentation
from jrdp.data.sampler import aspect_group, batches_per_epoch, epoch_plan, share_of_rank
from jrdp.data.transforms import batch_images, padded_shape
from jrdp.data.workers import WorkerPool
from jrdp.structures import ImageBatch, Targets

Item = TypeVar("Item")
_BATCHES_AHEAD = 2
_ADVICE = "if memory ran out, use fewer: data.workers=0 prepares the pictures in the main process"


class TrainLoader:
    """Iterates over `(iteration, ImageBatch, list[Targets])` without end, from `start_iteration` on (0 is the first).

    Batches hold pictures of one aspect-ratio group (convention 28). Order and mirroring are pure functions of the seed,
    the epoch and the picture, so a run resumed at any iteration sees what the uninterrupted run saw, and the number of
    workers changes nothing.

    With `world_size` > 1 every rank gets its contiguous share of the same global batch, padded to the size that the
    whole batch needs (group norm sees the padding); a batch of fewer pictures than ranks is repeated.

    Args:
        dataset: has `len`, `example(index, flip)`, and `original_size(index)` and `size(index)` as (height, width);
            the last and `example` also take a look where there is an `augmentation`.
        batch_size: pictures of the global batch.
        workers: processes that prepare pictures; 0 prepares them in this one.

    Use it in a `with` block, or call `close()`: both end the workers. Raises `UserError` for a picture that cannot be
    read, and `RuntimeError` when a worker dies.
    """

    def __init__(
        self,
        dataset,
        batch_size: int,
        seed: int,
        start_iteration: int = 0,
        workers: int = 0,
        flip_probability: float = 0.5,
        rank: int = 0,
        world_size: int = 1,
        augmentation: Augmentation = Augmentation(),
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0..{world_size - 1}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.start_iteration = start_iteration
        self.workers = workers
        self.flip_probability = flip_probability
        self.rank = rank
        self.world_size = world_size
        self.augmentation = augmentation
        self._groups = [aspect_group(*dataset.original_size(index)) for index in range(len(dataset))]
        self.iterations_per_epoch = batches_per_epoch(self._groups, batch_size)
        self._pool: WorkerPool | None = None

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def plan(self) -> Iterator[list[tuple]]:
        """The global batches from `start_iteration` on, without reading a picture: what `dataset.example` is called with,
        (picture index, mirrored), and the picture's look where pictures are varied."""
        epoch, offset = divmod(self.start_iteration, self.iterations_per_epoch)
        for epoch in itertools.count(epoch):
            batches = epoch_plan(self._groups, self.batch_size, self.flip_probability, self.seed, epoch)
            looks = self.augmentation.looks(len(self._groups), self.seed, epoch)
            if looks is not None:
                batches = [[(index, flip, looks[index]) for index, flip in batch] for batch in batches]
            yield from batches[offset:]
            offset = 0

    def __iter__(self) -> Iterator[tuple[int, ImageBatch, list[Targets]]]:
        self.close()
        numbered = zip(itertools.count(self.start_iteration), self.plan())
        if self.workers == 0:
            for iteration, batch in numbered:
                examples = [self.dataset.example(*task) for task in share_of_rank(batch, self.rank, self.world_size)]
                yield self._collate(iteration, batch, examples)
            return
        under_way = -(-self.batch_size // self.world_size) * (_BATCHES_AHEAD + 1)  # pictures; more workers would have none
        pool = self._pool = WorkerPool(self.dataset.example, min(self.workers, under_way), "data worker", _ADVICE)
        try:
            ahead: deque[tuple[int, list, list[Future]]] = deque()
            for iteration, batch in numbered:
                tasks = share_of_rank(batch, self.rank, self.world_size)
                ahead.append((iteration, batch, [pool.submit(*task) for task in tasks]))
                if len(ahead) > _BATCHES_AHEAD:
                    iteration, batch, futures = ahead.popleft()
                    yield self._collate(iteration, batch, [future.result() for future in futures])
        finally:
            pool.close()

    def _collate(self, iteration: int, batch: list[tuple], examples: list):
        shape = padded_shape([self.dataset.size(index, *look) for index, _, *look in batch])
        images = batch_images([example.image for example in examples], shape)
        return iteration, images, [example.targets for example in examples]


def prefetch(prepare: Callable[[Item], object], items: Iterable[Item], depth: int = 2) -> Iterator[tuple[Item, Future]]:
    """`(item, future of prepare(item))` in order, each prepared in a thread while the caller works on an earlier one.

    What the thread gains beside a network is little: Jittor holds Python's global lock while it computes, so the thread
    gets on between two of its operators only, and while the caller draws, encodes or writes without that lock. Work
    that is to go on beside a network needs a process (`jrdp.engine.jobs`).

    At most `depth` items are prepared ahead. `future.result()` gives the value or raises what `prepare` raised, so
    that one bad picture does not end the others.
    """
    ahead: deque[tuple[Item, Future]] = deque()
    thread = ThreadPoolExecutor(1, thread_name_prefix="jrdp-prefetch")
    try:
        for item in items:
            ahead.append((item, thread.submit(prepare, item)))
            if len(ahead) > depth:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
