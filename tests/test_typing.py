"""Users who check their code strictly get no errors from ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import subbyte

pytest.importorskip("mypy")


def test_user_code_is_clean_under_strict_mypy(tmp_path):
    sample = Path(__file__).parent / "typing" / "user_code.py"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(tmp_path), str(sample)]
    package = Path(subbyte.__file__).parent
    # An installed package is found by its py.typed; one on PYTHONPATH has to be pointed out.
    path = {} if "site-packages" in package.parts else {"MYPYPATH": str(package.parent)}
    done = subprocess.run(
        command, env=os.environ | path, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
