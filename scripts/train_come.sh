#!/usr/bin/env bash
# Train on COME15K as released, from ImageNet weights, and test on COME-E and COME-H (docs/data.md: where to get it, where to put it).
#
#   bash scripts/train_come.sh [further options of jrdp train]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
backbone=r50
weights="weights/${backbone}_imagenet.safetensors"
mkdir -p weights
[ -f "$weights" ] || jrdp data weights "$backbone" "$weights"
jrdp data check come_train come_e_test come_h_test
jrdp train --config "configs/${backbone}_come.yaml" --weights "$weights" --out "runs/${backbone}_come" "$@"
