#!/usr/bin/env bash
# Train and test several designs with several seeds, and write the table of means and spreads. Run again, it goes on where
# it stopped: finished runs are kept, an interrupted one is resumed.
#
#   bash scripts/ablation.sh --recipe configs/small_cpu.yaml --seeds 1,2 --out runs/ablation \
#        configs/ablations/fpn.yaml configs/ablations/rdp.yaml configs/ablations/rdp_mra.yaml \
#        [-- further options of jrdp train, such as --set data.root=/mnt/sets]
#
# The recipe says how to train (data, size, schedule), each design what to train; files and a pyramid of your own are
# looked for where you call it. PYTHON names an interpreter with jrdp.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/ablation.py" "$@"
