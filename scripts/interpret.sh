#!/usr/bin/env bash
# What can be checked of the GPU's kernels without a GPU: the operators' own tests with them, in Triton's
# interpreter, which runs their programs in random order, and that they compile. Takes 15 to 30 minutes
# on two cores. Arguments are pytest's: scripts/interpret.sh -k equals_loop
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
python=$PWD/.venv/bin/python
export CUDA_VISIBLE_DEVICES=
"$python" -m pytest -n auto --dist worksteal --kernels triton tests/dcn/test_deform_{conv,roi_pool}.py "$@"
"$python" tools/benchmark.py kernels
