import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "torture.sh"


@pytest.mark.parametrize("arguments", [[], ["soon"], ["0"], ["3", "many"], ["3", "4", "5"]])
def test_usage(arguments):
    run = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
    assert run.returncode == 2
    assert "scripts/torture.sh MINUTES [CALLS]" in run.stderr
