"""Reader of SentencePiece models (``tokenizer.model``): the few fields of its protobuf message that GGUF stores.

The file is one ``ModelProto`` message. Read are field 1 (repeated ``SentencePiece``: 1 text, 2 score, 3 kind) and of
field 3 (``NormalizerSpec``) the flags 3 (add_dummy_prefix) and 4 (remove_extra_whitespaces); all else is skipped.
Wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from subbyte.errors import FormatError, LimitError
from subbyte.jsonfile import read_bytes

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces; GGUF's ``tokenizer.ggml.token_type`` uses the same numbers."""

MAX_PIECES = 1 << 22
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The vocabulary by id, and the normalizer's flags."""

    pieces: tuple[Piece, ...]
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read_model(path: Path) -> SentencePieceModel:
    """Read a ``tokenizer.model`` file.

    Raises:
        FormatError: not a SentencePiece model; the message has the byte.
        LimitError: larger than any real vocabulary.
        IoError: the file cannot be read.
    """
    data = read_bytes(path)
    try:
        return parse_model(data)
    except (FormatError, LimitError) as error:
        error.file = str(path)
        raise


def parse_model(data: bytes) -> SentencePieceModel:
    """The vocabulary in the bytes of a ``ModelProto`` message; errors as :func:`read_model`."""
    pieces: list[Piece] = []
    prefix, squeeze = True, True
    for number, wire, value, at in _fields(data, 0, len(data)):
        if number == 1 and wire == _BYTES:
            if len(pieces) == MAX_PIECES:
                raise LimitError(f"more than {MAX_PIECES:,} pieces", byte=at)
            pieces.append(_piece(data, *value))
        elif number == 3 and wire == _BYTES:
            for inner, kind, flag, _ in _fields(data, *value):
                if kind == _VARINT and inner == 3:
                    prefix = bool(flag[0])
                elif kind == _VARINT and inner == 4:
                    squeeze = bool(flag[0])
    if not pieces:
        raise FormatError("no vocabulary: not a SentencePiece model")
    return SentencePieceModel(tuple(pieces), prefix, squeeze)


def _piece(data: bytes, start: int, stop: int) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, wire, value, at in _fields(data, start, stop):
        if number == 1 and wire == _BYTES:
            try:
                text = data[value[0] : value[1]].decode("utf-8")
            except UnicodeDecodeError:
                raise FormatError("a piece is not UTF-8 text", byte=at) from None
        elif number == 2 and wire == _FIXED32:
            (score,) = struct.unpack_from("<f", data, value[0])
        elif number == 3 and wire == _VARINT:
            kind = value[0]
            if not NORMAL <= kind <= BYTE:
                raise FormatError(f"piece '{text}' is of unknown kind {kind}", byte=at)
    return Piece(text, score, kind)


def _fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, tuple[int, int], int]]:
    """Field number, wire type, value and position of each field in ``data[start:stop]``.

    The value is ``(number, 0)`` for a varint and the byte range for every other wire type.
    """
    at = start
    while at < stop:
        here = at
        key, at = _varint(data, at, stop)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise FormatError("a field has number 0: not a SentencePiece model", byte=here)
        if wire == _VARINT:
            value, at = _varint(data, at, stop)
            yield number, wire, (value, 0), here
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, stop)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise FormatError(f"wire type {wire}: not a SentencePiece model", byte=here)
        if size > stop - at:
            raise FormatError(f"a field of {size:,} bytes where {stop - at:,} remain", byte=here)
        yield number, wire, (at, at + size), here
        at += size


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    for place in range(at, min(stop, at + 10)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place + 1
        shift += 7
    raise FormatError("a number does not end: truncated, or not a SentencePiece model", byte=at)
