"""Files beside a checkpoint's weights: which are copied, and what the model card says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A whole file of a folder.

    Attributes:
        name: its name in the folder, with ``/`` where it is further down.
        data: its bytes.
        origin: ``"copied"`` from the source, or ``"made"``.
    """

    name: str
    data: bytes
    origin: str = "made"
