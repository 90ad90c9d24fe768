#!/usr/bin/env bash
# Train on ISOD as released, from ImageNet weights, and test on its test set (docs/data.md: where to get it, where to put it).
#
#   bash scripts/train_isod.sh [r50|r101|x101] [further options of jrdp train]
#
# r101 and x101 need a file with their ImageNet weights: jrdp data weights r101 weights/r101_imagenet.safetensors --source R-101.pkl
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
backbone=r50
case "${1:-}" in
    r50 | r101 | x101) backbone="$1"; shift ;;
    "" | -*) ;;
    *) echo "error: unknown backbone $1: choose among r50 r101 x101" >&2; exit 2 ;;
esac
weights="weights/${backbone}_imagenet.safetensors"
mkdir -p weights
[ -f "$weights" ] || jrdp data weights "$backbone" "$weights"
jrdp data check isod_train isod_test
jrdp train --config "configs/${backbone}_isod.yaml" --weights "$weights" --out "runs/${backbone}_isod" "$@"
