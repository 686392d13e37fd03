"""Codecs: the contract, what encoding returns, and the registry.

A codec id (``family.variant``: ``gguf.q4_k``) names one byte format for ever; if the bytes change, a new id is made.
Other packages add codecs through the entry-point group ``subbyte.codecs``: the name of an entry point is the codec id,
its value a `Codec` or a callable without arguments that returns one. It is loaded when its id is first asked for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from subbyte.arguments import text
from subbyte.arrays import Array
from subbyte.errors import ArgumentError, PluginError, warn

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "subbyte.codecs"


class Encoded(Mapping[str, Array]):
    """An encoded array: its planes by name, and what is needed to decode them.

    Attributes:
        config: the codec's `Codec.config`, JSON data with at least ``"id"``.
        shape: shape of the array that was encoded.
    """

    def __init__(self, planes: Mapping[str, Array], *, config: Mapping[str, Any], shape: Sequence[int]) -> None:
        self._planes = dict(planes)
        self.config = dict(config)
        self.shape = tuple(shape)

    def __getitem__(self, name: str) -> Array:
        return self._planes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._planes)

    def __len__(self) -> int:
        return len(self._planes)

    @property
    def nbytes(self) -> int:
        """Bytes of all planes."""
        return sum(plane.nbytes for plane in self._planes.values())

    def __repr__(self) -> str:
        planes = ", ".join(f"{name}: {p.dtype}{list(p.shape)}" for name, p in self._planes.items())
        return f"<Encoded {self.config.get('id')} {list(self.shape)}: {planes}>"


@runtime_checkable
class Codec(Protocol):
    """What every codec offers. ``register_codec`` and the entry points take any object of this shape."""

    @property
    def id(self) -> str:
        """The codec id."""

    def encode(self, array: Any, *, importance: Any = None, out: Mapping[str, Array] | None = None) -> Encoded:
        """Encodes ``array``; with ``out``, into its planes.

        Args:
            array: floats, ``[..., columns]``.
            importance: weights of the columns, ``[columns]``; for expert tensors also ``[experts, columns]``.
            out: planes to write into, of the shapes and types that the codec would allocate.

        Raises:
            ArgumentError: shapes or element types do not fit; a required importance is missing.
            NonFiniteError: the array holds NaN or infinity, or values too large for the format.
        """

    def decode(
        self,
        encoded: Mapping[str, Array],
        *,
        out: Array | None = None,
        rows: slice = slice(None),
        dtype: Any = "float32",
    ) -> Array:
        """Decodes planes (an `Encoded` or any mapping) to floats: the same as ``decode(encoded)[rows]``.

        Args:
            encoded: the planes.
            out: array to write into, C-contiguous, of the shape and ``dtype`` of the result.
            rows: range of the first axis; only its bytes are touched.
            dtype: float32, float16, bfloat16 or float64.

        Raises:
            ArgumentError: a plane is missing, or shapes and element types do not fit.
            UnsupportedError: the format has no decoder.
        """

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of all planes of an array of this shape."""

    def bits_per_weight(self, shape: Sequence[int]) -> float:
        """``nbytes`` in bits, per element."""

    def config(self) -> dict[str, Any]:
        """The codec as JSON data."""


_registered: dict[str, Codec] = {}
_lock = threading.RLock()


def register_codec(codec: Codec) -> None:
    """Adds a codec.

    Raises:
        ArgumentError: it is no codec, or its id is taken.
    """
    if not isinstance(codec, Codec):
        raise ArgumentError(f"{codec!r} is no codec: it lacks a method of subbyte.Codec")
    with _lock:
        if codec.id in _builtin() or codec.id in _registered:
            raise ArgumentError(f"codec id '{codec.id}' is taken: an id names one byte format for ever")
        _registered[codec.id] = codec


def get_codec(id: str) -> Codec:
    """The codec with this id.

    Raises:
        ArgumentError: there is none.
        PluginError: it comes from another distribution and cannot be loaded, or two distributions claim the id.
    """
    found = _builtin().get(text(id, "the codec id")) or _registered.get(id)
    if found is not None:
        return found
    with _lock:
        return _registered.get(id) or _load_plugin(id)


def codec_ids() -> list[str]:
    """Every codec id, sorted; plug-ins are listed without being loaded."""
    return sorted({*_builtin(), *_registered, *_plugins()})


def _builtin() -> Mapping[str, Codec]:
    from subbyte.ggml import CODECS  # after this module, which it needs

    return CODECS


def _plugins() -> dict[str, list[EntryPoint]]:
    from importlib.metadata import entry_points  # slow to import, and rarely needed

    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name in _builtin():
            message = f"{_distribution(entry)} offers codec '{entry.name}', which is built in: it is ignored"
            warn([message], stacklevel=4)
            continue
        found.setdefault(entry.name, []).append(entry)
    return found


def _distribution(entry: EntryPoint) -> str:
    return "an unknown distribution" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


def _load_plugin(id: str) -> Codec:
    entries = _plugins().get(id, [])
    if not entries:
        from difflib import get_close_matches

        near = get_close_matches(id, codec_ids(), n=3)
        hint = f": did you mean {' or '.join(near)}?" if near else ": subbyte.codec_ids() lists what there is"
        raise ArgumentError(f"no codec has the id '{id}'{hint}")
    names = Counter(map(_distribution, entries))
    if len(entries) > 1:
        raise PluginError(f"codec '{id}' is offered more than once, by {', '.join(names)}: uninstall all but one")
    where = f"codec '{id}' of {next(iter(names))} ({entries[0].value})"
    try:
        codec = entries[0].load()
        if not isinstance(codec, Codec) or isinstance(codec, type):
            codec = codec()
    except Exception as e:
        raise PluginError(f"{where} cannot be loaded: {type(e).__name__}: {e}") from e
    if not isinstance(codec, Codec):
        raise PluginError(f"{where} is no codec: it lacks a method of subbyte.Codec")
    if codec.id != id:
        raise PluginError(f"{where} calls itself '{codec.id}'")
    _registered[id] = codec
    return codec
