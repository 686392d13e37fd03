"""Quantized tensor formats, byte-exact and fast: decode, encode, open, convert, verify.

Everything here is loaded on first use: importing the package imports neither NumPy nor the extension module.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from subbyte.errors import (
    ArgumentError,
    BusyError,
    CancelledError,
    CorruptError,
    Error,
    FormatError,
    IoError,
    LimitError,
    NonFiniteError,
    PluginError,
    SubbyteWarning,
    UnsupportedError,
)

if TYPE_CHECKING:
    from subbyte import imatrix as imatrix
    from subbyte._native import __version__
    from subbyte.api import decode, encode, load_state_dict, open
    from subbyte.checkpoint import Checkpoint, Weight
    from subbyte.codec import Codec, Encoded, codec_ids, get_codec, register_codec
    from subbyte.convert import convert, plan, verify
    from subbyte.convert.catalogue import list_codecs, list_conversions, list_formats, list_levels, list_targets
    from subbyte.convert.summary import report
    from subbyte.inspection import inspect

__all__ = [
    "ArgumentError",
    "BusyError",
    "CancelledError",
    "Checkpoint",
    "Codec",
    "CorruptError",
    "Encoded",
    "Error",
    "FormatError",
    "IoError",
    "LimitError",
    "NonFiniteError",
    "PluginError",
    "SubbyteWarning",
    "UnsupportedError",
    "Weight",
    "__version__",
    "codec_ids",
    "convert",
    "decode",
    "encode",
    "get_codec",
    "inspect",
    "list_codecs",
    "list_conversions",
    "list_formats",
    "list_levels",
    "list_targets",
    "load_state_dict",
    "open",
    "plan",
    "register_codec",
    "report",
    "verify",
]

_LAZY = {
    name: module
    for module, names in {
        "subbyte._native": ("__version__",),
        "subbyte.api": ("decode", "encode", "load_state_dict", "open"),
        "subbyte.checkpoint": ("Checkpoint", "Weight"),
        "subbyte.codec": ("Codec", "Encoded", "codec_ids", "get_codec", "register_codec"),
        "subbyte.convert": ("convert", "plan", "verify"),
        "subbyte.convert.catalogue": ("list_codecs", "list_conversions", "list_formats", "list_levels", "list_targets"),
        "subbyte.convert.summary": ("report",),
        "subbyte.inspection": ("inspect",),
    }.items()
    for name in names
}


_MODULES = frozenset({"imatrix"})
"""Public modules beside the names above."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'subbyte' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


class _Package(ModuleType):
    """Keeps `subbyte.convert` the function: importing the subpackage of that name would otherwise replace it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

logging.getLogger(__name__).addHandler(logging.NullHandler())
