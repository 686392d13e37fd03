"""The report page in headless Chromium: the program that SUBBYTE_CHROMIUM names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import subbyte

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.skipif(not os.environ.get("SUBBYTE_CHROMIUM"), reason="SUBBYTE_CHROMIUM names no browser")
def test_the_page_fits_every_window_and_asks_for_nothing(tmp_path: Path) -> None:
    source = ROOT / "examples" / "small-llama"
    subbyte.convert(source, tmp_path / "a.gguf", to="gguf.q4_k_m")
    script = [sys.executable, str(ROOT / "scripts" / "check_report_page.py")]
    arguments = [str(tmp_path / "a.gguf"), str(source), "--out", str(tmp_path / "pictures")]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = sorted(file.name for file in (tmp_path / "pictures").glob("*.png"))
    assert pictures == ["phone-dark.png", "phone-light.png", "wide-dark.png", "wide-light.png"]
    assert all((tmp_path / "pictures" / name).stat().st_size > 20_000 for name in pictures)
