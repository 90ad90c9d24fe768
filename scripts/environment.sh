# Sourced by the other scripts: finds a Python, makes the virtual environment, installs this package into it.
#
#   PYTHON=/path/to/python3.x   the interpreter to use; default: the first of python3.11, 3.12, 3.10, 3.9, python3 that fits
#   JRDP_VENV=folder            the virtual environment; default: .venv in the clone
#
# Afterwards $python is the environment's interpreter. Nothing outside the clone is touched but pip's and Jittor's caches.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${JRDP_VENV:-$root/.venv}"
[[ "$venv" = /* ]] || venv="$PWD/$venv"
python="$venv/bin/python"

say() { printf '\n==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

fits() {  # is "$1" a Python 3.9 to 3.12 that can make virtual environments and has its headers?
    "$1" - <<'PYTHON' >/dev/null 2>&1
import os, sys, sysconfig
import ensurepip, venv
assert (3, 9) <= sys.version_info[:2] <= (3, 12)
assert os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h"))
PYTHON
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || fail "PYTHON=$PYTHON must be a Python 3.9 to 3.12 with venv and headers (Debian, Ubuntu: apt install python3-venv python3-dev)"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.10 python3.9 python3; do
        if command -v "$candidate" >/dev/null && fits "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.9 to 3.12 with venv and headers was found (Debian, Ubuntu: apt install python3-venv python3-dev); PYTHON=/path names one"
}

make_environment() {  # "$1": what pip installs, for example "." or ".[dev]"
    local interpreter
    command -v "${cc_path:-g++}" >/dev/null || fail "no g++ was found and Jittor compiles with it (Debian, Ubuntu: apt install g++)"
    if [ -x "$python" ] && fits "$python"; then
        say "Using the virtual environment $venv ($("$python" --version))"
    else
        [ -z "$(ls -A "$venv" 2>/dev/null)" ] || fail "$venv is there, but is no virtual environment of Python 3.9 to 3.12: remove it, or name another folder with JRDP_VENV"
        interpreter="$(find_python)"
        say "Making a virtual environment in $venv with $("$interpreter" --version) at $interpreter"
        "$interpreter" -m venv "$venv"
    fi
    # It has none when its making was interrupted, or when another tool has made it.
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null || fail "$venv has no pip"
    say "Installing jrdp and what it needs"
    rm -rf "$root/build"  # left over from an earlier install, it could bring back modules that are gone
    (cd "$root" && "$python" -m pip install --quiet --disable-pip-version-check "$1")
}
