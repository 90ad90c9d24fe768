"""The loader's batches, of which the next one can be uploaded while the GPU computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Iterable, Optional, Tuple

import jittor as jt

from jrdp.structures import ImageBatch, Targets

Item = Tuple[ImageBatch, list]  # with list[Targets]


class BatchesAhead:
    """Hands out the batches of a `TrainLoader` in its order.

    `prepare()` is for the moment at which the GPU has been given its work and the host would wait for it: it takes the
    next batch from the loader, whose workers have it ready, copies its pictures into pinned memory (`jt.array` does)
    and starts their upload, on a stream of Jittor's own beside the computation. Without it nothing is done ahead.
    """

    def __init__(self, loader: Iterable[tuple[int, ImageBatch, list[Targets]]]):
        self._source = iter(loader)
        self._ready: Optional[Item] = None
        self._failure: Optional[Exception] = None

    def prepare(self) -> None:
        """Fetch the next batch and start its upload; what goes wrong is raised by `take()`."""
        try:
            batch, targets = self._next()
        except Exception as failure:  # not now: the caller is in the middle of another batch
            self._failure = failure
            return
        images = jt.array(batch.images)
        jt.sync([images], False)
        self._ready = replace(batch, images=images), targets

    def take(self) -> Item:
        """The next batch and its targets, prepared or not.

        Raises what the loader raises (`UserError` for a picture that cannot be read): only here, where the steps before
        it are done.
        """
        if self._failure is not None:
            raise self._failure
        ready, self._ready = self._ready, None
        return self._next() if ready is None else ready

    def _next(self) -> Item:
        _, batch, targets = next(self._source)
        return batch, targets
