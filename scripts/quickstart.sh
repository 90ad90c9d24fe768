#!/usr/bin/env bash
# See it work: install, train a small network on generated pictures, evaluate it, predict, and look at the result.
#
#   bash scripts/quickstart.sh [FOLDER]      results go to FOLDER, default: quickstart_out/ in the clone
#
# 8 to 12 minutes on two cores; most of that is Jittor compiling itself, once per machine. PYTHON=... names an interpreter.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out="${1:-$root/quickstart_out}"
started=$SECONDS
jrdp() { "$venv/bin/jrdp" "$@" </dev/null; }

make_environment .
mkdir -p "$out"
out="$(cd "$out" && pwd)"
rm -rf "$out/sample" "$out/run" "$out/test" "$out/pictures"
cd "$out"

say "Checking Jittor and the operators (the first time, Jittor compiles itself: 3 to 6 minutes)"
jrdp doctor

say "Writing the sample pictures to $out/sample"
jrdp data sample sample

say "Training on them for a few minutes, from random weights"
jrdp train --config "$root/configs/quickstart.yaml" --set "data.test=[]" --out run

say "Evaluating on the sample pictures that were held out"
jrdp test --config "$root/configs/quickstart.yaml" --weights run/final.safetensors --out test

say "Predicting"
mapfile -t held_out < <("$python" - sample/val.json <<'PYTHON'
import json, sys
for image in json.load(open(sys.argv[1]))["images"][:6]:
    print("sample/imgs/" + image["file_name"])
PYTHON
)
jrdp predict --config "$root/configs/quickstart.yaml" --weights run/final.safetensors --out pictures --threshold 0.25 "${held_out[@]}"

say "Done in $(((SECONDS - started + 59) / 60)) minutes. Average precision on the held-out pictures:"
"$python" - test/metrics.json <<'PYTHON'
import json, sys
metrics = json.load(open(sys.argv[1]))
while "bbox" not in metrics:  # one level a test set
    metrics = next(iter(metrics.values()))
columns = ("AP", "AP50", "AP70", "AP75")
print("          " + "".join(f"{name:>8}" for name in columns))
for kind in ("bbox", "segm"):
    print(f"  {kind:<8}" + "".join(f"{metrics[kind][name]:8.3f}" for name in columns))
PYTHON
printf '\nPictures with the instances drawn on them:\n'
find "$out/pictures" -name '*.png' ! -name '*_instances.png' | sort | sed 's/^/  /'
printf 'Training curves:\n  %s\nWeights:\n  %s\n' "$out/run/curves.png" "$out/run/final.safetensors"
