#!/usr/bin/env bash
# Download MNIST by torchvision, which checks the checksums: scripts/download_mnist.sh [DIR]
# DIR (data of this repository) gets MNIST/raw/: 11 MiB to download. MNIST_URL is another mirror.
set -euo pipefail

case ${1-} in -*)
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
    ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
.venv/bin/python - "${1:-data}" "${MNIST_URL-}" <<'PYTHON'
import sys

from torchvision.datasets import MNIST

root, mirror = sys.argv[1:]
if mirror:
    MNIST.mirrors = [mirror.rstrip("/") + "/"]
try:
    MNIST(root, download=True)
except (RuntimeError, OSError) as error:
    sys.exit(f"error: {' '.join(str(error).split())}")
print(f"{root}/MNIST/raw: 60,000 images to train on, 10,000 to test")
PYTHON
