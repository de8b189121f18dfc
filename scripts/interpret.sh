#!/usr/bin/env bash
# What can be checked of the GPU's kernels without a GPU: the operators' own tests with them, in Triton's
# interpreter, and that they compile. Takes about a quarter of an hour on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
python=$PWD/.venv/bin/python
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

# Side by side, each on one core.
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
tests=(deform_conv deform_roi_pool)
for name in "${tests[@]}"; do
    "$python" -m pytest --kernels triton "tests/dcn/test_$name.py" >"$log/$name" 2>&1 &
done
failed=0
for _ in "${tests[@]}"; do wait -n || failed=1; done
cat "${tests[@]/#/$log/}"
((failed == 0)) || exit 1

"$python" tools/benchmark.py kernels
