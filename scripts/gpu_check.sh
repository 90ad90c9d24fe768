#!/usr/bin/env bash
# Check jrdp on a machine with an NVIDIA GPU, which may have no network.
#
#   bash scripts/gpu_check.sh pack                 on a machine with network: collect the wheels to bring along
#   bash scripts/gpu_check.sh                      on the GPU machine: every part below, in this order
#   bash scripts/gpu_check.sh doctor parity        only these parts
#
# Parts: install  install jrdp from the wheels, beside the torch that the machine has
#        doctor   versions, CUDA, every operator against NumPy
#        tests    the tests, those that need a GPU included
#        parity   every stage, loss and gradient against the PyTorch twin: exact (no TF32, no fast math), then fast
#        speed    stage by stage and training step, alternating with the twin on the same card
#        train    one training in both frameworks from one start and one data order, then AP of Jittor's weights
#
# Settings (environment):
#   PYTHON          the interpreter, with torch and torchvision for parity, speed and train; default python3
#   GPU_WHEELS      folder of the wheels, default gpu_wheels in the clone; GPU_PYTHON (default 3.12) is whom they are for
#   GPU_OUT         folder for logs and json, default gpu_out in the clone
#   GPU_DATA        data.root of the training: holds ecssd/ and coco_salient/; default ../shared/data
#   GPU_BACKBONE    ImageNet weights for the training, default weights/r50_imagenet.safetensors
#   GPU_ITERATIONS  default 9000
#
# Each part writes GPU_OUT/PART.log; a table of all parts comes last. Exit code 1 when a part failed.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
python="${PYTHON:-python3}"
wheels="${GPU_WHEELS:-$root/gpu_wheels}"
out="${GPU_OUT:-$root/gpu_out}"
data="${GPU_DATA:-$(dirname "$root")/shared/data}"
backbone="${GPU_BACKBONE:-$root/weights/r50_imagenet.safetensors}"
iterations="${GPU_ITERATIONS:-9000}"
site="$out/site"
all=(install doctor tests parity speed train)

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

jrdp() { PYTHONPATH="$root:$site${PYTHONPATH:+:$PYTHONPATH}" "$python" -c 'from jrdp.cli import main; main()' "$@" </dev/null; }

pack() {
    rm -rf "$root/build"
    "$python" -m pip wheel --no-deps --wheel-dir "$wheels" "$root" 'jittor==1.3.11.0' || return 1
    "$python" -m pip download --dest "$wheels" --find-links "$wheels" --only-binary=:all: \
        --python-version "${GPU_PYTHON:-3.12}" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux2010_x86_64 --platform manylinux1_x86_64 "jrdp[dev]" || return 1
    du -sh "$wheels"
}

part_install() {
    # Into a folder and not an environment: the machine's own torch stays visible behind it, and is not touched.
    rm -rf "$site"
    "$python" -m pip install --no-index --find-links "$wheels" --target "$site" "jrdp[dev]" || return 1
    rm -rf "$site/jrdp"  # the clone's own code is used
}

part_doctor() { jrdp doctor --device cuda; }

part_tests() { PYTHONPATH="$root:$site" "$python" -m pytest tests -rs -o junit_family=xunit2 --junitxml "$out/tests.xml" </dev/null; }

part_parity() {
    local status=0 pictures="$out/pictures/imgs"
    [ -d "$pictures" ] || jrdp data sample "$out/pictures" || return 1
    export NVIDIA_TF32_OVERRIDE=0 JRDP_PRECISE=1
    jrdp compare layers --device cuda --images "$pictures" --out "$out/parity_exact/layers" || status=1
    jrdp compare gradients --device cuda --dataset sample --out "$out/parity_exact/gradients" || status=1
    unset NVIDIA_TF32_OVERRIDE JRDP_PRECISE
    jrdp compare layers --device cuda --images "$pictures" --out "$out/parity_fast/layers" \
        --tolerance 1e-2 --box-tolerance 1 --score-tolerance 1e-2 --mask-tolerance 0.98 || status=1
    jrdp compare gradients --device cuda --dataset sample --out "$out/parity_fast/gradients" \
        --loss-tolerance 1e-2 --norm-tolerance 3e-2 --element-tolerance 1e-1 || status=1
    return "$status"
}

part_speed() { jrdp compare speed --device cuda --training --rounds 30 --out "$out/speed"; }

part_train() {
    [ -d "$data/ecssd" ] || { echo "GPU_DATA=$data must hold ecssd/ and coco_salient/"; return 1; }
    [ -f "$backbone" ] || { echo "GPU_BACKBONE=$backbone is missing: jrdp data weights r50 makes it"; return 1; }
    local settings=(
        --config configs/r50_isod.yaml --set "data.root=$data" --set "train.weights=$backbone"
        --set "solver.max_iterations=$iterations" --set "solver.steps=[$((iterations * 2 / 3))]"
        --set "data.train=[ecssd/imgs:ecssd/train.json,coco_salient/imgs:coco_salient/train.json]"
        --set "data.test=[ecssd/imgs:ecssd/val.json,coco_salient/imgs:coco_salient/val.json]"
    )
    local status=0
    jrdp compare training --device cuda --steps "$iterations" --out "$out/training" "${settings[@]}" || status=1
    rm -rf "$out/run"
    jrdp train --device cuda --out "$out/run" "${settings[@]}" || status=1
    return "$status"
}

needs_gpu() {
    "$python" - <<'PYTHON' || fail "no usable NVIDIA GPU: $("$python" -c 'import sys; sys.path.insert(0, "."); from jrdp.toolkit.driver import read_driver; print(read_driver().problem)')"
import sys
sys.path.insert(0, ".")
from jrdp.toolkit.driver import read_driver
sys.exit(0 if read_driver().usable else 1)
PYTHON
}

[ "$#" -gt 0 ] || set -- "${all[@]}"
if [ "$1" = pack ]; then
    pack || fail "the wheels could not be collected"
    exit 0
fi
for part in "$@"; do
    case " ${all[*]} " in *" $part "*) ;; *) fail "unknown part $part: choose among pack ${all[*]}" ;; esac
done
needs_gpu
mkdir -p "$out"
nvidia-smi > "$out/nvidia-smi.txt" 2>&1 || true

table="" worst=0
for part in "$@"; do
    printf '\n==> %s (log: %s)\n' "$part" "$out/$part.log"
    started=$SECONDS
    if "part_$part" 2>&1 | tee "$out/$part.log"; then verdict=ok; else verdict=FAILED; worst=1; fi
    table+="$(printf '%-10s %-8s %6d s   %s' "$part" "$verdict" $((SECONDS - started)) "$(tail -n 1 "$out/$part.log" | cut -c1-80)")"$'\n'
done
printf '\n%-10s %-8s %8s   %s\n%s' part verdict time "last line" "$table" | tee "$out/table.txt"
exit "$worst"
