#!/usr/bin/env bash
# Evaluate on several GPUs: scripts/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# Several hosts: run it on each with NNODES, NODE_RANK and MASTER_ADDR set (PORT defaults to 29500).
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3

exec torchrun \
    --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$gpus" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$(dirname "$0")/../tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
