"""Collected only where ``SUBBYTE_INTEROP=1`` is set; figures are gathered and, on request, written to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ENABLED = os.environ.get("SUBBYTE_INTEROP") == "1"
collect_ignore_glob = [] if ENABLED else ["test_*.py"]

_figures: dict[str, Any] = {}


@pytest.fixture
def note() -> Callable[[str, Any], None]:
    """Keeps a figure for the file that ``SUBBYTE_INTEROP_RECORD`` names."""

    def keep(name: str, figure: Any) -> None:
        _figures[name] = figure

    return keep


@pytest.fixture(scope="session", autouse=True)
def _record() -> Iterator[None]:
    yield
    path = os.environ.get("SUBBYTE_INTEROP_RECORD")
    if path:
        Path(path).write_text(json.dumps(_figures, indent=1, ensure_ascii=False) + "\n")
