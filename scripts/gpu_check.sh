#!/usr/bin/env bash
# Check jrdp on a machine with an NVIDIA GPU, which may have no network and little time.
#
#   bash scripts/gpu_check.sh pack                 on a machine with network: collect the wheels to bring along
#   bash scripts/gpu_check.sh                      on the GPU machine: every part below, in this order
#   bash scripts/gpu_check.sh doctor tests         only these parts
#
# Parts: install       install jrdp from the wheels, beside the torch that the machine has
#        doctor        versions, CUDA, every operator against NumPy
#        tests         the tests that need a GPU, and those of the operators
#        sanitizer     NVIDIA's memcheck and racecheck over the operators on the GPU
#        parity_exact  every stage, loss and gradient against the PyTorch twin, without TF32 and fast math, to 1e-4
#        parity_fast   the same with both, at 1e-2
#        speed         part by part and training step, alternating with the twin on the same card, with TF32 and without
#        curves        one training in both frameworks from one start and one data order
#        train         the training by itself, then AP of its weights; run again, it continues where it stopped
#
# Settings (environment):
#   PYTHON          the interpreter, with torch for parity, speed and curves; default python3
#   GPU_WHEELS      folder of the wheels, default gpu_wheels in the clone; GPU_PYTHON: for whom they are, default 3.12
#   GPU_PIECE       MiB: the wheels are divided among GPU_WHEELS/1, /2, ... of at most so much, default 48
#   GPU_OUT         folder for logs and json, default gpu_out in the clone
#   GPU_SECONDS     stop a part after so long; its verdict is then "unfinished". Default: no limit
#   GPU_TESTS       gpu (default) or all
#   GPU_ROUNDS      timed rounds of speed, default 30
#   GPU_DATA        data.root of the training with ecssd/ and coco_salient/; default shared/data, here or beside here
#   GPU_BACKBONE    ImageNet weights for the training, default weights/r50_imagenet.safetensors
#   GPU_ITERATIONS  of train, default 9000; GPU_STEPS: of curves, default GPU_ITERATIONS
#   GPU_TWIN        device of the PyTorch twin in parity, speed and curves, default cuda; cpu for a torch without CUDA
#   GPU_SETTINGS    more --set of curves and train, for example 'input.min_size=64 input.max_size=96 solver.batch_size=2';
#                   those of model and input are parity's too
#
# Each part writes GPU_OUT/PART.log and an entry of GPU_OUT/summary.json; a table comes last. Exit code 1 when a part
# failed, 3 when one is unfinished.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
python="${PYTHON:-python3}"
wheels="${GPU_WHEELS:-$root/gpu_wheels}"
out="${GPU_OUT:-$root/gpu_out}"
iterations="${GPU_ITERATIONS:-9000}"
backbone="${GPU_BACKBONE:-$root/weights/r50_imagenet.safetensors}"
shared="$root/shared"
[ -d "$shared" ] || shared="$(dirname "$root")/shared"
export JRDP_SHARED="${JRDP_SHARED:-$shared}"  # photographs, if there are any; golden numbers are in tests/golden
data="${GPU_DATA:-$shared/data}"
twin="${GPU_TWIN:-cuda}"
smaller=() beside=(--device cuda --twin-device "$twin")
for setting in ${GPU_SETTINGS:-}; do
    smaller+=(--set "$setting")
    case "$setting" in model.* | input.*) beside+=(--set "$setting") ;; esac
done
all=(install doctor tests sanitizer parity_exact parity_fast speed curves train)

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

# The folder of packages below GPU_OUT/site; Debian's Python has its own idea of it. Nothing before install.
site() {
    ls -d "$out"/site/lib/python3*/site-packages "$out"/site/local/lib/python3*/dist-packages 2>/dev/null | head -n 1
}

# Run a command with what install brought, for as long as GPU_SECONDS leaves this part; 124 means the time is over.
run() {
    local limit=()
    if [ -n "${GPU_SECONDS:-}" ]; then
        [ $((part_started + GPU_SECONDS - SECONDS)) -gt 0 ] || return 124
        limit=(timeout --signal=INT --kill-after=20 $((part_started + GPU_SECONDS - SECONDS)))
    fi
    PYTHONPATH="$root:$(site)${PYTHONPATH:+:$PYTHONPATH}" ${limit[@]+"${limit[@]}"} "$@" </dev/null
}

jrdp() { run "$python" -c 'from jrdp.cli import main; main()' "$@"; }

# Run a command; remember in $status the worst result of those so far. A command out of time is worse than a failed one,
# so that the part is run again.
also() {
    local code=0
    "$@" || code=$?
    [ "$code" -le "$status" ] || status=$code
}

pack() {
    rm -rf "$root/build" "$wheels/new"
    "$python" -m pip wheel --no-deps --wheel-dir "$wheels/new" "$root" 'jittor==1.3.11.0' || return 1
    "$python" -m pip download --dest "$wheels/new" --find-links "$wheels/new" --only-binary=:all: \
        --python-version "${GPU_PYTHON:-3.12}" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 \
        'jrdp[dev]' || return 1
    rm -rf "$root/build"
    "$python" scripts/gpu_check.py pieces "$wheels" "${GPU_PIECE:-48}"
}

part_install() {
    # With a prefix, and not in an environment: the machine's own torch stays visible behind it, and is not touched.
    # (Not with --target, which leaves out oneDNN's libraries: they do not lie among the packages.)
    local links=() piece
    for piece in "$wheels" "$wheels"/*/; do links+=(--find-links "$piece"); done
    rm -rf "$out/site"
    "$python" -m pip install --no-index --ignore-installed --root-user-action=ignore "${links[@]}" \
        --prefix "$out/site" 'jrdp[dev]' || return 1
    local packages
    packages="$(site)"
    rm -rf "${packages:?pip has installed nothing}/jrdp"  # the clone's own code is used
}

part_doctor() { jrdp doctor --device cuda; }

part_tests() {
    local status=0
    if [ "${GPU_TESTS:-gpu}" = all ]; then
        also pytest_into tests_all tests
    else
        also pytest_into tests_ops tests/ops -m 'not gpu'
        also pytest_into tests_gpu tests -m gpu
    fi
    return "$status"
}

pytest_into() {  # "$1": the report's name; the rest goes to pytest
    run "$python" -m pytest -rs -o junit_family=xunit2 --junitxml "$out/$1.xml" "${@:2}"
}

part_sanitizer() {
    local tool status=0 checker
    tool="$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
        /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)"
    [ -n "$tool" ] || { echo "compute-sanitizer is not on this machine: it comes with the CUDA toolkit"; return 77; }
    also pytest_into sanitizer_warm tests/ops/test_ops_gpu.py  # compiles the kernels, which is not to be watched
    for checker in memcheck racecheck; do
        also run "$tool" --tool "$checker" --error-exitcode 9 --log-file "$out/sanitizer_$checker.txt" \
            "$python" -m pytest -q tests/ops/test_ops_gpu.py
        echo "$checker: $(tail -n 1 "$out/sanitizer_$checker.txt")"
    done
    return "$status"
}

pictures() {  # sets the array `pictures`: options for one picture of each size of the sample
    [ -d "$out/pictures/imgs" ] || jrdp data sample "$out/pictures" || return 1
    local number
    pictures=()
    for number in 0 2 3 4; do pictures+=(--images "$out/pictures/imgs/val_00$number.png"); done
}

part_parity_exact() {
    local status=0 pictures
    pictures || return 1
    export JRDP_PRECISE=1
    also jrdp compare layers "${beside[@]}" "${pictures[@]}" --out "$out/parity_exact/layers"
    also jrdp compare gradients "${beside[@]}" --dataset sample --out "$out/parity_exact/gradients"
    return "$status"
}

part_parity_fast() {
    local status=0 pictures
    pictures || return 1
    also jrdp compare layers "${beside[@]}" --tf32 "${pictures[@]}" --out "$out/parity_fast/layers" \
        --tolerance 1e-2 --box-tolerance 1 --score-tolerance 1e-2 --mask-tolerance 5e-2
    also jrdp compare gradients "${beside[@]}" --tf32 --dataset sample --out "$out/parity_fast/gradients" \
        --loss-tolerance 1e-2 --norm-tolerance 3e-2 --element-tolerance 1e-1
    return "$status"
}

part_speed() {
    local status=0 timed=(--device cuda --twin-device "$twin" --training)
    also jrdp compare speed "${timed[@]}" --rounds "${GPU_ROUNDS:-30}" --out "$out/speed"
    also jrdp compare speed "${timed[@]}" --tf32 --rounds "${GPU_ROUNDS:-30}" --out "$out/speed_tf32"
    return "$status"
}

training_settings() {  # sets the array `settings`
    [ -d "$data/ecssd" ] || { echo "GPU_DATA=$data must hold ecssd/ and coco_salient/"; return 1; }
    [ -f "$backbone" ] || { echo "GPU_BACKBONE=$backbone is missing: jrdp data weights r50 makes it"; return 1; }
    settings=(
        --config configs/r50_isod.yaml --set "data.root=$data"
        --set "solver.max_iterations=$iterations" --set "solver.steps=[$((iterations > 2 ? iterations * 2 / 3 : 1))]"
        --set "data.train=[ecssd/imgs:ecssd/train.json,coco_salient/imgs:coco_salient/train.json]"
        --set "data.test=[ecssd/imgs:ecssd/val.json,coco_salient/imgs:coco_salient/val.json]"
        ${smaller[@]+"${smaller[@]}"}
    )
}

part_curves() {
    local settings
    training_settings || return 1
    jrdp compare training --device cuda --twin-device "$twin" --steps "${GPU_STEPS:-$iterations}" --weights "$backbone" \
        --out "$out/curves" "${settings[@]}"
}

part_train() {
    local settings resume=()
    training_settings || return 1
    [ -f "$out/run/last.safetensors" ] && resume=(--resume)
    jrdp train --device cuda --out "$out/run" --weights "$backbone" --set train.checkpoint_period=250 \
        "${settings[@]}" ${resume[@]+"${resume[@]}"}
}

[ "$#" -gt 0 ] || set -- "${all[@]}"
if [ "$1" = pack ]; then
    pack || fail "the wheels could not be collected"
    exit 0
fi
for part in "$@"; do
    case " ${all[*]} " in *" $part "*) ;; *) fail "unknown part $part: choose among pack ${all[*]}" ;; esac
done
reason="$("$python" scripts/gpu_check.py gpu 2>&1)" || fail "no usable NVIDIA GPU: $reason"
mkdir -p "$out" || fail "cannot write to GPU_OUT=$out"
nvidia-smi > "$out/nvidia-smi.txt" 2>&1 || true

failed="" unfinished=""
for part in "$@"; do
    printf '\n==> %s (log: %s)\n' "$part" "$out/$part.log"
    part_started=$SECONDS
    "part_$part" 2>&1 | tee "$out/$part.log"
    case "${PIPESTATUS[0]}" in
        0) verdict=ok ;;
        77) verdict=absent ;;
        124 | 137) verdict=unfinished unfinished=yes ;;
        *) verdict=FAILED failed=yes ;;
    esac
    PYTHONPATH="$(site)" "$python" scripts/gpu_check.py summary "$out" "$part" "$verdict" $((SECONDS - part_started))
done
printf '\n'
"$python" scripts/gpu_check.py table "$out" | tee "$out/table.txt"
[ -z "$failed" ] || exit 1
[ -z "$unfinished" ] || exit 3
