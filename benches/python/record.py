"""The recorded figures: one JSON file per processor in benches/record/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from timing import processor, slug


def update_block(folder: Path, level: str, versions: dict[str, str], rows: list[dict[str, Any]]) -> None:
    """Replaces the rows of the block bench that were measured anew at this SIMD level."""
    with _Record(folder) as data:
        block = data.setdefault("block", {}).setdefault(level, {"versions": {}, "rows": []})
        block["versions"].update(versions)
        kept = {(r["type"], r["what"]): r for r in block["rows"]}
        kept.update({(r["type"], r["what"]): r for r in rows})
        block["rows"] = list(kept.values())


def update(folder: Path, name: str, value: dict[str, Any]) -> None:
    """Replaces the figures of another bench."""
    with _Record(folder) as data:
        data[name] = value


class _Record:
    """This processor's record, read and written back."""

    def __init__(self, folder: Path) -> None:
        self.name = processor()
        self.path = folder / f"{slug(self.name)}.json"

    def __enter__(self) -> dict[str, Any]:
        self.data = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.data["processor"] = self.name
        return self.data

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self.path.write_text(json.dumps(self.data, indent=1, ensure_ascii=False) + "\n")
