"""The loader: the same batches whatever the workers, resumable anywhere, and no hanging when something breaks."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from jrdp.machine import runtime
from jrdp.config import InputConfig
from jrdp.data.coco import CocoDataset, Example
from jrdp.data.loader import TrainLoader, prefetch
from jrdp.data.transforms import PreparedImage
from jrdp.errors import UserError
from jrdp.structures import Targets

ROOT = Path(__file__).resolve().parents[2]


class FakeDataset:
    """`count` constant pictures, alternately landscape and portrait; what one does on `index` is up to subclasses."""

    def __init__(self, count=10):
        self.count = count

    def __len__(self):
        return self.count

    def original_size(self, index):
        return (20, 30) if index % 2 == 0 else (40, 30)

    size = original_size

    def example(self, index, flip=False):
        pixels = np.full((3, *self.size(index)), index + 100 * flip, np.float32)
        targets = Targets(np.full((1, 4), index, np.float32), [None], [None], self.size(index))
        return Example(PreparedImage(pixels, self.size(index), index), targets)


class DyingDataset(FakeDataset):
    def example(self, index, flip=False):
        if index == 3:
            os._exit(7)
        return super().example(index, flip)


class BadPictureDataset(FakeDataset):
    def example(self, index, flip=False):
        if index == 3:
            raise UserError("cannot read image p3.png: it is broken")
        if index == 4:
            raise KeyError("a bug")
        return super().example(index, flip)


class ModulesDataset(FakeDataset):
    """Puts what the worker process has imported, and whether it is another process, into the targets' size."""

    def example(self, index, flip=False):
        image, _ = super().example(index, flip)
        heavy = tuple(sorted({"jittor", "jittor_utils", "torch"} & set(sys.modules)))
        return Example(image, Targets(np.zeros((0, 4), np.float32), [], [], (os.getpid(), heavy)))


class PrintingDataset(FakeDataset):
    def example(self, index, flip=False):
        print("a stray message", index)
        return super().example(index, flip)


@pytest.fixture(autouse=True)
def default_signals():
    """As `runtime.start` leaves them: once imported (by another test), Jittor ends the process over a killed child."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _take(dataset, count, **options):
    with TrainLoader(dataset, **{"batch_size": 4, "seed": 5, **options}) as loader:
        return list(islice(loader, count))


def _same(a, b):
    assert len(a) == len(b) > 0
    for (i, images, targets), (j, other_images, other_targets) in zip(a, b):
        assert i == j and images.image_ids == other_images.image_ids
        assert np.array_equal(images.images, other_images.images) and images.sizes == other_images.sizes
        assert all(np.array_equal(x.boxes, y.boxes) for x, y in zip(targets, other_targets))


def test_same_batches_with_and_without_workers(tiny_set):
    dataset = CocoDataset(*tiny_set.write(), InputConfig(min_size=40, max_size=60), training=True)
    inline = _take(dataset, 7, batch_size=2, workers=0)
    assert [iteration for iteration, _, _ in inline] == list(range(7))
    _same(inline, _take(dataset, 7, batch_size=2, workers=1))
    _same(inline, _take(dataset, 7, batch_size=2, workers=3))
    with pytest.raises(AssertionError):
        _same(inline, _take(dataset, 7, batch_size=2, workers=0, seed=6))


def test_any_iteration_can_be_resumed():
    whole = _take(FakeDataset(), 13)
    for start in (1, 4, 7, 12):  # four batches an epoch
        _same(whole[start:], _take(FakeDataset(), 13 - start, start_iteration=start))


def test_resuming_far_on_reads_no_picture_before():
    started = time.monotonic()
    loader = TrainLoader(BadPictureDataset(), batch_size=1, seed=0, start_iteration=10**9)
    assert loader.iterations_per_epoch == 10 and len(next(loader.plan())) == 1
    assert time.monotonic() - started < 1


def test_every_picture_once_an_epoch_and_one_group_a_batch():
    for epoch in range(3):
        batches = _take(FakeDataset(), 4, start_iteration=4 * epoch)
        ids = [i for _, images, _ in batches for i in images.image_ids]
        assert sorted(ids) == list(range(10))
        assert sorted(len(images) for _, images, _ in batches) == [1, 1, 4, 4]
        assert all(len({i % 2 for i in images.image_ids}) == 1 for _, images, _ in batches)


def test_targets_belong_to_the_pictures():
    for _, images, targets in _take(FakeDataset(), 8):
        assert [target.boxes[0, 0] for target in targets] == images.image_ids
        assert [picture.max() % 100 for picture in images.images] == images.image_ids


def test_ranks_have_shares_of_the_same_batch_and_the_same_padding():
    class Sizes(FakeDataset):
        def size(self, index):
            return (20, 30 + 16 * index)

    whole = _take(Sizes(), 6)
    parts = [_take(Sizes(), 6, rank=rank, world_size=2) for rank in range(2)]
    for (_, images, _), (_, left, _), (_, right, _) in zip(whole, *parts):
        assert left.images.shape[2:] == right.images.shape[2:] == images.images.shape[2:]
        if len(images) > 1:
            assert np.array_equal(np.concatenate([left.images, right.images]), images.images)
        else:
            assert left.image_ids == right.image_ids == images.image_ids
    with pytest.raises(ValueError):
        TrainLoader(FakeDataset(), 4, seed=0, rank=2, world_size=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_a_user_error(workers):
    with pytest.raises(UserError, match="p3.png: it is broken"):
        _take(BadPictureDataset(4), 4, workers=workers)


def test_a_bug_in_a_worker_is_shown_with_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"):
        _take(BadPictureDataset(), 40, workers=1, batch_size=1, seed=2, flip_probability=0, start_iteration=_first(4))


def _first(index):
    """An iteration whose batch is [index] with these options."""
    loader = TrainLoader(FakeDataset(), batch_size=1, seed=2, flip_probability=0)
    return next(i for i, batch in enumerate(loader.plan()) if batch[0][0] == index)


def test_a_dead_worker_is_an_error_and_does_not_hang():
    with pytest.raises(RuntimeError, match="ended with code 7"):
        _take(DyingDataset(), 40, workers=2)


def test_a_killed_worker_is_an_error_and_does_not_hang():
    with TrainLoader(FakeDataset(), 4, seed=0, workers=1) as loader:
        batches = iter(loader)
        next(batches)
        for worker in loader._pool._workers:
            worker._process.send_signal(signal.SIGKILL)
        with pytest.raises(RuntimeError, match="data worker"):
            list(islice(batches, 20))


def test_workers_end_with_the_loader():
    loader = TrainLoader(FakeDataset(), 4, seed=0, workers=2)
    batches = iter(loader)
    next(batches)
    processes = [worker._process for worker in loader._pool._workers]
    assert all(process.poll() is None for process in processes)
    batches.close()
    assert all(process.poll() is not None for process in processes)
    loader.close()
    assert len(list(islice(loader, 3))) == 3  # and it can be used again
    loader.close()


def test_workers_import_neither_jittor_nor_torch():
    runtime.start("cpu")  # imports Jittor here, which the workers must not inherit
    assert "jittor" in sys.modules
    for _, _, targets in _take(ModulesDataset(), 3, workers=2):
        for target in targets:
            process, heavy = target.size
            assert process != os.getpid() and heavy == ()


def test_stray_prints_do_not_harm():
    _same(_take(FakeDataset(), 3), _take(PrintingDataset(), 3, workers=1))


SCRIPT = """
    import sys
    from jrdp.config import InputConfig
    from jrdp.data.coco import CocoDataset
    from jrdp.data.loader import TrainLoader
    print("started", flush=True)
    dataset = CocoDataset(sys.argv[1], sys.argv[2], InputConfig(min_size=40, max_size=60), training=True)
    loader = TrainLoader(dataset, batch_size=2, seed=0, workers=2)
    try:
        for iteration, images, targets in loader:
            print(iteration, flush=True)
            if iteration == STOP:
                break
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    loader.close()
    print("done", flush=True)
"""


def _script(stop):
    return textwrap.dedent(SCRIPT).replace("STOP", str(stop))


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("how", ["file", "standard input"])
def test_scripts_need_no_main_guard(tiny_set, tmp_path, how):
    images, annotations = tiny_set.write()
    script = tmp_path / "train_me.py"
    script.write_text(_script(3))
    first, text = (str(script), "") if how == "file" else ("-", _script(3))
    run = subprocess.run(
        [sys.executable, first, images, annotations],
        input=text, capture_output=True, text=True, timeout=300, env=_environment(),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["started", "0", "1", "2", "3", "done"] and not run.stderr


def test_ctrl_c_ends_cleanly_and_at_once(tiny_set):
    process = subprocess.Popen(
        [sys.executable, "-c", _script(-1), *map(str, tiny_set.write())],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment(),
    )  # fmt: skip
    watchdog = threading.Timer(300, process.kill)
    watchdog.start()
    for line in process.stdout:
        if line.strip() == "5":
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    watchdog.cancel()
    assert process.returncode == 0 and "Traceback" not in errors
    assert output.split()[-2:] == ["interrupted", "done"]


def test_prefetch_keeps_the_order_and_hands_over_errors():
    def prepare(item):
        if item == 2:
            raise UserError("item 2 is bad")
        return item * item

    results = []
    for item, future in prefetch(prepare, range(5)):
        try:
            results.append((item, future.result()))
        except UserError as error:
            results.append((item, str(error)))
    assert results == [(0, 0), (1, 1), (2, "item 2 is bad"), (3, 9), (4, 16)]
    assert list(prefetch(prepare, [])) == []


def test_prefetch_works_ahead_within_bounds():
    started = []
    source = prefetch(lambda item: started.append(item) or item, range(100), depth=3)
    for _ in range(5):
        next(source)[1].result()
    deadline = time.monotonic() + 5
    while len(started) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started == list(range(8))
    source.close()
