"""What jrdp does to the process that imports it: nothing at import, and nothing that stays when Jittor is imported."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jrdp

PACKAGE = Path(jrdp.__file__).parent


def _run(code: str, ends_with: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JRDP_")}
    environment["PYTHONPATH"] = str(PACKAGE.parent)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == ends_with, done.stderr
    return done.stdout + done.stderr


def test_importing_jrdp_does_nothing():
    """No process, no file but modules, no environment variable, descriptor, signal, warning filter or limit."""
    assert _run(
        """
import faulthandler, os, signal, sys, threading, warnings, pathlib
def state():
    return (dict(os.environ), list(sys.path), [signal.getsignal(n) for n in signal.valid_signals()], list(warnings.filters),
            sys.getrecursionlimit(), sorted(os.listdir("/proc/self/fd")), faulthandler.is_enabled(), threading.active_count())
seen = []
def audit(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.mkdir", "os.rename", "os.symlink", "os.remove"):
        seen.append((event, arguments))
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc", ".so")):
        seen.append((event, arguments))
before = state()
sys.addaudithook(audit)
import jrdp
assert not seen, seen
assert state() == before
assert "numpy" not in sys.modules and "jittor" not in sys.modules
import importlib.util
assert importlib.util.find_spec("jittor").origin and not seen, seen  # nor does a look-up
"""
    ) == ""


HOST = """
import faulthandler, os, signal, sys
trace = open(TRACE, "wb")
faulthandler.enable(trace)
def handler(number, frame): print("the host's handler")
signal.signal(signal.SIGINT, handler)
signal.signal(signal.SIGTERM, handler)
"""


def test_the_host_keeps_its_handlers_descriptors_and_limits(tmp_path):
    told = _run(
        HOST.replace("TRACE", repr(str(tmp_path / "trace")))
        + """
from jrdp.machine import importing, runtime
importing.install()
def actions(): return [importing._sigaction(number)[:16] for number in importing._SIGNALS]  # handler, mask
saved = actions()
descriptors = [os.fstat(k) for k in (1, 2)]
limit = sys.getrecursionlimit()
dup2 = os.dup2
os.dup2 = None  # nobody redirects a descriptor of the host's
runtime.start("cpu")
os.dup2 = dup2
assert actions() == saved
assert [os.fstat(k).st_ino for k in (1, 2)] == [d.st_ino for d in descriptors] and sys.getrecursionlimit() == limit
assert signal.getsignal(signal.SIGINT) is handler
signal.raise_signal(signal.SIGINT)
signal.raise_signal(signal.SIGTERM)
import ctypes, subprocess
subprocess.run(["sh", "-c", "kill -9 $$"])
sys.stdout.flush()
ctypes.string_at(0)
""",
        ends_with=-signal.SIGSEGV,
    )
    assert "Segmentation fault" in (tmp_path / "trace").read_text()  # written by the host's faulthandler
    assert told.count("the host's handler") == 2 and len(told.splitlines()) == 2, told


@pytest.mark.parametrize("first", ["importlib.util.find_spec('jittor')", "interrupted()"])
def test_the_hook_survives_lookups_and_interrupted_imports(tmp_path, first):
    """A pretend Jittor, whose import is interrupted while a file is there."""
    package = tmp_path / "jittor"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import os, types\n"
        "if os.path.exists(os.environ['STOP']): raise KeyboardInterrupt\n"
        "flags = types.SimpleNamespace(python_path='', use_parallel_op_compiler=99)\n"
        "path = os.environ['PYTHONPATH']\n"
    )
    _run(
        f"""
import importlib.util, os, sys
import jrdp
from jrdp.machine import importing, prepare
os.environ["STOP"] = {str(tmp_path / "stop")!r}
sys.path.insert(0, {str(tmp_path)!r})
importing.prepare = lambda: None
importing.kernel_python = lambda copy: "kernel python"
importing.tf32.settle = lambda: None
def interrupted():
    open(os.environ["STOP"], "w").close()
    try:
        import jittor
    except KeyboardInterrupt:
        os.unlink(os.environ["STOP"])
    else:
        raise AssertionError
    assert "jittor" not in sys.modules
{first}
import jittor
assert jittor.flags.python_path == "kernel python" and 1 <= jittor.flags.use_parallel_op_compiler <= 4
assert jittor.path.split(os.pathsep)[0] == {str(tmp_path)!r}
"""
    )


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_changes_the_process_when_it_is_imported(path):
    """No call at module level of what changes warnings, limits, signals, the umask or the environment."""
    changing = {"filterwarnings", "simplefilter", "setrecursionlimit", "umask", "signal", "enable", "dup2", "putenv", "chdir"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_import = [node for node in tree.body if isinstance(node, (ast.Expr, ast.Assign))]
    called = {
        getattr(call.func, "attr", getattr(call.func, "id", "")) for node in at_import for call in ast.walk(node)
        if isinstance(call, ast.Call)
    }
    assert not called & changing


def test_a_forked_process_computes_instead_of_waiting_for_its_parents_threads():
    """As a pool of `multiprocessing` does, or a server that loads the model before it starts its workers."""
    _run(
        """
import os, signal
os.environ["OMP_NUM_THREADS"] = "3"
import numpy as np
from jrdp.machine import runtime
runtime.start("cpu")
import jittor as jt
from jrdp.fast.layers import Convolution
random = np.random.default_rng(0)
def numbers(*shape): return random.normal(size=shape).astype(np.float32)
x, weights = numbers(1, 16, 24, 256), numbers(256, 256, 3, 3)
# The layout of weights that oneDNN wants depends on the number of threads, here for the last.
layers = [Convolution(weights[:32], None), Convolution(weights, None), Convolution(numbers(512, 256, 1, 1), None, 2)]
def computed():
    plain = jt.nn.conv2d(jt.array(x.transpose(0, 3, 1, 2)), jt.array(weights), padding=1)
    return [layer(jt.array(x), relu=True).numpy() for layer in layers] + [plain.numpy()]
before = computed()
child = os.fork()
if not child:
    signal.alarm(60)  # ends the child
    os._exit(0 if all(np.allclose(a, b, atol=1e-3) for a, b in zip(before, computed())) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    )


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_jittor_compiles_whatever_way_the_host_starts_processes(method):
    """As in a process that was itself started so: a worker of a data loader or of a server."""
    _run(f"import jrdp, multiprocessing; multiprocessing.set_start_method({method!r})\nimport jittor")
