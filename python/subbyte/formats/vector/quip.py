"""QuIP#: weights rotated by Hadamard transforms, in lattice codebooks (arXiv 2402.04396, Cornell-RelaxML/quip-sharp).

Planes of a layer ``[m, n]``:

==================  ===================  ===========================================================================
plane               type, shape          content
==================  ===================  ===========================================================================
Qidxs               see below            packed codes
SU, SV              F16, [n], [m]        factors of columns and rows, after the rotation
Wscale              float, one           optional, another factor of all rows
codebook_id         I64, one             optional: the codebook, once more
fuse_scales         float, [parts]       optional, of layers that are stored together: a factor for the rows of each
scaleWH             float, [n]           only with ``rescale_WH``: columns are divided by it
A, B                F16, [m, r], [r, n]  only with ``lora_rank`` r: A B is added before the rotation
==================  ===================  ===========================================================================

W = diag(SV) U_m (decoded codes + A B) U_n^T diag(SU), with the transforms of `subbyte.forms.hadamard`. Floats may be
BF16 or F32.

==========  =======  ========================  ==================================================================
codebook    number   Qidxs                     value
==========  =======  ========================  ==================================================================
E8P12       7        I64 [m, n / 32]           E8P
E8P12RVQ3B  18       I64 [m, 3 * n / 64]       E8P + E81B / 2.04
E8P12RVQ4B  17       I64 [m, n / 16]           E8P + another E8P / 3.45
D4          0        U8 [m, n / 4]             four coordinates
HI4B1C      10       I32 [m, n / 8]            code - 7.5
==========  =======  ========================  ==================================================================

``resid_scale_override``, where positive, replaces the divisor. Quotient and sum are rounded to float32, or both to the
16-bit type that is asked for. `subbyte.formats.vector.e8` has the codebooks.

E8P (m a multiple of 16, n of 64) is an array (m / 16, n / 64, 8, 4) of words that is only called [m, n / 32]. Word (I,
J, r, c) has the codes of rows 16 I + 2 r + p, columns 64 J + 16 c + 8 q and the 7 after it, p and q in {0, 1}: byte
p + 2 q is the magnitude, and bit 32 + 4 j + p + 2 q is bit j of the signs. The second plane of E8P12RVQ4B lies right of
the first, that of E8P12RVQ3B too: a byte of row i for every 8 columns. D4: what is stored is the array (n / 16, m, 4)
of codes, 4 codes of a row together. HI4B1C: columns 0, 2, 4, 6, 1, 3, 5, 7 of eight are nibbles of a word from its
highest.

Checkpoints keep the settings in ``quip_params``. ``codebook_version`` is 1 for E8P12 and E8P12RVQ4B and 0 for the
others. ``qkv_proj`` and ``upgate_proj`` hold several weights, one below the other (up above gate), rotated together.

The parameter ``part`` is ``"inner"`` for the decoded codes alone or ``"codes"`` for their numbers (E8P12, D4, HI4B1C).
Encoding takes either: the nearest entry of the codebook, then that of what remains. ``m`` and ``n`` are checked if
given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import planes as _planes
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_bool, setting_int, setting_text
from subbyte.formats.vector import e8
from subbyte.formats.vector.fused import FUSED, part_layers
from subbyte.formats.vector.lattice import D4Indices, E8Indices, NibbleIndices
from subbyte.formats.vector.tables import check_setting, finite
from subbyte.forms import Form, LowRank
from subbyte.forms.vector import Additive, ArrayIndices, Book, Residual, Rotated, RowRange
from subbyte.forms.vector.indices import IndexArray, Indices
from subbyte.planes import FLOATS, Plane


@dataclass(frozen=True)
class _Codebook:
    """One of the codebooks: its number, version, and what ``Qidxs`` is."""

    number: int
    version: int
    kind: str
    weights: int
    """Weights of a code of the first book."""
    columns: tuple[int, int]
    """Columns of ``Qidxs``, for how many of the weight."""
    divisor: float = 0.0


_BOOKS = {
    "E8P12": _Codebook(7, 1, "I64", 8, (1, 32)),
    "E8P12RVQ3B": _Codebook(18, 0, "I64", 8, (3, 64), 2.04),
    "E8P12RVQ4B": _Codebook(17, 1, "I64", 8, (1, 16), 3.45),
    "D4": _Codebook(0, 0, "U8", 4, (1, 4)),
    "HI4B1C": _Codebook(10, 0, "I32", 1, (1, 8)),
}


class Quip(Format):
    """The format ``quip``."""

    id = "quip"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        part = setting_text(params, "part", "weight", allowed=("weight", "inner", "codes"))
        inner = _inner(planes, params, part == "codes")
        if part != "weight":
            return inner
        (rows, columns), rank = inner.shape, setting_int(params, "lora_rank", 0)
        _check_number(planes, params)
        if rank:
            down = finite(planes, "B", shape=(rank, columns))
            inner = LowRank(inner.shape, inner, up=finite(planes, "A", shape=(rows, rank)), down=down)
        row_factors, column_factors = finite(planes, "SV", shape=(rows,)), finite(planes, "SU", shape=(columns,))
        scale = _scale(planes, rows)
        if scale is not None:
            row_factors = _product(row_factors, scale)
        if setting_bool(params, "rescale_WH", False):
            divisor = finite(planes, "scaleWH", shape=(columns,)).float32()
            if not divisor.all():
                raise FormatError("plane 'scaleWH' holds 0, and columns are divided by it")
            column_factors = _product(column_factors, 1 / divisor.astype(np.float64))
        whole = Rotated(inner.shape, inner, columns, rows, row_factors, column_factors)
        return whole if "rows" not in params else _part(planes, params, whole)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        part = setting_text(params, "part", "weight", allowed=("weight", "inner", "codes"))
        if part == "weight":
            return super().encode(array, params=params, importance=importance)
        name, book = _codebook(params)
        if part == "codes":
            source = _planes.plane(array)
            if source.kind[0] not in "IU" or source.data.ndim != 2 or not source.data.size or book.divisor:
                raise ArgumentError(f"codes of {name} of type {source.kind} and shape {list(source.shape)}: expected a "
                                    "matrix of integers, of a codebook without a residual")  # fmt: skip
            limit = 1 << {"E8P12": 16, "D4": 8, "HI4B1C": 4}[name]
            if source.data.min() < 0 or int(source.data.max()) >= limit:
                raise ArgumentError(f"one of the codes is out of the range of {name}, 0 to {limit - 1}")
            codes, rest = source.data.astype(np.uint32), None
        else:
            source = _planes.source(array)
            if source.data.ndim != 2 or not source.data.size or source.shape[1] % book.weights:
                raise UnsupportedError(f"an array of shape {list(source.shape)}: expected a matrix of vectors of "
                                       f"{book.weights}")  # fmt: skip
            codes, rest = _nearest(source.float32().astype(np.float64), name, book, params)
        packed = _pack(name, codes, rest)
        return encoded(self.id, {"Qidxs": packed}, (len(codes), codes.shape[1] * book.weights), params)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        inner: Form = form
        planes: dict[str, Plane] = {}
        if isinstance(form, Rotated) and form.row_factors is not None and form.column_factors is not None:
            inner, planes = form.inner, {"SU": form.column_factors, "SV": form.row_factors}
        if isinstance(form, Rotated) and form.across is not None and (form.down, form.across) != inner.shape:
            return super().write(form, params)
        parts = [inner.main, inner.residual] if isinstance(inner, Residual) else [inner]
        books = [part.books[0] for part in parts if isinstance(part, Additive) and part.scales is None]
        name, book = _codebook(params)
        if (
            len(books) != len(parts)
            or len(parts) != (2 if book.divisor else 1)
            or not all(
                np.array_equal(found.entries.data, want.data) for found, want in zip(books, _tables(name), strict=False)
            )
        ):
            return super().write(form, params)
        if isinstance(inner, Residual) and inner.divisor != _divisor(params, book):
            return super().write(form, params)
        found = [one.indices.unpack() for one in books]
        try:
            planes["Qidxs"] = _pack(name, found[0], found[1] if len(found) > 1 else None)
            read = self.read(planes, params)
        except (ArgumentError, FormatError) as e:
            raise UnsupportedError(f"format '{self.id}': {e.message}") from e
        return planes if type(read) is type(form) else super().write(form, params)

    def layers(self, folder: Folder) -> Sequence[Layer]:
        _, book = _codebook(folder.settings)
        optional = ("Wscale", "codebook_id", "fuse_scales", "scaleWH", "A", "B")
        found: list[Layer] = []
        for module, tensors in folder.modules(("Qidxs", "SU", "SV"), optional, marker="Qidxs").items():
            stored = folder.source[tensors["Qidxs"]]
            if len(stored.shape) != 2 or stored.shape[1] * book.columns[1] % book.columns[0]:
                raise FormatError(f"has shape {list(stored.shape)}, which is none of its codebook", tensor=stored.name)
            shape = (stored.shape[0], stored.shape[1] * book.columns[1] // book.columns[0])
            for plane, size in (("SU", shape[1]), ("SV", shape[0])):
                factors = folder.source[tensors[plane]]
                if factors.shape != (size,):
                    raise FormatError(
                        f"has shape {list(factors.shape)}, but '{stored.name}' {list(stored.shape)} and the codebook "
                        f"'{folder.settings['codebook']}' of quip_params make it [{size}]",
                        tensor=factors.name,
                    )
            if module.rpartition(".")[2] in FUSED:
                found += part_layers(module, shape, tensors, folder)
            else:
                found.append(Layer(f"{module}.weight", shape, tensors, folder.settings))
        return found


def _codebook(params: Mapping[str, Any]) -> tuple[str, _Codebook]:
    name = setting_text(params, "codebook", allowed=_BOOKS)
    book = _BOOKS[name]
    if setting_int(params, "codebook_version", book.version) != book.version:
        raise FormatError(
            f"setting 'codebook_version' is {params['codebook_version']}: expected {book.version} of {name}"
        )
    check_setting(params, "codesz", max(book.weights, 1), f"a code of {name} has weights:")
    if setting_bool(params, "pack_out", False):
        raise UnsupportedError("setting 'pack_out' is true: codes that are packed along rows are not supported")
    return name, book


def _divisor(params: Mapping[str, Any], book: _Codebook) -> float:
    given = params.get("resid_scale_override", -1)
    if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) < 1e30 or 0 < given < 1e-30:
        raise FormatError(f"setting 'resid_scale_override' is {given!r:.60}: expected a number")
    return float(given) if given > 0 else book.divisor


def _tables(name: str) -> list[Plane]:
    """The entries of the books of a codebook."""
    if name == "HI4B1C":
        every = [np.arange(16, dtype=np.float32)[:, None] - np.float32(7.5)]
    elif name == "D4":
        every = [e8.d4()]
    else:
        every = [e8.e8p(), *{"E8P12RVQ3B": [e8.e81b()], "E8P12RVQ4B": [e8.e8p()]}.get(name, [])]
    return [_planes.float_plane(one.reshape(1, 1, len(one), 1, -1), "F16") for one in every]


def _inner(planes: Mapping[str, Any], params: Mapping[str, Any], numbers: bool) -> Form:
    """What the codes say, or the codes."""
    name, book = _codebook(params)
    stored = _planes.get(planes, "Qidxs", book.kind, (None, None)).data
    per, of = book.columns
    rows, columns = stored.shape[0], stored.shape[1] * of // per
    for keys, side in ((("m", "out_features"), rows), (("n", "in_features"), columns)):
        for key in keys:
            check_setting(params, key, side, "plane 'Qidxs' makes it")
    try:
        if not stored.size or stored.shape[1] % per:
            raise FormatError(f"{list(stored.shape)} words: they are none of {name}")
        indices = _indices(np.ascontiguousarray(stored), name, (rows, columns))
    except FormatError as e:
        raise FormatError(f"plane 'Qidxs': {e.message}") from e
    if numbers:
        if len(indices) > 1:
            raise UnsupportedError(f"codes of {name} are no single numbers")
        numbered = np.arange(1 << indices[0].bits, dtype=np.float32).reshape(1, 1, -1, 1, 1)
        return Additive(indices[0].shape, (Book(indices[0], Plane(numbered, "F32")),))
    parts = [
        Additive((rows, columns), (Book(one, entries),)) for one, entries in zip(indices, _tables(name), strict=True)
    ]
    return parts[0] if len(parts) == 1 else Residual((rows, columns), parts[0], parts[1], _divisor(params, book))


def _indices(stored: NDArray[Any], name: str, shape: tuple[int, int]) -> list[Indices]:
    if name == "D4":
        return [D4Indices(stored, 8, shape[1] // 4)]
    if name == "HI4B1C":
        return [NibbleIndices(stored)]
    width = shape[1] // 32
    found: list[Indices] = [E8Indices(np.ascontiguousarray(stored[:, :width]))]
    rest = np.ascontiguousarray(stored[:, width:])
    if name == "E8P12RVQ4B":
        found.append(E8Indices(rest))
    elif name == "E8P12RVQ3B":
        found.append(ArrayIndices(rest.view(np.uint8), 8))
    return found


def _pack(name: str, codes: IndexArray, rest: IndexArray | None) -> Plane:
    """The plane ``Qidxs`` of codes and those of the residual."""
    if name == "D4":
        return Plane(D4Indices.pack(codes), "U8")
    if name == "HI4B1C":
        return Plane(NibbleIndices.pack(codes), "I32")
    words = [E8Indices.pack(codes)]
    if rest is not None:
        second = E8Indices.pack(rest) if name == "E8P12RVQ4B" else np.ascontiguousarray(rest.astype(np.uint8))
        words.append(second.view(np.int64))
    return Plane(np.concatenate(words, axis=1), "I64")


def _nearest(
    values: NDArray[np.float64], name: str, book: _Codebook, params: Mapping[str, Any]
) -> tuple[IndexArray, IndexArray | None]:
    """The codes of a weight, and those of the residual."""
    vectors = values.reshape(len(values), -1, book.weights)
    if name in ("D4", "HI4B1C"):
        return e8.nearest(vectors, _tables(name)[0].float32().reshape(-1, book.weights)), None
    codes = e8.nearest_e8p(vectors)
    if not book.divisor:
        return codes, None
    rest = (vectors - e8.e8p()[codes]) * _divisor(params, book)
    return codes, e8.nearest_e8p(rest) if name == "E8P12RVQ4B" else e8.nearest(rest, e8.e81b())


def _check_number(planes: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Compares the plane ``codebook_id`` with the settings."""
    name, book = _codebook(params)
    found = _planes.optional(planes, "codebook_id", ("I64", "I32"))
    if found is not None and (found.data.size != 1 or int(found.data.reshape(-1)[0]) != book.number):
        raise FormatError(
            f"plane 'codebook_id' holds {found.data.reshape(-1)[:2].tolist()}, but setting 'codebook' is '{name}', "
            f"which is {book.number}"
        )


def _scale(planes: Mapping[str, Any], rows: int) -> NDArray[np.float64] | None:
    """``Wscale``."""
    if "Wscale" not in planes:
        return None
    found = finite(planes, "Wscale", FLOATS)
    if found.data.size != 1:
        raise FormatError(f"plane 'Wscale' has shape {list(found.shape)}: expected one number")
    return np.full(rows, found.float32().reshape(-1)[0], np.float64)


def _product(factors: Plane, others: NDArray[np.float64]) -> Plane:
    with np.errstate(all="ignore"):
        product = (factors.float32() * others).astype(np.float32)
    if not np.isfinite(product).all():
        raise FormatError("the product of planes 'SU', 'SV' and their scales is beyond float32")
    return Plane(product, "F32")


def _part(planes: Mapping[str, Any], params: Mapping[str, Any], whole: Rotated) -> Form:
    """One of the weights that are stored together: the setting ``rows`` has the rows of all, ``index`` says which."""
    sizes = params["rows"]
    if (
        not isinstance(sizes, list | tuple)
        or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes)
        or sum(sizes) != whole.rows
    ):
        raise FormatError(f"setting 'rows' is {sizes!r:.60}: expected the rows of each weight, of {whole.rows}")
    index = setting_int(params, "index", allowed=range(len(sizes)))
    if "fuse_scales" in planes and whole.row_factors is not None:
        scales = finite(planes, "fuse_scales", shape=(len(sizes),)).float32().astype(np.float64)
        factors = _product(whole.row_factors, np.repeat(scales, sizes))
        whole = Rotated(whole.shape, whole.inner, whole.across, whole.down, factors, whole.column_factors)
    return RowRange((sizes[index], whole.columns), whole, sum(sizes[:index]))


FORMATS = {"quip": Quip()}
