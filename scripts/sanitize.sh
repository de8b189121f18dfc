#!/usr/bin/env bash
# The operators' tests and random calls of them, with CPU kernels built by GCC so that they stop at
# the first access outside memory or undefined operation (AddressSanitizer, UBSan).
#   ./scripts/sanitize.sh [CALLS]     random calls from eight threads at once, 10000 if not given
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
python=$PWD/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r --parents dcn tests docs/cpp pyproject.toml setup.py LICENSE "$work"
cd "$work"
rm dcn/_kernels.so
sed -i 's/"-O3"/"-O1"/' setup.py  # compiles in a third of the time

export CC=gcc CXX=g++ CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g"
export LDFLAGS="-fsanitize=address,undefined" DCN_REQUIRE_KERNELS=1
"$python" setup.py -q build_ext --inplace
for check in __asan_report_load4 __asan_report_store4 __ubsan_handle_; do
    nm -D dcn/_kernels.so | grep "$check" >/dev/null || {
        echo "sanitize: the kernels were built without $check" >&2
        exit 1
    }
done

# libstdc++ comes with them: it must be there before the sanitizer looks for what it intercepts.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)"
# Python and PyTorch leave memory to the end of the process.
export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$work
"$python" -W error::UserWarning -c 'import dcn; print(dcn.__file__)'
set -x
"$python" -m pytest -n auto --dist worksteal tests/dcn --ignore tests/dcn/gpu --ignore tests/dcn/test_onnx.py \
    -p no:cacheprovider
"$python" tests/dcn/fuzz.py --calls "${1:-10000}" --threads 8
