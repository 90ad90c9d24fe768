#!/usr/bin/env bash
# Train on SOC (train + val) as released, from ImageNet weights, and test on its test set (docs/data.md: where to get it, where to put it).
#
#   bash scripts/train_soc.sh [further options of jrdp train]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
backbone=r50
weights="weights/${backbone}_imagenet.safetensors"
mkdir -p weights
[ -f "$weights" ] || jrdp data weights "$backbone" "$weights"
jrdp data check soc_train soc_val soc_test
jrdp train --config "configs/${backbone}_soc.yaml" --weights "$weights" --out "runs/${backbone}_soc" "$@"
