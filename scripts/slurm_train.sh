#!/usr/bin/env bash
# Train on a Slurm cluster: scripts/slurm_train.sh PARTITION JOB CONFIG [GPUS] [options of tools/train.py]
# GPUS defaults to 8. GPUS_PER_NODE (at most 8), CPUS_PER_TASK (5) and SRUN_ARGS may be set.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
fi
partition=$1
job=$2
config=$3
shift 3
gpus=8
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    gpus=$1
    shift
fi
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}

# shellcheck disable=SC2086 # SRUN_ARGS are several words
exec srun --partition="$partition" --job-name="$job" \
    --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/../tools/train.py" "$config" --launcher slurm "$@"
