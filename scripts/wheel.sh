#!/usr/bin/env bash
# Builds dcn's wheel, and runs an operator from it in an environment that has torch alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
python=$PWD/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

DCN_REQUIRE_KERNELS=1 "$python" -m pip wheel -q --no-deps -w "$work" .
wheel=$(compgen -G "$work/deformable_convnets-*-py3-none-linux_*.whl")
"$python" -m zipfile -l "$wheel"
if "$python" -m zipfile -l "$wheel" | awk 'NR > 1 && $1 !~ /^(dcn|deformable_convnets-.*dist-info)\// { found = 1 } END { exit !found }'; then
    echo "wheel: it holds more than dcn" >&2
    exit 1
fi

# Links to the installed torch and what it requires save a second installation of 5 GB.
"$python" -m venv --without-pip "$work/venv"
"$python" - "$work"/venv/lib/python3*/site-packages <<'PY'
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

site, seen, queue = Path(sys.argv[1]), set(), ["torch"]
while queue:
    name = queue.pop()
    if name in seen:
        continue
    seen.add(name)
    try:
        found = distribution(name)
    except PackageNotFoundError:  # required by another platform or an extra
        continue
    queue += [re.match(r"[\w.-]+", r)[0] for r in found.requires or [] if "extra ==" not in r]
    for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(found.locate_file(top))
PY
# --no-deps: what pip installed over a link would be written into .venv.
"$python" -m pip --python "$work/venv/bin/python" install -q --no-index --no-deps "$wheel"

cd "$work"
"$work/venv/bin/python" -W error::UserWarning:dcn - <<'PY'
from importlib.metadata import version
from importlib.util import find_spec

import dcn
import torch

assert "site-packages" in dcn.__file__, dcn.__file__
assert torch.__version__.split("+")[0] == version("torch"), torch.__version__
assert dcn.__version__ == version("deformable-convnets")
assert dcn.native.kernels is not None, "no compiled kernels"
assert not any(map(find_spec, ("torchvision", "mmcv", "mmdet", "mmengine"))), "torch is not alone"
x, weight = torch.rand(1, 4, 6, 7), torch.rand(2, 4, 3, 3, requires_grad=True)
out = dcn.deform_conv2d(x, torch.zeros(1, 18, 4, 5), weight)
torch.testing.assert_close(out, torch.nn.functional.conv2d(x, weight))
out.sum().backward()
print("wheel: dcn", dcn.__version__, "runs beside torch alone:", dcn.native.kernels._name)
PY
