"""The worker processes: what reaches them, in which order answers come, and what their end looks like."""

import os
import signal
import time

import pytest

from jrdp.data.workers import WorkerDied, WorkerPool
from jrdp.errors import UserError


class Counter:
    """Counts in its own process from where `setup` put it."""

    def __init__(self, start=0, failure=None):
        self.start = start
        self.failure = failure
        self.value = None

    def setup(self):
        if self.failure is not None:
            raise self.failure
        self.value = self.start

    def count(self, step=1):
        self.value += step
        return os.getpid(), self.value


@pytest.fixture(autouse=True)
def default_signals():
    """As `runtime.start` leaves them: once imported (by another test), Jittor ends the process over a killed child."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def pool_of(function, count=1, **options):
    return WorkerPool(function, count, "helper", "use fewer", **options)


def test_setup_runs_once_in_each_process_and_on_the_same_object():
    counter = Counter(start=10)
    with pool_of(counter.count, 2, setup=counter.setup) as pool:
        seen = [pool.submit().result() for _ in range(6)]
    processes = {process for process, _ in seen}
    assert len(processes) == 2 and os.getpid() not in processes
    for process in processes:
        assert [value for other, value in seen if other == process] == [11, 12, 13]
    assert counter.value is None  # here, nothing happened


def test_processes_set_themselves_up_without_being_waited_for():
    counter = Counter(start=5)
    with pool_of(counter.count, setup=counter.setup) as pool:
        assert pool.submit(2).result()[1] == 7


def test_a_failing_setup_is_the_answer_to_everything():
    counter = Counter(failure=UserError("no such weights"))
    with pool_of(counter.count, 2, setup=counter.setup) as pool:
        with pytest.raises(UserError, match="^no such weights$"):
            pool.wait_for_first()
        for _ in range(3):
            with pytest.raises(UserError, match="^no such weights$"):
                pool.submit().result()
    counter = Counter(failure=KeyError("a bug"))
    with pool_of(counter.count, setup=counter.setup) as pool, pytest.raises(RuntimeError, match="a helper failed"):
        pool.wait_for_first()


def test_environment_is_that_of_the_processes_only(monkeypatch):
    monkeypatch.setenv("JRDP_TEST_A", "a")
    with pool_of(os.getenv, environment={"JRDP_TEST_B": "b"}) as pool:
        assert [pool.submit(f"JRDP_TEST_{name}").result() for name in "ABC"] == ["a", "b", None]
    assert "JRDP_TEST_B" not in os.environ


def test_results_come_in_order_and_few_tasks_are_under_way():
    taken = []

    def tasks():
        for number in range(20):
            taken.append(number)
            yield (-number,)

    with pool_of(abs, 3) as pool:
        results = pool.in_order(tasks(), ahead=4)
        for number in range(20):
            assert next(results) == number
            assert len(taken) <= number + 4
        assert next(results, "end") == "end"
        assert list(pool.in_order([], ahead=4)) == []


def test_a_result_that_cannot_be_pickled_is_an_error():
    with pool_of(memoryview) as pool:
        with pytest.raises(RuntimeError, match="pickle"):
            pool.submit(b"abc").result()
    with pool_of(len) as pool:
        assert pool.submit("abc").result() == 3


def test_a_killed_process_is_named_with_the_signal_and_the_advice():
    with pool_of(len) as pool:
        process = pool._workers[0]._process
        assert pool.submit("abc").result() == 3
        os.kill(process.pid, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(WorkerDied) as caught:
                pool.submit("abc").result()
            assert str(caught.value) == f"a helper (process {process.pid}) was killed by SIGKILL; use fewer"


def test_processes_end_with_the_pool_and_lead_their_own_session():
    with pool_of(os.getsid, 2) as pool:
        pool.wait_for_first()
        processes = [worker._process for worker in pool._workers]
        assert pool.submit(0).result() in [process.pid for process in processes]
    assert all(process.returncode == 0 for process in processes)
    pool.close()


def test_processes_end_although_a_forked_one_still_has_their_pipes():
    """Jittor forks processes that compile, at any time; each has what was open then."""
    with pool_of(len, 2) as pool:
        pool.wait_for_first()
        forked = os.fork()
        if not forked:
            time.sleep(600)
            os._exit(0)
        processes, began = [worker._process for worker in pool._workers], time.monotonic()
    took = time.monotonic() - began
    os.kill(forked, signal.SIGKILL)
    os.waitpid(forked, 0)
    assert all(process.returncode == 0 for process in processes) and took < 10


class Turn:
    """The first of the processes that set themselves up is ready at once, every other when a file is there."""

    def __init__(self, folder, failure=None):
        self.folder, self.failure = folder, failure

    def setup(self):
        try:
            (self.folder / "first").mkdir()
        except FileExistsError:
            if self.failure is not None:
                raise self.failure
            deadline = time.monotonic() + 60
            while not (self.folder / "go").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def who(self, seconds=0.0):
        time.sleep(seconds)
        return os.getpid()


def test_tasks_go_to_those_that_are_ready(tmp_path):
    turn = Turn(tmp_path)
    with pool_of(turn.who, 3, setup=turn.setup) as pool:
        pool.wait_for_first()
        first = {pool.submit().result() for _ in range(6)}
        assert len(first) == 1  # also with several at once
        assert {future.result() for future in [pool.submit() for _ in range(6)]} == first
        (tmp_path / "go").touch()
        deadline = time.monotonic() + 60
        while len({future.result() for future in [pool.submit(0.1) for _ in range(3)]}) < 3:
            assert time.monotonic() < deadline


def test_what_the_first_raises_is_raised_and_what_another_raises_is_a_tasks_answer(tmp_path):
    counter = Counter(failure=UserError("no such weights"))
    with pool_of(counter.count, 2, setup=counter.setup) as pool, pytest.raises(UserError, match="^no such weights$"):
        pool.wait_for_first()
    turn = Turn(tmp_path, UserError("no memory"))
    with pool_of(turn.who, 2, setup=turn.setup) as pool:
        pool.wait_for_first()
        with pytest.raises(UserError, match="^no memory$"):
            for _ in range(600):
                [future.result() for future in [pool.submit(0.1), pool.submit(0.1)]]
