#!/usr/bin/env bash
# Checks everything here that needs an NVIDIA GPU, in about ten minutes, and writes gpu_check.txt to send in:
# the operators' tests and benchmark, and a small detector that trains and is evaluated.
#   ./scripts/gpu_check.sh   runs in .venv, if ./scripts/setup.sh has made it, otherwise in python3
#   PYTHON=...               another interpreter; torch, triton, numpy and pytest are enough for the tests
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -x .venv/bin/python ]]; then found=.venv/bin/python; else found=python3; fi
python=${PYTHON:-$found}
work=work_dirs/gpu_check
config=configs/quickstart/faster-rcnn_r18-mdconv_fpn_mdpool_mimic_digits.py
# A kernel that fails is an error here, and not replaced by plain PyTorch.
export DCN_STRICT=1 PYTHONPATH=$PWD PYTHONUNBUFFERED=1

gpus=$("$python" -c 'import numpy, pytest, torch, triton; print(torch.cuda.device_count())') || exit 1
if ((gpus == 0)); then
    echo "gpu_check: PyTorch ($python) finds no GPU here" >&2
    exit 1
fi

# Less than tools/benchmark.py measures.
benchmark='
import sys
import torch
from tools import benchmark
from tools.benchmarks import ops
ops.GPU_BATCHES, ops.NUM_ROIS["cuda"] = (), (512,)
ops.DTYPES["cuda"] = ops.POOL_DTYPES["cuda"] = [torch.bfloat16, torch.float32]
sys.argv[1:] = ["ops", "--device", "cuda", "--repeats", "20", "--out", sys.argv[1]]
benchmark.main()
'
results=() failed=0

step() {
    local title=$1 start=$SECONDS status=0 outcome=passed
    shift
    printf '\n=== %s\n' "$title"
    timeout --signal=INT --kill-after=30 600 "$@" || status=$?
    if ((status)); then failed=1 outcome="FAILED, exit status $status"; fi
    results+=("$title: $outcome, $((SECONDS - start)) s")
}

# step_with PACKAGE TITLE COMMAND...: a step that needs more than the operators do.
step_with() {
    local package=$1
    shift
    if "$python" -c "import $package"; then step "$@"; else results+=("$1: skipped, no $package"); fi
}

check() {
    local train=(tools/train.py "$config" --data "$work/digits" --cfg-options train_cfg.max_epochs=1)
    local pytest=("$python" -m pytest -q -rfEs --tb=short -p no:cacheprovider)
    local kernels=tests/dcn/gpu/test_kernels.py
    rm -rf "$work"
    echo "commit $(git rev-parse HEAD 2>&1)"
    step "machine" "$python" -m torch.utils.collect_env
    step "operators' tests" "${pytest[@]}" "$kernels" tests/dcn/test_deform_{conv,roi_pool}.py \
        -k "(cuda or test_kernels) and not test_cuda_graph"
    step "CUDA graph" "${pytest[@]}" "$kernels" -k test_cuda_graph
    step_with torchvision "benchmark" "$python" -c "$benchmark" "$work"
    step_with mmdet "making images" "$python" tools/make_digits.py --root "$work/digits" \
        --num-train 64 --num-val 16
    step_with mmdet "training" "$python" "${train[@]}" --work-dir "$work/one"
    step_with mmdet "evaluation" "$python" tools/test.py "$config" "$work/one/epoch_1.pth" \
        --data "$work/digits" --work-dir "$work/test"
    if ((gpus > 1)); then
        step_with mmdet "training on two GPUs" "$python" -m torch.distributed.run \
            --nproc-per-node 2 "${train[@]}" --launcher pytorch --work-dir "$work/two"
    else
        results+=("training on two GPUs: skipped, there is one")
    fi
    printf '\n=== summary\n'
    printf '%s\n' "${results[@]}"
    return "$failed"
}

check 2>&1 | tee gpu_check.txt
failed=${PIPESTATUS[0]}
printf '\ngpu_check: please open an issue and attach gpu_check.txt, whatever it says\n'
exit "$failed"
