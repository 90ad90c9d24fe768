#!/usr/bin/env bash
# Hold this network against PyTorch, chapter by chapter, and write docs/parity.md with every figure that was measured.
#
#   bash scripts/parity.sh WEIGHTS PICTURES
#
#   WEIGHTS    trained weights, for example quickstart_out/run/final.safetensors
#   PICTURES   a folder of pictures, for example quickstart_out/sample/imgs
#
# Settings (environment):
#   PYTHON            the interpreter that has jrdp's requirements and pytest; default python3
#   TWIN_PYTHON       the one that has torch, jrdp's requirements (but Jittor) and pytest; default PYTHON
#   PARITY_OUT        folder for the reports of every command, default parity_out in the clone. A command whose report is
#                     there is not run again, so an interrupted run goes on where it stopped.
#   PARITY_DOCUMENT   default docs/parity.md
#   PARITY_PICTURES   take this many of PICTURES, spread over the folder; default 30
#   PARITY_DATASET    the images:annotations.json, or sample, of the training batches and of the return trip; default sample
#   PARITY_BATCHES    training batches whose gradients are compared, default 4
#   PARITY_STEPS      of the training comparison, default 6
#   PARITY_WHOLE      words for a whole training in both frameworks, such as "--config configs/small_cpu.yaml --steps 600
#                     --seeds 1 --seeds 2"; default none, as it takes an hour and more; interrupted, it goes on from the
#                     last train.checkpoint_period. It has a document of its own, PARITY_WHOLE_DOCUMENT
#   PARITY_WHOLE_DOCUMENT   default parity_training.md beside PARITY_DOCUMENT
#   PARITY_WHOLE_ABOUT   a sentence on its data, for that document
#   PARITY_ABOUT      what the weights are, for the document; default: what their file says of the training
#   PARITY_THREADS    of each side, default all cores
#   PARITY_ONLY       a regular expression: run only the commands of this name, and write no document
#
# 20 to 30 minutes on two cores. Exit code 1 when a command found a difference that is none of rounding.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -eq 2 ] || { echo "usage: bash scripts/parity.sh WEIGHTS PICTURES" >&2; exit 2; }
[ -f "$1" ] || { echo "error: no weight file $1" >&2; exit 2; }
[ -d "$2" ] || { echo "error: no folder of pictures $2" >&2; exit 2; }
weights="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
pictures="$(cd "$2" && pwd)"
python="${PYTHON:-python3}"
twin="${TWIN_PYTHON:-$python}"
out="${PARITY_OUT:-$root/parity_out}"
document="${PARITY_DOCUMENT:-$root/docs/parity.md}"
dataset="${PARITY_DATASET:-sample}"
batches="${PARITY_BATCHES:-4}"
cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" JRDP_TWIN_PYTHON="$twin"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
for each in "$python" "$twin"; do
    "$each" -c "import cv2, numpy, pycocotools, pydantic, pytest, yaml" || { echo "error: $each lacks a requirement, see above" >&2; exit 2; }
done
"$twin" -c "import torch" || { echo "error: $twin has no torch; name another with TWIN_PYTHON" >&2; exit 2; }

"$python" scripts/parity_document.py inputs "$out" "$weights" "$pictures" "${PARITY_PICTURES:-30}" "$dataset" || exit
threads=(); [ -z "${PARITY_THREADS:-}" ] || threads=(--threads "$PARITY_THREADS")

step() {  # NAME EXPECTED COMMAND...: run once; its words, output and exit code stay in OUT/NAME
    local name="$1" expected="$2" code; shift 2
    local folder="$out/$name"
    [[ "$name" =~ ${PARITY_ONLY:-} ]] || return
    [ -f "$folder/exit" ] && return
    mkdir -p "$folder"
    printf '%s\n' "$*" >"$folder/command"
    printf '%s  %s\n' "$(date +%H:%M:%S)" "$name"
    "$@" >"$folder/log" 2>&1 </dev/null
    code=$?
    if [ "$code" -gt 1 ]; then
        tail -n 3 "$folder/log" >&2
        echo "error: $name ended with exit code $code; see $folder/log" >&2
        exit 2
    fi
    [ "$code" = "$expected" ] || echo "unexpected: $name ended with $code"
    printf '%s %s\n' "$code" "$expected" >"$folder/exit"
}
jrdp() { step "$1" "$2" "$python" -m jrdp "${@:3}" --out "$out/$1"; }
compare() { jrdp "$1" "$2" compare "${@:3}" --twin-python "$twin" "${threads[@]}"; }
tests() { step "$1" 0 "$2" -m pytest -q -p no:cacheprovider "${@:3}"; }

golden=(--weights "$out/inputs/golden.safetensors")
one="tests/golden/imgs/b_267x400.png"
small=(--set input.min_size=160 --set input.max_size=240)

tests configuration "$twin" tests/comparison/test_twin.py tests/comparison/test_twin_train.py -k "keys or rates"
tests configuration_jittor "$python" tests/models/test_model_state.py
tests preprocessing "$python" tests/data/test_transforms.py -k "bit_exact or resize_rule"
tests operators_twin "$twin" tests/comparison/test_twin.py tests/comparison/test_twin_train.py \
    -k "roi_align or nms or candidates or post_processing or pasting or assignment or locations"
tests operators_jittor "$python" tests/ops -m "not gpu" -k "released or goldens or finite_differences"
tests released_twin "$twin" tests/comparison/test_twin.py tests/comparison/test_twin_train.py -k "stages or pasted or losses or steps"
tests released_jittor "$python" tests/models/test_rdpnet_inference.py tests/models/test_rdpnet_training.py -m "not gpu"
if "$python" -c "import onnx, onnxruntime" 2>/dev/null; then
    tests onnx "$python" tests/export -k "goldens or any_picture_size or decoding"
else
    echo "without onnx: $python has no onnx and onnxruntime"
fi

compare layers_golden 0 layers "${golden[@]}" --images tests/golden/imgs
compare layers_fast 0 layers "${golden[@]}" --images "$one" --engine fast
for backbone in r101 x101; do
    compare "layers_$backbone" 0 layers --images "$one" --set "model.backbone.name=$backbone" "${small[@]}"
done
step sums_jittor 0 "$python" scripts/parity_sums.py jittor
step sums_torch 0 "$twin" scripts/parity_sums.py torch
step sums_chains 0 "$python" scripts/parity_sums.py chains
compare layers_trained 0 layers --weights "$weights" --images "$out/inputs/pictures"

for seed in $(seq 1 "$batches"); do
    compare "gradients$seed" 0 gradients --weights "$weights" --dataset "$dataset" --seed "$seed"
done
compare training 0 training --weights "$weights" --dataset "$dataset" --steps "${PARITY_STEPS:-6}"
# shellcheck disable=SC2086  # words on purpose
if [ -n "${PARITY_WHOLE:-}" ]; then
    compare whole 0 training $PARITY_WHOLE --evaluate
    [ ! -f "$out/whole/exit" ] || "$python" scripts/parity_document.py whole "$out" "${PARITY_WHOLE_DOCUMENT:-$(dirname "$document")/parity_training.md}" || exit
fi

mapfile -t tested <"$out/inputs/tested"
jrdp trip_jittor 0 test --weights "$weights" "${tested[@]:1}"
step trip_convert 0 "$python" -m jrdp convert "$weights" "$out/inputs/trained.pth"
compare trip_twin 0 twin-test --weights "$out/inputs/trained.pth" --dataset "${tested[0]}"
for kind in segm bbox; do
    results="$(find "$out/trip_jittor" -name "$kind.json" | sort | head -n 1)"
    jrdp "trip_$kind" 0 compare detections "$results" "$out/trip_twin/$kind.json" --dataset "${tested[0]}"
done

for control in rgb group-norm-eps aligned sqrt-score nms-without-one; do
    compare "control_$control" 1 layers --weights "$weights" --images "$out/inputs/few" --negative-control "$control"
done
compare control_tensor 1 layers --weights "$weights" --twin-weights "$out/inputs/changed.safetensors" \
    --images "$out/inputs/few"

[ -z "${PARITY_ONLY:-}" ] || exit 0
"$python" scripts/parity_document.py write "$out" "$document"
