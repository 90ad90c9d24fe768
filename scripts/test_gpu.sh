#!/usr/bin/env bash
# Run the tests that need a GPU: on the card where Jittor can use one, else on the software GPU of tests/softgpu, which
# executes CUDA programs on the CPU. Other arguments go to pytest.
#
#   bash scripts/test_gpu.sh [--modes plain,reverse,random:1,random:2,lazy] [--selftest] [tests/ops -k nms ...]
#
#   --modes      of the software GPU, one run of the tests for each; default: plain.
#                reverse, random:SEED: the order of blocks and threads; lazy: work is put off until somebody waits for it.
#                Tests marked gpu_once run in plain only.
#   --selftest   the software GPU's own tests, instead of jrdp's
#   --software   the software GPU even where there is a card
#
# The software GPU is made the first time and kept, one for each content: of its sources, of nvcc, of the libraries'
# headers. It needs g++ and nvcc of CUDA 13: the machine's, or else the one of `pip install 'jrdp[cuda13]'`. The headers
# of cuBLAS, cuDNN and others come from the same wheels (1.5 GB to fetch, 0.1 GB are kept).
#
# Settings (environment):
#   JRDP_SOFTGPU   where software GPUs are kept; default ~/.cache/jrdp/softgpu
#   JRDP_NVCC      `machine` or `wheels`: only this nvcc; default: the machine's where it has one of CUDA 13
#   PYTHON, JRDP_VENV   as for scripts/test.sh
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

modes=plain selftest="" software=""
while [ $# -gt 0 ]; do
    case "$1" in
        --modes) modes="${2:?--modes needs a list, for example plain,reverse}"; shift 2 ;;
        --modes=*) modes="${1#--modes=}"; shift ;;
        --selftest) selftest=yes; shift ;;
        --software) software=yes; shift ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) break ;;
    esac
done
IFS=, read -ra modes <<<"$modes"
for mode in "${modes[@]}"; do
    [[ "$mode" =~ ^(plain|reverse|lazy|random:[0-9]+)$ ]] || fail "unknown mode $mode: choose among plain reverse random:SEED lazy"
done
kept="${JRDP_SOFTGPU:-${HOME:?HOME is not set}/.cache/jrdp/softgpu}"

# What this machine has, as jrdp itself sees it: a usable GPU ("card"), or the reason why there is none.
card() {
    "$python" - <<'PYTHON'
from jrdp.machine.prepare import prepare
cuda = prepare().cuda
print("card" if cuda.usable else cuda.reason)
PYTHON
}

# The folder of the machine's CUDA 13 toolkit; nothing where it has none that is complete enough to compile.
toolkit_of_machine() {
    "$python" - <<'PYTHON'
from pathlib import Path
from jrdp.machine.nvcc import Places, find_compilers
for nvcc in find_compilers(Places.of_this_machine()):
    if nvcc.version[0] == 13 and any((nvcc.root / f / "cuda_runtime.h").exists() for f in ("include", "targets/x86_64-linux/include")):
        print(nvcc.root)
        break
PYTHON
}

wheel_names() {  # of the extra cuda13, one a line; "$1": all, or libraries (without nvcc and what it needs)
    "$python" - "$1" <<'PYTHON'
import sys
from importlib.metadata import requires
COMPILER = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
names = [line.split(";")[0].strip() for line in requires("jrdp") if 'extra == "cuda13"' in line.replace("'", '"')]
print("\n".join(name for name in names if sys.argv[1] == "all" or not name.startswith(COMPILER)))
PYTHON
}

digest() { sha256sum | cut -c1-20; }

# Run a command that fills the folder "$1", once: it is complete only when the file `complete` is in it; what an
# interrupted run has left is thrown away.
once() {
    local folder="$1"
    mkdir -p "$(dirname "$folder")" || fail "cannot write to $kept (JRDP_SOFTGPU names another folder)"
    (
        flock 9
        [ ! -e "$folder/complete" ] || exit 0
        rm -rf "$folder"
        mkdir "$folder"
        "${@:2}" 9>&-
        touch "$folder/complete"
    ) 9>"$folder.lock"
}

fetch_wheels() {  # "$1": all or libraries
    local library
    say "Fetching NVIDIA's headers$([ "$1" = all ] && echo ' and nvcc') (1.5 GB, once) into $wheels"
    wheel_names "$1" >"$wheels/requirements.txt"
    "$python" -m pip install --disable-pip-version-check --no-deps --only-binary=:all: --progress-bar off \
        --target "$wheels/site" -r "$wheels/requirements.txt" ||
        fail "the wheels of jrdp[cuda13] could not be installed: the software GPU cannot be made"
    # Of the libraries, only the names of their functions are used.
    for library in "$wheels"/site/nvidia/*/lib/*.so*; do
        case "$library" in */libcudart.* | */libnvvm*) continue ;; esac
        nm -D --defined-only "$library" >"$library.names"
        rm "$library"
    done
}

make_softgpu() {
    say "Making a software GPU in $top (about a minute)"
    SOFTGPU_CUDA="$toolkit" SOFTGPU_SITE="$wheels/site" SOFTGPU_PYTHON="$base" bash "$root/tests/softgpu/build.sh" "$top" ||
        fail "tests/softgpu/build.sh failed: the software GPU could not be made"
}

find_softgpu() {  # sets top
    local toolkit wheels base kind=libraries
    base="$("$python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')"
    toolkit=""
    [ "${JRDP_NVCC:-machine}" = wheels ] || toolkit="$(toolkit_of_machine)"
    [ -n "$toolkit" ] || kind=all
    [ "${JRDP_NVCC:-}" != machine ] || [ -n "$toolkit" ] || fail "this machine has no nvcc of CUDA 13 (JRDP_NVCC=wheels fetches one)"
    wheels="$kept/wheels-$(wheel_names "$kind" | digest)"
    once "$wheels" fetch_wheels "$kind"
    [ -n "$toolkit" ] || toolkit="$(cd "$wheels/site/nvidia/cu13" && pwd)"
    top="$kept/$({
        echo "$toolkit" "$wheels" "$base"
        "$toolkit/bin/nvcc" --version
        "${CXX:-g++}" --version
        cd "$root/tests/softgpu"
        find . -maxdepth 1 -type f ! -name '*.md' -print0 | sort -z | xargs -0 sha256sum
    } | digest)"
    once "$top" make_softgpu
    say "The software GPU: $top (nvcc: $toolkit/bin/nvcc)"
}

make_environment '.[dev]'
cd "$root"
found="$(card)"
if [ "$found" = card ] && [ -z "$software$selftest" ]; then
    [ "${modes[*]}" = plain ] || fail "--modes are the software GPU's and this machine has a card: add --software, or leave out --modes"
    say "Running the GPU's tests on the card (the first time, Jittor compiles itself: 5 to 10 minutes)"
    exec "$python" -m pytest -m gpu "$@" </dev/null
fi
say "$([ "$found" = card ] && echo "There is a card" || echo "No card: $found"). The tests run on the software GPU"
find_softgpu
export JRDP_TWIN_PYTHON="${JRDP_TWIN_PYTHON:-$python}"
if [ -n "$selftest" ]; then
    say "Running the software GPU's own tests"
    SOFTGPU_TOP="$top" exec "$python" -m pytest tests/softgpu/selftest "$@" </dev/null
fi
unset "${!SOFTGPU_@}"
export JRDP_MEMORY_ITERATIONS="${JRDP_MEMORY_ITERATIONS:-48}"  # of tests/engine/test_memory.py; 500 on a card
on_softgpu() { env PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" bash tests/softgpu/run.sh --top "$top" "$@" </dev/null; }

say "Starting Jittor on it (the first time, it compiles itself: 5 to 10 minutes)"
on_softgpu "$python" - <<'PYTHON' || fail "Jittor does not start on the software GPU"
from jrdp.machine import runtime
runtime.own_process()
runtime.start("cuda")
PYTHON

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
status=0 summary=""
for mode in "${modes[@]}"; do
    settings=() marks=gpu
    case "$mode" in
        reverse | random:*) settings=("SOFTGPU_ORDER=$mode") marks="gpu and not gpu_once" ;;
        lazy) settings=(SOFTGPU_LAZY=1) marks="gpu and not gpu_once" ;;
    esac
    say "Running the GPU's tests on the software GPU: $mode"
    code=0
    on_softgpu env ${settings[@]+"${settings[@]}"} "$python" -m pytest -m "$marks" "$@" 2>&1 | tee "$log" || code=$?
    [ "$code" -eq 0 ] || status=$code
    closing="$(grep -aE '^=+ .*(passed|failed|error|no tests ran|deselected).* =+$|^[0-9]+ (passed|failed|skipped|deselected).* in [0-9.]+s' "$log" | tail -n 1 || true)"
    [ -n "$closing" ] || { closing="pytest did not finish"; [ "$status" -ne 0 ] || status=1; }
    summary+="software GPU, $mode: $(sed -E 's/^=+ | =+$//g' <<<"$closing")"$'\n'
done
printf '\n%s' "$summary"
exit "$status"
