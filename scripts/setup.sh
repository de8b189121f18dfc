#!/usr/bin/env bash
# Makes .venv with everything this repository runs on. Safe to interrupt and to run again.
#   PYTHON                 the interpreter to use, instead of the first suitable one on PATH
#   CUDA_VISIBLE_DEVICES=  (empty) builds for the CPU on a machine with a GPU
#   MAX_JOBS               compiler processes at a time
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
log=$venv/setup.log
stamp=$venv/setup.stamp

fail() {
    echo "setup: $*" >&2
    exit 1
}

# pip's children inherit the lock, so after a kill the next run waits for what is still installing.
exec 9<"${BASH_SOURCE[0]}"
if ! flock -n 9; then
    echo "setup: another setup of this folder is at work; waiting for it"
    flock 9
fi

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
suitable() { [[ $(version_of "$1") =~ ^3\.1[012]$ ]]; }
# pip's launcher is the last thing venv writes, and it names the folder: a half-made venv has none,
# a moved one names another.
usable_venv() { grep -qF "$venv/bin/python" "$venv/bin/pip" 2>/dev/null && suitable "$venv/bin/python"; }

if [[ -n ${PYTHON:-} ]]; then
    suitable "$PYTHON" || fail "PYTHON=$PYTHON is $(version_of "$PYTHON" || echo 'no Python'); needed is 3.10, 3.11 or 3.12."
    python=$PYTHON
elif usable_venv; then
    python=$venv/bin/python
else
    python=
    for candidate in python3 python3.12 python3.11 python3.10; do
        if suitable "$candidate"; then
            python=$candidate
            break
        fi
    done
    [[ -n $python ]] || fail "no Python 3.10, 3.11 or 3.12 found (python3 is $(version_of python3 || echo missing)). Install one (Debian, Ubuntu: apt install python3 python3-venv python3-dev), or name one: PYTHON=/path/to/python3.11 $0"
fi

# One architecture a line for each GPU that torch would see; none builds for the CPU.
archs=
if [[ ! ${CUDA_VISIBLE_DEVICES-all} =~ ^(-1)?$ ]]; then
    archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | paste -sd ';') || archs=
fi

key=$({
    echo "$root $archs $("$python" -VV)"
    cat requirements.txt pyproject.toml setup.py scripts/setup.sh dcn/csrc/*
} | sha256sum)
if usable_venv && [[ -f $stamp && $(<"$stamp") == "$key" ]]; then
    echo "setup: .venv is ready"
    exit
fi

### What would fail only after minutes is asked first.

"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module with pip. Debian, Ubuntu: apt install python$(version_of "$python")-venv"

export CXX=${CXX:-c++}
command -v "${CXX%% *}" >/dev/null ||
    fail "no C++ compiler ($CXX), which dcn's and mmcv's operators need. Debian, Ubuntu: apt install g++"

include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[[ -f $include/Python.h ]] ||
    fail "$include/Python.h is missing, which mmcv's operators need. Debian, Ubuntu: apt install python$(version_of "$python")-dev"

if [[ -n $archs ]]; then
    CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")")}
    [[ -x $CUDA_HOME/bin/nvcc ]] ||
        fail "there is a GPU, but no nvcc to build mmcv's operators for it. Install the CUDA toolkit, or use the CPU: CUDA_VISIBLE_DEVICES= $0"
    export CUDA_HOME FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$archs
    target="GPU (compute capability $archs)"
else
    # mmcv builds for CUDA whenever torch sees a GPU.
    export CUDA_VISIBLE_DEVICES='' FORCE_CUDA=0
    target=CPU
fi

# Installed, the packages take 5.8 GB, and while pip installs them the downloads lie beside them.
need=10
if compgen -G "$venv/lib/python3*/site-packages/torch" >/dev/null; then need=2; fi
free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1024 / 1024))
((free >= need)) || fail "$free GB free in $root; $need GB are needed."

### The work.

step() {
    local title=$1 seconds=$SECONDS
    shift
    echo "setup: $title"
    "$@" >"$log.step" 2>&1 || explain "$title"
    cat "$log.step" >>"$log"
    echo "setup:   done in $((SECONDS - seconds)) s"
}

explain() {
    cat "$log.step" >>"$log"
    {
        echo "setup: failed at: $1"
        tail -n 25 "$log.step"
        echo
        if grep -qi 'no space left on device' "$log.step"; then
            echo "setup: the disk is full."
        elif grep -qiE 'failed to (connect|establish)|name resolution|name or service not known|connection (refused|reset|aborted|broken)|unreachable|timed out|ProxyError|SSLError' "$log.step"; then
            echo "setup: the package registry cannot be reached. Check the network (pip's proxy and index settings), then run this again: it goes on from here."
        elif grep -qiE 'killed signal|cannot allocate memory|bad_alloc' "$log.step"; then
            echo "setup: out of memory. Compile fewer files at a time: MAX_JOBS=1 $0"
        fi
        echo "setup: the whole log is $log"
    } >&2
    exit 1
}

make_venv() {
    find "$venv" -mindepth 1 -maxdepth 1 ! -name 'setup.log*' -exec rm -rf {} +
    "$python" -m venv "$venv"
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

mmcv=$(grep '^onedl-mmcv==' requirements.txt)
mapfile -t mmdet < <(grep -E '^(onedl-mmdetection|imaug)==' requirements.txt)

operators_work() {
    "$venv/bin/python" - "${archs:+cuda}" <<'PY'
import sys

import mmcv._ext
import torch
from mmcv.ops import nms, roi_align

device = sys.argv[1] or "cpu"
boxes = torch.tensor([[0.0, 0, 8, 8], [1, 0, 8, 8], [9, 9, 15, 15]], device=device)
_, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
assert kept.tolist() == [0, 2], kept
rois = torch.tensor([[0.0, 2, 2, 9, 9]], device=device)
pooled = roi_align(torch.ones(1, 1, 16, 16, device=device), rois, (2, 2))
assert torch.allclose(pooled, torch.ones_like(pooled)), pooled
PY
}

build_mmcv() {
    pip install --no-build-isolation --no-deps "$mmcv" || return
    # pip takes a wheel of its cache for this version, whichever torch and device that was built for.
    operators_work || pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall "$mmcv"
}

install_rest() {
    DCN_REQUIRE_KERNELS=1 pip install -v --no-build-isolation --no-deps "${mmdet[@]}" -e .
}

check() {
    operators_work && "$venv/bin/python" -W error::UserWarning -c 'import dcn'
}

mkdir -p "$venv"
rm -f "$stamp"
: >"$log"
if ! usable_venv || [[ $("$python" -VV) != "$("$venv/bin/python" -VV)" ]]; then
    step "1/5 virtual environment: seconds" make_venv
fi
# pip writes INSTALLER when all files of a package are there: without it, a kill left half of one.
for info in "$venv"/lib/python3*/site-packages/*.dist-info; do
    [[ -s $info/INSTALLER ]] || rm -rf "$info"
done

# ninja is looked up on PATH, and /tmp is often a small memory disk.
export PATH=$venv/bin:$PATH TMPDIR=$venv/tmp
rm -rf "$TMPDIR"
mkdir "$TMPDIR"
memory=$(awk '/^MemAvailable/ { print int($2 / 2500000) }' /proc/meminfo)
cores=$(nproc)
export MAX_JOBS=${MAX_JOBS:-$((memory < 1 ? 1 : memory < cores ? memory : cores))}

grep -vE '^(onedl-mmcv|onedl-mmdetection|imaug)==' requirements.txt >"$TMPDIR/requirements.txt"
step "2/5 PyTorch and the Python packages: 2.5 GB to download, minutes" \
    pip install -r "$TMPDIR/requirements.txt"

if [[ -n $archs ]]; then
    toolkit=$("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\),.*/\1/p')
    wanted=$("$venv/bin/python" -c 'import torch; print(torch.version.cuda)')
    [[ ${toolkit%%.*} == "${wanted%%.*}" ]] ||
        fail "nvcc is of CUDA $toolkit, torch of CUDA $wanted. Install that toolkit (or set CUDA_HOME to it), or use the CPU: CUDA_VISIBLE_DEVICES= $0"
fi

step "3/5 compiling mmcv's operators for the $target, $MAX_JOBS at a time: about 10 minutes on two cores, seconds if pip has kept them" \
    build_mmcv
step "4/5 mmdetection, and dcn from this folder with its CPU kernels: half a minute" install_rest
step "5/5 running the operators: seconds" check

rm -rf "$TMPDIR" "$log.step"
echo "$key" >"$stamp"
echo "setup: .venv is ready after $SECONDS s"
