#!/usr/bin/env bash
# Mistreats the project and prints counts of what became of it: scripts/torture.sh MINUTES [CALLS]
# Every bad file of tests/bad_files is opened; the operators' tests and CALLS random calls, from eight
# threads at once, run under sanitizers (350 a minute if not given); then trainings are killed, for MINUTES.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! ${1-} =~ ^[1-9][0-9]*$ || ! ${2-1} =~ ^[1-9][0-9]*$ || $# -gt 2 ]]; then
    sed -n '2s/^# //p' "$0" >&2
    exit 2
fi
./scripts/setup.sh
.venv/bin/python -m pytest -q -n auto tests/bad_files
./scripts/sanitize.sh "${2:-$((350 * $1))}"
.venv/bin/python -m tests.torture --minutes "$1"
