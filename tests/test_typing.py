"""Users who check their code strictly get no errors from ours."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")


def test_user_code_is_clean_under_strict_mypy(tmp_path):
    sample = Path(__file__).parent / "typing" / "user_code.py"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path), str(sample)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
