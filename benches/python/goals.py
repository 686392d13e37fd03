"""What the rows of the block bench have to reach: ratios to the peers, or a share of the write limit instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Decoders that are simple enough to be bound by memory.
PLAIN = frozenset("F16 BF16 Q8_0 Q4_0 Q4_1 Q4_K Q5_K TQ2_0".split())
K_QUANTS = frozenset("Q2_K Q3_K Q4_K Q5_K Q6_K".split())
#: Stored as they are: nothing to encode or decode.
COPIES = frozenset("F32 F64".split())


@dataclass(frozen=True)
class Goal:
    """Least ratios of our speed to a peer's. A limit is the share of the write limit that is enough instead."""

    peer: str
    must: float
    aim: float | None = None
    must_limit: float | None = None
    aim_limit: float | None = None

    def verdict(self, ratio: float, share: float | None) -> str:
        """``"aim"``, ``"must"`` or ``"below"``; a goal without an aim of its own gives ``"aim"`` where it is met."""
        if not _enough(ratio, share, self.must, self.must_limit):
            return "below"
        if self.aim is None and self.aim_limit is None:
            return "aim"
        return "aim" if _enough(ratio, share, self.aim, self.aim_limit) else "must"


def _enough(ratio: float, share: float | None, wanted: float | None, limit: float | None) -> bool:
    by_ratio = wanted is not None and ratio >= wanted
    return by_ratio or (limit is not None and share is not None and share >= limit)


def decode_goals(kind: str) -> list[Goal]:
    """Goals of decoding to f32 in memory, past the caches."""
    if kind in COPIES:
        return []
    gguf_py = Goal("gguf-py", 30.0 if kind.startswith("IQ") else 10.0, must_limit=0.85)
    if kind in PLAIN:
        return [Goal("ggml-native", 1.0, aim_limit=0.95), Goal("libgguf", 1.0, aim_limit=0.95), gguf_py]
    must, aim = (8.0, 15.0) if kind.startswith(("IQ2", "IQ3")) else (2.0, 4.0)
    return [Goal("ggml-native", must, aim, 0.85, 0.85), Goal("libgguf", 1.5, 3.0, 0.85, 0.85), gguf_py]


def encode_goals(kind: str, *, importance: bool) -> list[Goal]:
    """Goals of encoding to the same bytes; they hold for each of both peers, and so for the faster one."""
    if kind in COPIES:
        return []
    must, aim = 2.0, 6.0
    if not importance and kind == "Q8_0":
        must, aim = 5.0, 8.0
    elif not importance and kind in ("Q4_0", "Q5_0"):
        must, aim = 3.0, 4.0
    elif not importance and kind in K_QUANTS:
        must, aim = 3.0, 8.0
    return [Goal(peer, must, aim) for peer in ("libgguf", "ggml-stock")]


def row_verdict(goals: list[Goal], ratios: Mapping[str, float], share: float | None) -> str | None:
    """The worst verdict of the goals whose peers were measured; None without any."""
    found = [goal.verdict(ratios[goal.peer], share) for goal in goals if goal.peer in ratios]
    return min(found, key=("below", "must", "aim").index) if found else None
