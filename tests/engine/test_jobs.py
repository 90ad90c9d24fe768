"""`--jobs N`: the same files as with one job, and one clear line when something is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jrdp import cli, interchange
from jrdp.machine import runtime
from jrdp.dataset_tools.sample import write_sample
from jrdp.data.workers import WorkerPool
from jrdp.engine import jobs
from jrdp.engine.weights import batch_size_of, config_of
from jrdp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--device", "cpu", "--set", "input.min_size=96", "--set", "input.max_size=144")


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """One thread a job, while one job (in this process) has those that pytest was started with.

    And signals as `runtime.start` leaves them: another test may have imported Jittor.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Five pictures, and in `broken` one that is none, between them."""
    folder = tmp_path_factory.mktemp("jobs-sample")
    write_sample(folder, train=3, val=2)
    (folder / "broken").mkdir()
    for picture in sorted((folder / "imgs").iterdir()):
        (folder / "broken" / picture.name).write_bytes(picture.read_bytes())
    (folder / "broken" / "train_001_b.png").write_bytes(b"this is no picture")
    return folder


@pytest.fixture
def run(monkeypatch, capfd):
    """`run("predict", ...)` -> (exit code, standard output, standard error), of the processes too."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jrdp", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capfd.readouterr()
        return code, captured.out, without_progress(captured.err)

    return call


def without_progress(error):
    """Without what Jittor says where kernels are not compiled yet, or the machine is so busy that it starts slowly."""
    progress = re.compile("Compiling Operators|waiting for Jittor")
    lines = [line for line in re.split(r"[\r\n]+", error) if line and not progress.match(line)]
    return "".join(f"{line}\n" for line in lines)


@pytest.fixture
def pools(monkeypatch):
    """The pools that were started."""
    started = []

    class Recorded(WorkerPool):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(jobs, "WorkerPool", Recorded)
    return started


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(result, out, *words):
    code, output, error = result
    assert code == 2 and output == "", (code, output, error)
    lines = error.splitlines()
    assert len(lines) == 1 and lines[0].startswith("jrdp: error: "), error
    for word in words:
        assert str(word) in lines[0], error
    assert not out.exists()


def test_predict_writes_the_same_bytes_whatever_the_jobs(run, pools, sample, weights, tmp_path):
    common = ("predict", "--weights", weights, *SMALL, "--threshold", 0.1, sample / "broken")
    one = run(*common, "--out", tmp_path / "one")
    assert pools == []
    two = run(*common, "--out", tmp_path / "two", "--jobs", 2)
    assert len(pools[0]._workers) == 2
    written = files(tmp_path / "one")
    assert len(written) == 12 and json.loads(written["predictions.json"])
    assert files(tmp_path / "two") == written
    for code, output, error in (one, two):
        assert code == 1 and output.startswith("5 of 6 pictures, "), error
        assert error.startswith("jrdp: skipped: ") and "train_001_b.png" in error and len(error.splitlines()) == 1


def test_test_writes_the_same_bytes_whatever_the_jobs(run, sample, weights, tmp_path):
    sets = ",".join(f"{sample}/imgs:{sample}/{name}.json" for name in ("val", "train"))
    common = ("test", "--weights", weights, *SMALL, "--set", f"data.test=[{sets}]", "--set", "test.batch_size=2")
    code, printed, error = run(*common, "--out", tmp_path / "one")
    assert code == 0, error
    code, again, error = run(*common, "--out", tmp_path / "two", "--jobs", 2)
    assert (code, error) == (0, "") and again == printed.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert len(one) == 8 and list(one) == list(two)
    for name, content in one.items():
        assert name.endswith(".png") or two[name] == content, name
    assert len({entry["image_id"] for entry in json.loads(one[next(n for n in one if "train/segm" in n)])}) == 3


def test_a_picture_that_cannot_be_read_ends_a_test(run, sample, weights, tmp_path):
    content = json.loads((sample / "train.json").read_text())
    content["images"][1]["file_name"] = "train_001_b.png"
    (tmp_path / "set.json").write_text(json.dumps(content))
    common = ("test", "--weights", weights, *SMALL, "--set", f"data.test=[{sample}/broken:{tmp_path / 'set.json'}]")
    code, output, error = run(*common, "--out", tmp_path / "out", "--jobs", 2)
    last = error.splitlines()[-1]  # before it, perhaps how much is kept for --resume
    assert code == 2 and output == "" and last.startswith("jrdp: error: cannot read image")
    assert "train_001_b.png" in last and set(files(tmp_path / "out")) <= {"test.partial.jsonl"}


def test_the_batch_size_is_known_without_the_weights(weights, tmp_path):
    with open(weights, "rb") as file:
        start = file.read(8)
        header = start + file.read(int.from_bytes(start, "little"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(header)  # no tensor follows
    assert batch_size_of(cut, None, []) == config_of(interchange.read(weights), None, []).test.batch_size
    assert batch_size_of(cut, None, ["test.batch_size=3"]) == 3
    assert batch_size_of(tmp_path / "none.pth", None, []) == 1


def test_no_more_jobs_than_pictures(run, pools, sample, weights, tmp_path):
    pictures = sorted((sample / "imgs").iterdir())
    common = ("predict", "--weights", weights, *SMALL, "--jobs", 50)
    assert run(*common, "--out", tmp_path / "two", *pictures[:2])[0] == 0
    assert [len(pool._workers) for pool in pools] == [2]
    assert run(*common, "--out", tmp_path / "one", pictures[0])[0] == 0
    assert len(pools) == 1  # a single picture needs no other process
    assert len(files(tmp_path / "two")) == 6 and len(files(tmp_path / "one")) == 4


def test_bad_input_is_one_line_and_nothing_is_written(run, sample, weights, tmp_path):
    out = tmp_path / "out"
    common = ("predict", sample / "imgs", "--out", out, "--jobs", 2)
    refused(run(*common, "--weights", tmp_path / "none.pth"), out, "none.pth")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(weights.read_bytes()[:5_000_000])
    refused(run(*common, "--weights", truncated), out, "truncated.safetensors")
    refused(run(*common, "--weights", weights, "--set", "model.backbone.name=r101"), out, "r50", "101")
    refused(run(*common, "--weights", weights, "--config", tmp_path / "none.yaml"), out, "none.yaml")
    refused(run(*common, "--weights", weights, "--device", "tpu"), out, "tpu")
    setting = f"data.test=[{sample}/imgs:{sample}/train.json]"
    common = ("test", "--out", out, "--jobs", 2, "--set", setting)
    refused(run(*common, "--weights", truncated), out, "truncated.safetensors")
    refused(run(*common, "--weights", weights, "--device", "tpu"), out, "tpu")


def test_cuda_without_a_gpu(run, sample, weights, tmp_path):
    if runtime.prepare().cuda.usable:
        pytest.skip("this machine has a usable GPU")
    common = ("predict", "--weights", weights, "--out", tmp_path / "out", "--jobs", 2, sample / "imgs")
    refused(run(*common, "--device", "cuda"), tmp_path / "out", "cuda", "GPU")


def test_an_output_folder_that_cannot_be_written(run, sample, weights, tmp_path):
    (tmp_path / "file").write_text("")
    common = ("predict", "--weights", weights, *SMALL, "--jobs", 2, sample / "imgs")
    refused(run(*common, "--out", tmp_path / "file" / "out"), tmp_path / "file" / "out", "file/out")


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_jobs_is_a_positive_number(run, sample, weights, tmp_path, count):
    code, _, error = run("predict", "--weights", weights, "--out", tmp_path / "out", "--jobs", count, sample / "imgs")
    assert code == 2 and "--jobs" in error and not (tmp_path / "out").exists()


def under_other_names(sample, folder, times):
    """The sample pictures `times` times: links, since a picture that is named again is taken once."""
    (folder / "links").mkdir()
    links = [
        (folder / "links" / f"{number}_{picture.name}", picture)
        for number in range(times)
        for picture in sorted((sample / "imgs").iterdir())
    ]
    for link, picture in links:
        link.symlink_to(picture)
    return [link for link, _ in links]


def test_a_killed_job_is_one_line_and_keeps_what_was_done(run, pools, sample, weights, tmp_path, monkeypatch):
    class Mortal(jobs.WorkerPool):
        def in_order(self, tasks, ahead):
            for number, result in enumerate(super().in_order(tasks, ahead)):
                yield result
                if number == 1:
                    os.kill(self._workers[0]._process.pid, signal.SIGKILL)

    monkeypatch.setattr(jobs, "WorkerPool", Mortal)
    pictures = under_other_names(sample, tmp_path, 4)
    result = run("predict", "--weights", weights, *SMALL, "--out", tmp_path / "out", "--jobs", 2, *pictures)
    processes = [worker._process for worker in pools[0]._workers]
    code, output, error = result
    assert code == 2 and output == ""
    kept, line = error.splitlines()
    assert line == (
        f"jrdp: error: a job (process {processes[0].pid}) was killed by SIGKILL; if memory ran out, use fewer --jobs; "
        "JRDP_VERBOSE=1 shows what it printed"
    )
    record = tmp_path / "out" / "predictions.partial.jsonl"
    count = sum("picture" in json.loads(line) for line in record.read_text().splitlines())
    assert count >= 2 and kept.startswith(f"jrdp: {count} pictures are kept") and "--resume" in kept
    assert all(process.poll() is not None for process in processes)
    assert [name for name in files(tmp_path / "out") if "predictions" in name] == ["predictions.partial.jsonl"]


def test_threads_are_shared_unless_the_user_chose(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    assert jobs.threads_per_job(1) == cores and jobs.threads_per_job(cores) == 1
    assert jobs.threads_per_job(cores + 1) == 1 and jobs.threads_per_job(2) == max(1, cores // 2)
    with jobs.job_pool(2, int, os.getenv) as pool:  # int() does nothing
        assert pool.submit("OMP_NUM_THREADS").result() == "1"  # as the fixture chose
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    with jobs.job_pool(2, int, os.getenv) as pool:
        assert pool.submit("OMP_NUM_THREADS").result() == "3"


def test_the_main_process_holds_no_network_and_prints_cleanly(sample, weights, tmp_path):
    script = """
        import sys
        from jrdp import cli
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, end.code
        assert not {"jittor", "torch"} & set(sys.modules)
    """
    setting = f"data.test=[{sample}/imgs:{sample}/val.json]"
    for arguments in (("predict", sample / "imgs"), ("test", "--set", setting)):
        command = [*arguments, "--weights", weights, *SMALL, "--out", tmp_path / "out", "--jobs", 2]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *map(str, command)],
            capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0 and without_progress(done.stderr) == "", done.stderr
    assert (tmp_path / "out" / "predictions.json").exists() and (tmp_path / "out" / "segm.json").exists()


@pytest.mark.parametrize(
    "number, code, words", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_a_signal_ends_the_jobs_and_keeps_what_was_done(sample, weights, tmp_path, number, code, words):
    pictures = under_other_names(sample, tmp_path, 100)
    command = ["predict", *pictures, "--weights", weights, *SMALL, "--out", tmp_path / "out", "--jobs", 2]
    process = subprocess.Popen(
        [sys.executable, "-m", "jrdp", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(list(tmp_path.glob("out/*_instances.png"))) < 4 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = _children(process.pid)
    process.send_signal(number)
    output, error = process.communicate(timeout=100)
    assert process.returncode == code and output == "" and error.splitlines()[-1] == f"jrdp: {words}"
    assert len(workers) == 2 and not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert [name for name in files(tmp_path / "out") if "predictions" in name] == ["predictions.partial.jsonl"]


def _children(parent):
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


@pytest.fixture
def roomy(monkeypatch):
    """A machine of two cores with memory, where nobody has chosen a number of threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(jobs.runtime, "cores", lambda: 2)
    monkeypatch.setattr(jobs, "available_memory", lambda: 8 << 30)


def test_two_jobs_for_many_pictures_on_a_cpu_where_nobody_says(roomy, monkeypatch):
    def chosen(device="auto"):
        return jobs.jobs_for(99, device), jobs.jobs_for(100, device)

    monkeypatch.setattr(jobs.runtime, "prepare", lambda: SimpleNamespace(cuda=SimpleNamespace(usable=False)))
    assert chosen() == chosen("cpu") == (1, 2)
    for what, name, value in (
        (jobs.runtime, "cores", lambda: 1),
        (jobs, "available_memory", lambda: 5 << 30),
        (jobs, "available_memory", lambda: 0),  # not known
    ):
        with monkeypatch.context() as changed:
            changed.setattr(what, name, value)
            assert chosen() == (1, 1)
    monkeypatch.setattr(jobs.runtime, "cores", lambda: 64)
    assert chosen() == (1, 2)
    with monkeypatch.context() as changed:
        changed.setenv("OMP_NUM_THREADS", "1")
        assert chosen() == (1, 1)
    monkeypatch.setattr(jobs.runtime, "prepare", lambda: SimpleNamespace(cuda=SimpleNamespace(usable=True)))
    assert chosen() == chosen("cuda") == (1, 1) and chosen("cpu") == (1, 2)


def test_predict_chooses_the_jobs_for_what_is_left_to_do(roomy, run, pools, sample, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_MANY", 6)
    pictures = under_other_names(sample, tmp_path, 2)
    common = ("predict", "--weights", weights, "--device", "cpu", *SMALL)
    assert len(pictures) >= 6
    for out, extra, expected in (("two", (), [2]), ("one", ("--jobs", 1), []), ("few", pictures[:5], [])):
        pools.clear()
        named = extra if out == "few" else [*extra, *pictures]
        code, output, error = run(*common, "--out", tmp_path / out, *named)
        assert code == 0, error
        assert [len(pool._workers) for pool in pools] == expected
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize("left, expected", [(6, [2]), (5, [])])
def test_what_is_done_already_needs_no_second_job(roomy, run, pools, sample, weights, tmp_path, monkeypatch, left, expected):
    monkeypatch.setattr(jobs, "_MANY", 6)
    pictures, out = under_other_names(sample, tmp_path, 2), tmp_path / "out"
    common = ("predict", "--weights", weights, "--device", "cpu", *SMALL, "--out", out)
    whole = jobs.WorkerPool.in_order

    def interrupted(self, tasks, ahead):
        for number, result in enumerate(whole(self, tasks, ahead)):
            if number == len(pictures) - left:
                raise UserError("interrupted")
            yield result

    with monkeypatch.context() as changed:
        changed.setattr(jobs.WorkerPool, "in_order", interrupted)
        code, _, error = run(*common, *pictures)
        assert code == 2 and "interrupted" in error
    pools.clear()
    code, output, error = run(*common, "--resume", *pictures)
    assert code == 0 and output.startswith(f"{len(pictures)} of {len(pictures)} pictures"), error
    assert [len(pool._workers) for pool in pools] == expected
