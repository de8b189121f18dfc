#!/usr/bin/env bash
# Makes .venv with everything this repository runs on, the same for CPU and GPU. Safe to interrupt and
# to run again.
#   ./scripts/setup.sh              mmcv comes without compiled operators: the detectors need none
#   ./scripts/setup.sh --mmcv-ops   also compiles them, to compare with; for a GPU where there is nvcc
#   PYTHON=...                      the interpreter to use, instead of the first suitable one on PATH
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv
site='.venv/lib/python3*/site-packages'  # a pattern
log=$venv/setup.log
stamp=$venv/setup.stamp

fail() { echo "setup: $*" >&2; exit 1; }

[[ $# == 0 || $* == --mmcv-ops ]] || fail "unknown argument: $*; the only one is --mmcv-ops"

# pip's children inherit the lock, so after a kill the next run waits for what is still installing.
exec 9<scripts/setup.sh
flock -n 9 || { echo "setup: another setup of this folder is at work; waiting for it"; flock 9; }

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
# pip's launcher is the last thing venv writes, and it names the folder: a half-made venv has none,
# a moved one names another.
usable_venv() { grep -qF "$venv/bin/python" "$venv/bin/pip" 2>/dev/null && "$venv/bin/python" -V >/dev/null; }
compiled_ops() { compgen -G "$site/mmcv/_ext.*.so" >/dev/null; }

candidates=(python3 python3.12 python3.11 python3.10)
if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); elif usable_venv; then candidates=("$venv/bin/python"); fi
for python in "${candidates[@]}" ''; do
    [[ ! $(version_of "$python") =~ ^3\.1[012]$ ]] || break
done
[[ -n $python ]] || fail "no Python 3.10, 3.11 or 3.12 found (${candidates[0]} is $(version_of "${candidates[0]}" || echo missing)). Install one (Debian, Ubuntu: apt install python3 python3-venv), or name one: PYTHON=/path/to/python3.11 $0"

made_of=(requirements.txt pyproject.toml setup.py scripts/setup.sh models/mmcv_ext.py dcn/csrc/*.{h,cpp})
key=$({ echo "$venv $("$python" -VV)"; cat "${made_of[@]}"; } | sha256sum)
if usable_venv && [[ -f $stamp && $(<"$stamp") == "$key" ]] && { [[ $# == 0 ]] || compiled_ops; }; then
    echo "setup: .venv is ready"
    exit
fi

# What would fail only after minutes is asked first.
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module with pip. Debian, Ubuntu: apt install python$(version_of "$python")-venv"
export CXX=${CXX:-c++}
command -v "${CXX%% *}" >/dev/null ||
    fail "no C++ compiler ($CXX), which dcn's CPU kernels need. Debian, Ubuntu: apt install g++"
# Installed, the packages take 5.8 GB, and while pip installs them the downloads lie beside them.
compgen -G "$site/torch" >/dev/null && need=2 || need=10
free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1024 / 1024))
((free >= need)) || fail "$free GB free in $PWD; $need GB are needed."

step() {
    local title=$1 start=$SECONDS
    shift
    echo "setup: $title"
    "$@" >>"$log" 2>&1 || {
        tail -n 25 "$log" >&2
        fail "failed at: $title. The whole log is $log. Once the cause (the network, the disk) is mended, run this again: it goes on from here."
    }
    echo "setup:   done in $((SECONDS - start)) s"
}

make_venv() {
    find "$venv" -mindepth 1 -maxdepth 1 ! -name setup.log -exec rm -rf {} +
    "$python" -m venv "$venv"
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# setup.sh installs these without their dependencies: see requirements.txt.
mapfile -t openmmlab < <(grep -E '^(onedl-mmcv|onedl-mmdetection|imaug)==' requirements.txt)

install_packages() { pip install -r <(printf '%s\n' "${openmmlab[@]}" | grep -vxFf - requirements.txt); }

# In pip's isolated builds there is no torch, and so mmcv compiles nothing; --no-cache-dir, since pip's
# cache may hold one that was compiled. The pins hold for the builds too.
install_openmmlab_and_dcn() {
    DCN_REQUIRE_KERNELS=1 PIP_CONSTRAINT=requirements.txt PIP_BUILD_CONSTRAINT=requirements.txt \
        pip install --no-cache-dir --no-deps "${openmmlab[@]}" -e .
}

compile_mmcv() {
    # mmcv compiles for CUDA whenever torch sees a GPU.
    export FORCE_CUDA=1
    command -v "${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" >/dev/null || export FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=
    PATH=$venv/bin:$PATH pip install -v --no-build-isolation --no-deps --no-cache-dir --force-reinstall \
        "$(grep '^onedl-mmcv==' requirements.txt)"
}

nms_runs() { "$venv/bin/python" -c 'import torch, mmcv.ops; mmcv.ops.nms(torch.eye(4), torch.ones(4), 0.5)'; }

check() {
    # Python prefers compiled operators to this file, also those that were compiled for another torch.
    local mmcv
    mmcv=$(compgen -G "$site/mmcv") && cp models/mmcv_ext.py "$mmcv/_ext.py" &&
        { nms_runs || { compiled_ops && rm -v $site/mmcv/_ext.*.so && nms_runs; }; } &&
        "$venv/bin/python" -W error::UserWarning -c 'import dcn' &&
        "$venv/bin/python" -c 'import mmdet.apis'
}

mkdir -p "$venv"
rm -f "$stamp"
: >"$log"
if ! usable_venv || [[ $("$python" -VV) != "$("$venv/bin/python" -VV)" ]]; then
    step "1/4 virtual environment: seconds" make_venv
fi
# pip writes INSTALLER when all files of a package are there: without it, a kill left half of one.
for info in $site/*.dist-info; do [[ -s $info/INSTALLER ]] || rm -rf "$info"; done

# /tmp is often a small memory disk.
export TMPDIR=$venv/tmp
rm -rf "$TMPDIR"
mkdir "$TMPDIR"

step "2/4 PyTorch and the Python packages: 2.5 GB to download, minutes" install_packages
step "3/4 mmcv, mmdetection, and dcn from this folder with its CPU kernels: a minute" install_openmmlab_and_dcn
if [[ $# != 0 ]] && ! compiled_ops; then step "mmcv's operators: about 10 minutes on two cores" compile_mmcv; fi
step "4/4 running the operators: seconds" check

rm -rf "$TMPDIR"
echo "$key" >"$stamp"
echo "setup: .venv is ready after $SECONDS s"
