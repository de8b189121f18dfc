#!/usr/bin/env bash
# Sets up, lints, tests. Arguments go to pytest: -n auto tests on all cores at once, tests/dcn only
# the operators.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh

set -x
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
exec .venv/bin/python -m pytest --dist worksteal "$@"
