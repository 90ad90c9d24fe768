"""Preparing and starting Jittor."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jrdp.machine import importing, prepare, runtime
from jrdp.errors import UserError
from jrdp.machine import python_headers
from jrdp.machine.cache import own_folder
from jrdp.machine.driver import read_driver

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    "nvcc_path",
    "cache_name",
    "use_mkl",
    "use_cutt",
    "use_nccl",
    "FIX_TORCH_ERROR",
    "use_cuda_host_allocator",
    "python_config_path",
    "cc_flags",
)


def _fresh(code: str, home: Path, **environment: str) -> str:
    """Standard output of `code` in a new Python whose Jittor cache is below `home`; nothing is inherited from this one."""
    kept = {name: value for name, value in os.environ.items() if name not in (*OURS, "JRDP_PREPARED", "cc_path")}
    kept.update(HOME=str(home), PYTHONPATH=str(ROOT), **environment)
    kept.pop("JITTOR_HOME", None)
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = f"""
import json, os, sys, jrdp
from jrdp.machine import importing, prepare, runtime
setup = runtime.prepare()
print(json.dumps({{"problems": setup.problems, "jittor": "jittor" in sys.modules, "path": sys.path[0],
    **{{name: os.environ.get(name) for name in {OURS!r}}}}}))
"""


def test_prepare_sets_everything_and_imports_nothing(tmp_path):
    found = json.loads(_fresh(SHOW, tmp_path))
    assert found["problems"] == [] and not found["jittor"]
    assert found["use_cutt"] == found["use_nccl"] == found["FIX_TORCH_ERROR"] == "0"
    assert found["use_cuda_host_allocator"] == "0"
    assert found["cache_name"].startswith("jrdp-")
    assert (Path(found["path"]) / "jittor" / "__init__.py").is_file()
    assert Path(found["path"]).parent == tmp_path / ".cache" / "jittor" / "jrdp"
    assert not (tmp_path / ".cache" / "jittor" / "config.json").exists()
    told = subprocess.run([found["python_config_path"], "--includes"], capture_output=True, text=True).stdout
    assert (Path(told.split()[0][2:]) / "Python.h").is_file()


def test_the_users_own_choice_of_allocator_stays(tmp_path):
    assert json.loads(_fresh(SHOW, tmp_path, use_cuda_host_allocator="1"))["use_cuda_host_allocator"] == "1"


def test_the_cache_name_does_not_depend_on_where_one_stands(tmp_path):
    first = json.loads(_fresh(SHOW, tmp_path))["cache_name"]
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", "-b", "some-branch", str(repository)], check=True)
    code = f"import os; os.chdir({str(repository)!r})\n{SHOW}"
    assert json.loads(_fresh(code, tmp_path))["cache_name"] == first
    assert json.loads(_fresh(SHOW, tmp_path, cache_name="mine"))["cache_name"] == "mine"
    assert json.loads(_fresh(SHOW, tmp_path, cc_flags="-O1"))["cache_name"] != first


def test_builds_by_another_nvcc_have_another_cache(tmp_path):
    """Such as the precise build: in one cache, each would compile Jittor and every kernel anew that the other has made."""
    pretended = """
import json, os
from jrdp.machine import prepare
from jrdp.machine.cuda import CudaChoice
prepare.choose_cuda = lambda compiler: CudaChoice(True, "", environment={"nvcc_path": os.environ["CHOSEN"]})
prepare.prepare()
print(os.environ["cache_name"])
"""
    fast, precise, without = (_fresh(pretended, tmp_path, CHOSEN=name) for name in ("/fast/nvcc", "/precise/nvcc", ""))
    assert len({fast, precise, without}) == 3
    assert _fresh(pretended, tmp_path, CHOSEN="/fast/nvcc") == fast
    assert json.loads(_fresh(SHOW, tmp_path, nvcc_path=""))["cache_name"] == without


def test_cuda_is_off_without_a_gpu_although_nvcc_is_on_the_path(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'release 13.0, V13.0.1'\n")
    nvcc.chmod(0o755)
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    code = "from jrdp.machine.driver import read_driver; print(read_driver().usable)"
    if _fresh(code, tmp_path) == "True":
        pytest.skip("this machine has a GPU")
    assert json.loads(_fresh(SHOW, tmp_path, PATH=path))["nvcc_path"] == ""


def test_a_child_process_decides_for_itself(monkeypatch):
    for name in ("first", "second"):
        monkeypatch.setenv(name, "before")
    monkeypatch.delenv("third", raising=False)
    runtime_memory = os.environ.get(prepare.MEMORY, "{}")
    monkeypatch.delenv(prepare.MEMORY, raising=False)
    prepare.remember({"first": "ours", "second": "ours", "third": "ours"})
    os.environ["second"] = "changed by the user afterwards"
    prepare._forget()
    assert os.environ["first"] == "before" and "third" not in os.environ
    assert os.environ["second"] == "changed by the user afterwards"
    monkeypatch.setenv(prepare.MEMORY, runtime_memory)


@pytest.mark.parametrize(
    "cards, rank, users, chosen",
    [(2, "0", None, "0"), (2, "1", None, "1"), (2, "3", None, "1"), (1, "1", None, None), (2, None, None, None), (2, "1", "0", None)],
)
def test_each_rank_of_a_machine_takes_a_card(monkeypatch, cards, rank, users, chosen):
    for name, value in (("OMPI_COMM_WORLD_LOCAL_RANK", rank), ("device_id", users)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert prepare._card_of_this_rank(cards) == ({} if chosen is None else {"device_id": chosen})


def _problem(monkeypatch, **replaced) -> str:
    """The line that `start` raises on a machine on which these parts of `runtime` give something else."""
    modules = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in ("jittor", "jittor_utils")}
    environment, path = dict(os.environ), list(sys.path)
    try:
        monkeypatch.setattr(prepare, "_setup", None)
        for name, value in replaced.items():
            monkeypatch.setattr(prepare, name, value)
        with pytest.raises(UserError) as caught:
            runtime.start("cpu")
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        sys.modules.update(modules)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _versions(**wrong):
    known = prepare._version
    return lambda package: wrong.get(package, known(package))


def test_numpy_2_is_refused(elsewhere, monkeypatch):
    assert "pip install 'numpy<2'" in _problem(monkeypatch, _version=_versions(numpy="2.5.0"))


def test_another_jittor_is_refused(elsewhere, monkeypatch):
    line = _problem(monkeypatch, _version=_versions(jittor="1.3.9.14"))
    assert "1.3.9.14" in line and "pip install jittor==1.3.11.0" in line


def test_no_jittor(elsewhere, monkeypatch):
    assert "not installed" in _problem(monkeypatch, _version=_versions(jittor=None))


def test_no_compiler(elsewhere, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("cc_path", raising=False)
    assert "apt install g++" in _problem(monkeypatch)


def test_a_compiler_that_does_not_run(elsewhere, monkeypatch):
    monkeypatch.setenv("cc_path", "/nowhere/g++")
    assert "/nowhere/g++" in _problem(monkeypatch)


def test_no_python_headers(elsewhere, monkeypatch):
    monkeypatch.setattr(python_headers, "include_folders", lambda: ["/nowhere"])
    line = _problem(monkeypatch)
    assert "Python.h is not in /nowhere" in line and "-dev" in line


def test_no_onednn(elsewhere, monkeypatch):
    from jrdp.machine import onednn

    monkeypatch.setattr(onednn, "_wheels", lambda: None)
    assert "oneDNN is not installed" in _problem(monkeypatch)


def test_a_cache_folder_that_cannot_be_written(elsewhere, monkeypatch):
    elsewhere.write_text("a file where the folder should be")
    assert "set JITTOR_HOME" in _problem(monkeypatch)


def test_an_unsupported_python(elsewhere, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    assert "Python 3.9 to 3.12" in _problem(monkeypatch)


def test_unknown_device():
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        runtime.start("gpu")


def test_cuda_without_a_gpu_says_why(monkeypatch):
    setup = runtime.Setup((), prepare.OneDnn(None, "", ""), prepare.CudaChoice(False, "no GPU", "buy one"), None, "g++")
    monkeypatch.setattr(prepare, "_setup", setup)
    with pytest.raises(UserError, match="--device cuda cannot be used: no GPU; buy one"):
        runtime.start("cuda")


def test_start_seeds_and_gives_the_signals_back():
    assert runtime.start("cpu", seed=3) == "cpu"
    import jittor as jt
    import numpy as np

    first = jt.rand(4).numpy(), np.random.rand(4)
    runtime.start("cpu", seed=3)
    assert np.array_equal(first[0], jt.rand(4).numpy()) and np.array_equal(first[1], np.random.rand(4))
    assert not jt.flags.use_cuda
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    subprocess.run(["sh", "-c", "kill -9 $$"])  # with Jittor's own handler, this ends the process
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_jittor_says_is_shown_when_its_import_fails(capfd):
    with pytest.raises(UserError, match="Jittor could not be imported: broken") as caught:
        with importing._muted_descriptors():
            os.write(1, b"the compiler's words\n")
            raise RuntimeError("broken\nmore")
    log = Path(str(caught.value).split(" is in ")[1].rstrip(")"))
    assert log.read_text() == "the compiler's words\n"
    log.unlink()
    assert "words" not in capfd.readouterr().out


def test_a_successful_import_is_silent(capfd):
    with importing._muted_descriptors():
        os.write(2, b"noise\n")
    os.write(1, b"after\n")
    assert capfd.readouterr() == ("after\n", "")


def test_an_interrupted_import_says_so(capfd):
    with pytest.raises(KeyboardInterrupt):
        with importing._muted_descriptors():
            os.write(1, b"noise\n")
            raise KeyboardInterrupt
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("jrdp: stopped while Jittor was imported") and err.count("\n") == 1


class Clock:
    """Lets the watcher run five times, ten seconds apart, and appends to the log in between."""

    def __init__(self, log: Path, monkeypatch, compiles: bool = True):
        self.log, self.steps, self.now, self.compiles = log, iter(range(1, 6)), 0.0, compiles
        monkeypatch.setattr(importing.time, "monotonic", lambda: self.now)

    def wait(self, _seconds):
        step = next(self.steps, None)
        self.now += 10
        if step is not None:
            looked_at = (f"Compiling jittor_core({i}/10) used: 1s eta: 1s" for i in range(1, 2 * step + 1))
            self.log.write_text("[i ...]\n" + "\r".join(looked_at) * self.compiles)
        return step is None


@pytest.fixture
def object_file(tmp_path, monkeypatch):
    """An object file in a cache of its own."""
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "jittor" / "jt1.3.11" / "g++" / "py" / "obj_files"
    folder.mkdir(parents=True)
    (folder / "op.cc.o").write_text("")
    return folder / "op.cc.o"


def test_the_progress_of_a_first_compile_is_reported(tmp_path, capfd, monkeypatch, object_file):
    importing._report_progress(tmp_path / "log", 2, Clock(tmp_path / "log", monkeypatch))
    lines = capfd.readouterr().err.splitlines()
    assert "once" in lines[0] and len(lines) == 6 and lines[-1].strip() == "Jittor's core: 10 of 10 files after 50 s"


def test_a_slow_look_at_what_is_compiled_already_is_no_compile(tmp_path, capfd, monkeypatch, object_file):
    os.utime(object_file, (1, 1))  # older than this import
    importing._report_progress(tmp_path / "log", 2, Clock(tmp_path / "log", monkeypatch))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("waiting for Jittor")


def test_another_process_that_compiles_is_waited_for(tmp_path, capfd, monkeypatch, object_file):
    importing._report_progress(tmp_path / "log", 2, Clock(tmp_path / "log", monkeypatch, compiles=False))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("waiting for Jittor")


def _pretend_jittor(init: str) -> str:
    """Code that makes a package jittor with that `__init__.py` beside where it runs, and puts it on the path."""
    return f"""
import sys
from pathlib import Path
site = Path("site")
for package, text in (("jittor", {init!r}), ("jittor_utils", "")):
    (site / package).mkdir(parents=True)
    (site / package / "__init__.py").write_text(text)
sys.path.insert(0, str(site.absolute()))
"""


def test_an_import_leaves_the_hosts_random_numbers_alone(tmp_path):
    init = "import random, types, numpy; random.seed(9); numpy.random.seed(9); flags = types.SimpleNamespace(python_path='')"
    code = """
import random, numpy
random.seed(1); numpy.random.seed(1)
expected = random.random(), numpy.random.rand()
random.seed(1); numpy.random.seed(1)
import jrdp, jittor
print((random.random(), numpy.random.rand()) == expected)
"""
    assert _fresh(_pretend_jittor(init) + code, tmp_path) == "True"


def test_whoever_imports_jittor_gets_stable_kernels_and_pythons_signals(tmp_path):
    """Not only `start`: `import jittor` after `import jrdp` too. A pretend Jittor stands in."""
    code = """
import signal
import jrdp, jittor, os
assert os.environ["PYTHONPATH"] == ROOT
assert jittor.asked.startswith(str(Path.home() / ".cache/jittor/jrdp/jittor-")), jittor.asked
assert Path(jittor.__file__).parent.parent.parent == Path.home() / ".cache/jittor/jrdp", jittor.__file__
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(jittor.flags.python_path)
"""
    init = """
import signal, subprocess, sys, types; signal.signal(signal.SIGINT, signal.SIG_IGN)
flags = types.SimpleNamespace(python_path='venv/python')
asked = subprocess.check_output([sys.executable, '-c', 'import jittor_utils; print(jittor_utils.__file__)'], text=True)
"""
    script = _fresh(_pretend_jittor(init) + code.replace("ROOT", repr(str(ROOT))), tmp_path)
    assert Path(script).parent == tmp_path / ".cache" / "jittor" / "jrdp"
    told = subprocess.run([script, "-c", "import jittor_utils; print(jittor_utils.__file__)"], capture_output=True, text=True)
    assert told.stdout.startswith(str(tmp_path / ".cache" / "jittor" / "jrdp" / "jittor-1.3.11.0-")), told.stderr


PRETEND_GPU = _pretend_jittor(
    """
import os, types
flags = types.SimpleNamespace(python_path='', log_silent=0, use_cuda=0)
cudnn = None
has_cuda, saw = 1, os.environ.get('NVIDIA_TF32_OVERRIDE')
"""
) + """
import dataclasses, os, subprocess
from jrdp.machine import importing, prepare, runtime
from jrdp.errors import UserError
prepare._setup = dataclasses.replace(runtime.prepare(), problems=(), cuda=prepare.CudaChoice(True, "pretend"))
"""


@pytest.mark.parametrize(
    "start, environment, seen, described",
    [
        ("runtime.start('cuda')", {}, "0", "off; train.tf32 and test.tf32 switch it on"),
        ("import jittor; runtime.start('auto')", {}, "0", "off; train"),
        ("runtime.start('cuda', tf32=True)", {}, "None", "on"),
        ("runtime.start('cuda', tf32=True)", {"NVIDIA_TF32_OVERRIDE": "0"}, "0", "off: the environment has NVIDIA_TF32_OVERRIDE=0"),
        ("runtime.start('cuda')", {"NVIDIA_TF32_OVERRIDE": "1"}, "1", "on: the environment has NVIDIA_TF32_OVERRIDE=1"),
    ],
)
def test_tf32_is_off_unless_asked_for_and_the_users_word_is_last(tmp_path, start, environment, seen, described):
    """What Jittor sees when it is imported, and what a child process starts with, on a pretend GPU."""
    code = f"""{PRETEND_GPU}
{start}
import jittor
child = "import os; from jrdp.machine import runtime; runtime.prepare(); print(os.environ.get('NVIDIA_TF32_OVERRIDE'))"
print(jittor.saw, subprocess.check_output([sys.executable, "-c", child], text=True).strip(), jittor.flags.use_cuda)
print(runtime.describe_tf32())
"""
    told = _fresh(code, tmp_path, **environment).splitlines()
    assert told[0] == f"{seen} {environment.get('NVIDIA_TF32_OVERRIDE')} 1"
    assert described in told[1]


def test_tf32_cannot_be_changed_after_jittor_was_imported(tmp_path):
    code = f"""{PRETEND_GPU}
runtime.start("cuda", tf32=True)
runtime.start("cuda", tf32=True)
try:
    runtime.start("cuda")
except UserError as error:
    print(error)
"""
    (line,) = _fresh(code, tmp_path).splitlines()
    assert "TF32 cannot be switched off any more" in line and "start a new one" in line


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="train.tf32 and test.tf32 need a GPU: this run is on the CPU"):
        runtime.start("cpu", tf32=True)


def _convolution_error(device: str, tf32: bool) -> float:
    """Largest error of a convolution over its largest value, in a process of its own."""
    code = f"""
from jrdp.machine import runtime
runtime.start({device!r}, tf32={tf32})
import jittor as jt, numpy as np
from jittor import nn
random = np.random.default_rng(0)
x, w = random.standard_normal((2, 128, 20, 24)), random.standard_normal((64, 128, 3, 3))
windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float32).astype(np.float64), (3, 3), axis=(2, 3))
expected = np.einsum("nchwij,ocij->nohw", windows, w.astype(np.float32).astype(np.float64), optimize=True)
found = nn.conv2d(jt.array(x.astype(np.float32)), jt.array(w.astype(np.float32))).numpy()
print(np.abs(found - expected).max() / np.abs(expected).max())
"""
    environment = {name: value for name, value in os.environ.items() if name != "NVIDIA_TF32_OVERRIDE"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def test_a_crash_in_a_thread_of_native_code_ends_the_process():
    code = """
import ctypes, threading
from jrdp.machine import runtime
runtime.own_process()
runtime.start("cpu")
thread = threading.Thread(target=lambda: ctypes.string_at(0))
thread.start()
thread.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [True, False])
def test_cudnns_algorithms_are_kept_for_many_shapes(tmp_path, kept):
    """Trainings have pictures of many sizes. Jittor's own limit of 100 shapes shows that the test would notice."""
    code = f"""
from jrdp.machine import runtime
runtime.start("cuda")
import jittor as jt
jt.flags.log_silent = 0
if not {kept}:
    jt.cudnn.set_algorithm_cache_size(100)
from jittor import nn
w = jt.ones((2, 2, 3, 3))
for _ in range(2):
    for size in range(120):
        x = jt.ones((1, 2, 4, 5 + size))
        jt.sync(jt.grad(nn.conv2d(x, w).sum(), [x, w]))
        nn.conv2d(x, w).sync()
"""
    stats = tmp_path / "stats.json"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SOFTGPU_STATS": str(stats)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("cache is full" in done.stderr) == (not kept)
    if stats.exists():  # the software GPU counts
        searches = json.loads(stats.read_text())["searches"]
        found = {name: times for name, times in searches.items() if "Find" in name}
        assert set(found.values()) == {120 if kept else 100} and len(found) == 3
        assert (len(searches) == 3) == kept, searches  # else cuDNN's heuristics are asked, at every call


@pytest.mark.gpu
def test_tf32_rounds_convolutions_only_when_asked_for(record_property):
    exact, rounded = _convolution_error("cuda", False), _convolution_error("cuda", True)
    record_property("exact", exact)
    record_property("TF32", rounded)
    assert exact < 1e-5
    if max(read_driver().capabilities) >= 80:
        assert rounded > 5e-5, "TF32 was asked for and is not used"


IMPORT = """
import fcntl, sys
import jrdp
from jrdp.machine.cache import own_folder
import jittor
with open(own_folder() / "import.lock") as file:  # free again, also where Jittor's processes have it open
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("imported", flush=True)
sys.stdin.readline()
"""


def test_processes_import_jittor_one_after_the_other():
    def begin():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-c", IMPORT], text=True, cwd=ROOT, **pipes)

    own_folder().mkdir(parents=True, exist_ok=True)
    with open(own_folder() / "import.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        first = begin()
        time.sleep(4)
        assert first.poll() is None and not select.select([first.stdout], [], [], 0)[0]
    assert "imported\n" in iter(first.stdout.readline, "")
    second = begin()  # while the first, which has imported, is still there
    assert "imported\n" in iter(second.stdout.readline, "")
    for process in (first, second):
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
