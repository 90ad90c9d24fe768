#!/usr/bin/env bash
# Test it: install into the virtual environment, then run the tests. Arguments go to pytest.
#
#   bash scripts/test.sh [tests/ops -k nms ...]
#
# A few tests use research photographs in ../shared or $JRDP_SHARED and are skipped where there are none.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment '.[dev]'
say "Running the tests (the first time, Jittor compiles itself: 3 to 6 minutes)"
cd "$root"
exec "$python" -m pytest "$@" </dev/null
