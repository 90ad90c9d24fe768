"""What ends a command: one line and code 2 for what users, files and machines cause; a traceback for our mistakes."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from jrdp import endings, files
from jrdp.errors import UserError


def ended(capsys, error):
    def command():
        raise error

    code = endings.run(command)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error, words",
    [
        (UserError("a\nb"), "a b"),
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.json"), "x.json: No such file"),
    ],
)
def test_what_users_files_and_machines_cause_is_one_line(capsys, error, words):
    code, text = ended(capsys, error)
    assert code == 2 and text.startswith("jrdp: error: ") and words in text and len(text.splitlines()) == 1


def test_our_own_mistakes_keep_their_traceback_and_say_so(capsys):
    for error in (KeyError("x"), OSError(errno.EPIPE, "Broken pipe"), TypeError("x")):
        code, text = ended(capsys, error)
        assert code == 1 and "Traceback" in text and "mistake in jrdp" in text


def test_interrupted_is_130(capsys):
    code, text = ended(capsys, KeyboardInterrupt())
    assert (code, text) == (130, "jrdp: interrupted\n")


@pytest.fixture
def taken_as_usual():
    """SIGTERM and SIGHUP end a process, also where the tests themselves are run by nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_unwinds_the_command(capsys, tmp_path, taken_as_usual, name, code):
    """What the command has in hand is put down, then the code is the one that the signal alone would have given."""
    put_down = []

    def command():
        files.make_folder(tmp_path / "empty")
        try:
            signal.raise_signal(getattr(signal, name))
        finally:
            put_down.append(True)

    assert signal.getsignal(getattr(signal, name)) is signal.SIG_DFL
    assert endings.run(command) == code and put_down
    assert capsys.readouterr().err == f"jrdp: stopped by {name}\n"
    assert signal.getsignal(getattr(signal, name)) is signal.SIG_DFL and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_forked_child_is_ended_by_the_signal_itself(taken_as_usual, name):
    """Nothing of Python's has to run in it, which may be waiting for a lock of its parent's."""
    number, ended_by = getattr(signal, name), []

    def command():
        child = os.fork()
        if not child:
            try:
                signal.raise_signal(number)
            finally:
                os._exit(0)
        ended_by.append(os.waitpid(child, 0)[1])
        assert signal.getsignal(number) is not signal.SIG_DFL

    assert endings.run(command) == 0
    assert os.WIFSIGNALED(ended_by[0]) and os.WTERMSIG(ended_by[0]) == number


def test_a_signal_that_is_ignored_stays_ignored():
    """`nohup jrdp train ...` goes on when its terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert endings.run(lambda: signal.raise_signal(signal.SIGHUP)) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_refused_command_leaves_no_empty_folder(tmp_path):
    def command():
        files.make_folder(tmp_path / "a" / "b")
        files.make_folder(tmp_path / "kept")
        (tmp_path / "kept" / "file").touch()
        raise UserError("refused")

    assert endings.run(command) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


CODE = "from jrdp import endings; import sys; sys.exit(endings.run(lambda: print('\\u00fc' * 9000)))"


@pytest.mark.parametrize("redirect, code", [(">&-", 0), ("2>&-", 0), (">/dev/full", 2), ("| head -c 1 >/dev/null", 0)])
def test_standard_output_closed_full_or_no_longer_read(redirect, code):
    if "full" in redirect and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {redirect}', sys.executable, CODE],
        capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, timeout=120,
    )
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert ("standard output" in done.stderr) == (code == 2)


def test_a_library_that_does_not_fit_into_memory():
    error = ImportError("libx.so: failed to map segment from shared object")
    assert endings.reason_of(error).startswith("not enough memory (libx.so: failed to map")
    assert endings.reason_of(ImportError("No module named 'x'")) is None


@pytest.mark.parametrize("text", ["can't start new thread", "Wrong inputs\n\nFailed reason:Resource temporarily unavailable"])
def test_no_further_thread(text):
    assert "no further thread" in endings.reason_of(RuntimeError(text))
    assert endings.reason_of(RuntimeError("something else")) is None


def test_no_space_for_a_compiled_operator(monkeypatch):
    import shutil

    error = RuntimeError("Wrong inputs arguments\nFailed reason: Error happend during compilation:\n [Error]")
    assert endings.reason_of(error) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    assert "no space is left" in endings.reason_of(error) and "JITTOR_HOME" in endings.reason_of(error)


def test_no_folder_for_temporary_files(monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/none"])
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.mkdtemp()
    assert "TMPDIR" in endings.reason_of(caught.value)
