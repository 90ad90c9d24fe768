#!/bin/bash
# Fault injection, 20 minutes by default: kills, interruptions, full disks, damaged files by format, wrong command lines.
# Prints a table; exits with 1 if anything was lost or a traceback appeared.
#   scripts/soak.sh [--minutes N] [--seed N] [--out FOLDER]
exec "${PYTHON:-python3}" "$(dirname "$0")/soak.py" "$@"
