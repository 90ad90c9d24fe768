#!/usr/bin/env bash
# Test weights on the ISOD test set: a released checkpoint (.pth) or one of jrdp's own (.safetensors).
#
#   bash scripts/test_isod.sh WEIGHTS [further options of jrdp test]
set -euo pipefail
weights="${1:?usage: bash scripts/test_isod.sh WEIGHTS}"
shift
[ ! -e "$weights" ] || weights="$(realpath -- "$weights")"  # from where it was called; else a name of `jrdp weights`
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jrdp test --weights "$weights" --set 'data.test=[isod_test]' --out "runs/test_isod_$(basename "${weights%.*}")" "$@"
