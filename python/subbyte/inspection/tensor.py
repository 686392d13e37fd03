"""The numbers of one tensor: its values, their scales, and a histogram. One pass, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.convert.layers import Layers
from subbyte.convert.report import finite, printable, table
from subbyte.convert.values import to_float32
from subbyte.errors import ArgumentError, Error
from subbyte.ggml import TYPES
from subbyte.inspection.headers import TensorInfo, open_container, tensor_info
from subbyte.inspection.scheme import parameters, scheme_of
from subbyte.io.gguf import GgufFile
from subbyte.io.remote import Place
from subbyte.io.safetensors import SafetensorsFile, numpy_dtype
from subbyte.layout import SCALES, SMALLEST_NORMAL, as_blocks

_CHUNK = 1 << 20
"""Elements that are looked at at once."""

_BINS = 64
_NARROWEST = -1000
"""Exponent of the narrowest bins, which float64 can still express."""

_MOST_BARS = 24
_BAR = 40

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Statistics of the values of a tensor, or of one kind of its scales.

    Attributes:
        name: ``values``, ``block scale``, ``sub-block minimum`` …
        type: how they are stored: ``q4_k``, ``f16``, ``u6`` (unsigned, 6 bits) …
        count: how many there are.
        zeros: how many are 0.
        non_finite: how many are NaN or infinite; the numbers below leave them out, and are NaN where nothing is left.
        subnormal: how many are subnormal in the type they are stored in (of values in blocks: in float32).
        min, max, mean, std: extremes, mean and standard deviation.
    """

    name: str
    type: str
    count: int
    zeros: int
    non_finite: int
    subnormal: int
    min: float
    max: float
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values in bins of equal width: bin ``i`` is from ``start + i * width`` to just below the next."""

    start: float
    width: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorInspection:
    """What is in a tensor.

    Attributes:
        path: the checkpoint.
        tensor: what the header says of it.
        scheme: how its values are stored, in words.
        values: statistics of the values; ``None`` where they cannot be decoded.
        scales: statistics of each kind of scale that its blocks have, as they are stored.
        histogram: of the finite values; ``None`` where there are none.
    """

    path: Place
    tensor: TensorInfo
    scheme: str
    values: Numbers | None
    scales: tuple[Numbers, ...]
    histogram: Histogram | None

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; numbers that are not finite are ``None``."""
        return {
            "version": 1,
            "path": str(self.path),
            "tensor": asdict(self.tensor),
            "scheme": self.scheme,
            "values": None if self.values is None else finite(asdict(self.values)),
            "scales": [finite(asdict(row)) for row in self.scales],
            "histogram": None if self.histogram is None else asdict(self.histogram),
        }

    def text(self) -> str:
        """The facts as text, the histogram as bars."""
        tensor = self.tensor
        lines = [
            f"{printable(tensor.name)}: {self.scheme}",
            f"shape {list(tensor.shape)}, {tensor.nbytes:,} bytes",
            f"from byte {tensor.offset:,} of {printable(tensor.file)}",
        ]
        rows = [*(() if self.values is None else (self.values,)), *self.scales]
        if rows:
            head = (
                "numbers",
                "stored as",
                "count",
                "min",
                "max",
                "mean",
                "deviation",
                "zero",
                "not finite",
                "subnormal",
            )
            body = []
            for row in rows:
                real = (f"{number:.4g}" for number in (row.min, row.max, row.mean, row.std))
                counts = (f"{number:,}" for number in (row.zeros, row.non_finite, row.subnormal))
                body.append((row.name, row.type, f"{row.count:,}", *real, *counts))
            lines += ["", table(head, body, right=range(2, len(head)))]
        if self.values is None:
            lines += ["", "the values cannot be decoded here"]
        if self.histogram is not None:
            lines += ["", *_bars(self.histogram)]
        return "\n".join(lines)


def inspect_tensor(path: str | PathLike[str], name: str) -> TensorInspection:
    """What is in the tensor ``name``; see :func:`subbyte.inspect`."""
    where, file = open_container(path)
    with file:
        if isinstance(file, SafetensorsFile) and isinstance(name, str):
            layers = Layers(where)
            if name in layers:
                return _look_at_layer(where, layers, name)
        if not isinstance(name, str) or name not in file:
            from difflib import get_close_matches

            near = get_close_matches(name, file, n=3) if isinstance(name, str) else []
            hint = f"did you mean {' or '.join(map(repr, near))}" if near else "subbyte.inspect(path) lists them"
            raise ArgumentError(f"no tensor is named {name!r}: {hint}", file=where)
        info = tensor_info(file[name])
        try:
            return _look(where, file, info)
        except Error as error:
            error.file, error.tensor = error.file or info.file, error.tensor or name
            raise


def _look(where: Place, file: GgufFile | SafetensorsFile, info: TensorInfo) -> TensorInspection:
    kind = info.type.lower()
    facts = TYPES.get(info.type)
    decode = _decoder(info.type)
    values = None if decode is None else _Sums("values", kind)
    bins = _Bins()
    fields = SCALES.get(info.type, ())
    scales = [_Sums(field.name, field.type) for field in fields]
    for raw in _pieces(file, info):
        if decode is not None and values is not None:
            found = decode(raw)
            values.add(found)
            bins.add(found)
        for field, sums in zip(fields, scales, strict=True):
            sums.add(field.read(as_blocks(info.type, raw)))
    if facts is not None and facts.block > 1:
        scheme = f"gguf.{kind}, blocks of {facts.block} elements in {facts.block_bytes} bytes"
        scheme += f", {8 * facts.block_bytes / facts.block:g} bits per weight"
    else:
        scheme = f"{kind}, one by one"
    return TensorInspection(
        where, info, scheme, None if values is None else values.numbers(), tuple(s.numbers() for s in scales),
        bins.histogram(),
    )  # fmt: skip


def _look_at_layer(where: Place, layers: Layers, name: str) -> TensorInspection:
    """A quantized layer: its values, and what they are computed with."""
    layer = layers[name]
    first = layers.tensors[next(iter(layer.planes.values()))]
    info = TensorInfo(name, layers.format or "", layer.shape, layers.nbytes(name), first.offset, first.path)
    form = layers.form(name)
    values, bins = _Sums("values", "f32"), _Bins()
    step = max(1, _CHUNK // max(form.columns, 1))
    for start in range(0, form.rows, step):
        found = form.decode_rows(slice(start, min(start + step, form.rows)))
        values.add(found)
        bins.add(found)
    scales = []
    for kind, plane in parameters(form):
        sums = _Sums(kind, plane.kind.lower())
        sums.add(plane.float32())
        scales.append(sums.numbers())
    bits = 8 * info.nbytes / max(form.rows * form.columns, 1)
    scheme = f"{layers.format}: {scheme_of(form)}, {bits:.4g} bits per weight"
    return TensorInspection(where, info, scheme, values.numbers(), tuple(scales), bins.histogram())


def _pieces(file: GgufFile | SafetensorsFile, info: TensorInfo) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor in pieces of whole blocks."""
    facts = TYPES.get(info.type)
    step = _CHUNK // facts.block * facts.block_bytes if facts is not None else _CHUNK
    for start in range(0, info.nbytes, step):
        yield file.read(info.name, start, min(step, info.nbytes - start))


def _decoder(name: str) -> Callable[[NDArray[np.uint8]], Values] | None:
    """From stored bytes to numbers; ``None`` for types without decoder."""
    facts = TYPES.get(name)
    if facts is not None and facts.decodes and name != "F64":
        return lambda raw: to_float32(name, raw.reshape(1, -1), raw.size // facts.block_bytes * facts.block)
    dtype = numpy_dtype(name)
    if dtype is None or dtype.kind == "c" or (name.startswith("F8") and dtype == np.uint8):
        return None
    plain = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    return lambda raw: np.ascontiguousarray(raw).view(plain)


class _Sums:
    """Running sums over the pieces of a tensor, in float64."""

    def __init__(self, name: str, type: str) -> None:
        self.name, self.type = name, type
        self.smallest = SMALLEST_NORMAL.get(type, SMALLEST_NORMAL["f32"] if name == "values" else 0.0)
        self.count = self.zeros = self.non_finite = self.subnormal = 0
        self.sum = self.squares = 0.0
        self.min, self.max = math.inf, -math.inf

    def add(self, values: Values) -> None:
        numbers = values.reshape(-1).astype(np.float64)
        self.count += numbers.size
        good = numbers[np.isfinite(numbers)]
        self.non_finite += numbers.size - good.size
        if not good.size:
            return
        magnitudes = np.abs(good)
        zeros = int(np.count_nonzero(magnitudes == 0))
        self.zeros += zeros
        self.subnormal += int(np.count_nonzero(magnitudes < self.smallest)) - (zeros if self.smallest else 0)
        self.min, self.max = min(self.min, float(good.min())), max(self.max, float(good.max()))
        self.sum += float(good.sum())
        with np.errstate(over="ignore"):
            self.squares += float(np.square(good).sum())

    def numbers(self) -> Numbers:
        """What was found."""
        count = self.count - self.non_finite
        mean = self.sum / count if count else math.nan
        std = math.sqrt(max(self.squares / count - mean * mean, 0.0)) if count else math.nan
        low, high = (self.min, self.max) if count else (math.nan, math.nan)
        return Numbers(
            self.name, self.type, self.count, self.zeros, self.non_finite, self.subnormal, low, high, mean, std
        )


class _Bins:
    """A histogram of what is not known beforehand: bins whose width doubles, in pairs, when a value lies outside.

    The width is a power of two and one bin begins at 0, so every value is in the same bin whatever came before it.
    """

    def __init__(self) -> None:
        self.exponent: int | None = None  # the bins are 2^exponent wide
        self.counts = np.zeros(_BINS, np.int64)

    def add(self, values: Values) -> None:
        numbers = values.reshape(-1).astype(np.float64)
        numbers = numbers[np.isfinite(numbers)]
        largest = float(np.abs(numbers).max(initial=0.0))
        if not numbers.size:
            return
        needed = max(math.frexp(largest)[1] - int(math.log2(_BINS // 2)) if largest else _NARROWEST, _NARROWEST)
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            self._double()
        index = np.floor(np.ldexp(numbers, -self.exponent)).astype(np.int64) + _BINS // 2
        self.counts += np.bincount(index, minlength=_BINS)

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(_BINS, np.int64)
        self.counts[_BINS // 4 : 3 * _BINS // 4] = pairs
        self.exponent = (self.exponent or 0) + 1

    def histogram(self) -> Histogram | None:
        """The bins from the first to the last that holds something, at most a screenful."""
        if self.exponent is None:
            return None
        while True:
            used = np.flatnonzero(self.counts)
            first, last = int(used[0]), int(used[-1])
            if last - first < _MOST_BARS:
                break
            self._double()
        width = math.ldexp(1.0, self.exponent)
        counts = tuple(int(count) for count in self.counts[first : last + 1])
        return Histogram((first - _BINS // 2) * width, width, counts)


def _bars(found: Histogram) -> list[str]:
    largest, total = max(found.counts), sum(found.counts)
    rows = []
    for number, count in enumerate(found.counts):
        bar = "#" * math.ceil(_BAR * count / largest)
        rows.append((f"{found.start + number * found.width:.4g}", f"{count:,}", f"{100 * count / total:.2f} %", bar))
    return table(("values from", "count", "share", ""), rows, right={0, 1, 2}).splitlines()
