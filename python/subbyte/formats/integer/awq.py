"""AWQ checkpoints (AutoAWQ, llm-awq), arXiv 2306.00978: codes of 4 bits in groups of ``g`` input columns.

Weight ``[out, in]``, G = ceil(in / g); by ``version`` (upper or lower case; also called ``format``):

=============  ==================  =======================  ====================  =====================================
version        qweight             qzeros                   scales (F16)          order of codes
=============  ==================  =======================  ====================  =====================================
``gemm``       I32 [in, out / 8]   I32 [G, out / 8]         [G, out]              outputs 8c + (0 2 4 6 1 3 5 7) of word
``gemv``       I32 [out, in / 8]   I32 [out, Z]             [out, 8 Z]            inputs 8c + 0 … 7, groups 8c + 0 … 7
``gemv_fast``  I16 [out / 4, in]   F16 [8 Z, out]           [8 Z, out]            see `FastCodes`
``marlin``     I32 [in / 16, 2     none                     [G, out], permuted    see `subbyte.formats.integer.marlin`
               out]
=============  ==================  =======================  ====================  =====================================

w[o, i] = scales[i / g, o] * (code[o, i] - zero[i / g, o]): the difference is exact, the product is rounded once. Zeros
are stored as they are, 0 to 15; ``gemv_fast`` stores f16(-(scale * zero)) (llm-awq, ``backend: llm-awq``, calls them
``scaled_zeros``), and where those are no multiples of the scale w = code * scale + qzero. Z = ceil(ceil(G / 8) / m) * m
words with m = 1 from g = 128, 2 for 64, 4 for 32; the padding is zero.

Settings: ``bits`` (``w_bit``), ``group_size`` (``q_group_size``), ``version``, ``zero_point``,
``modules_to_not_convert``. The quantizer, in F16: scale = max(max - min, 1e-5) / 15, zero = clamp(-round(min / scale)),
code = clamp(round(w / scale) + zero).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte import _native
from subbyte import planes as _planes
from subbyte.arrays import Array, as_bytes
from subbyte.codec import Encoded
from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats.base import (
    Folder,
    Format,
    Layer,
    encoded,
    setting_bool,
    setting_group_size,
    setting_int,
    setting_text,
    settings,
)
from subbyte.formats.integer import marlin
from subbyte.formats.integer.gptq import module_settings
from subbyte.forms import Affine, Biased, Form, PackedCodes
from subbyte.forms.codes import CodeArray, Codes, laid, pack, unpack
from subbyte.planes import Plane, float_plane, rounded
from subbyte.quantize import Grid, quantized

VERSIONS = ("gemm", "gemv", "gemv_fast", "marlin")
"""Layouts that exist."""

#: Output column of each nibble of a ``gemm`` word, and the nibble of each output column.
_GEMM_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_GEMM_PLACE = np.argsort(_GEMM_ORDER)

#: ``gemv_fast``: column of each code of 32 as stored, and the place of each column.
_FAST_ORDER = np.arange(32).reshape(4, 4, 2).transpose(1, 2, 0).reshape(-1)
_FAST_PLACE = np.argsort(_FAST_ORDER)


@dataclass(frozen=True, eq=False)
class GemmCodes(Codes):
    """Codes whose words hold eight outputs of one input.

    Attributes:
        words: 32-bit integers, shape (in, out / 8).
    """

    words: Array
    bits: int = 4

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        columns, words = self.words.shape
        return words * 8, columns

    def native(self) -> _native.PackedLayer:
        return _native.PackedLayer(as_bytes(np.ascontiguousarray(self.words)), 4, *self.shape, "across")

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        first, end = start // 8, max(-(-stop // 8), start // 8)
        return np.ascontiguousarray(_unpack_gemm(self.words[:, first:end]).T)[start - 8 * first : stop - 8 * first]


@dataclass(frozen=True, eq=False)
class FastCodes(Codes):
    """Codes in the order of AutoAWQ's GEMV-fast and llm-awq.

    Rows are taken in fours and columns in blocks of 64: a block holds 16 words of 16 bits of each row in turn. In every
    32 columns, column 8a + 2b + c (a, b below 4, c below 2) is stored as code 8b + 4c + a.

    Attributes:
        words: 16-bit integers, shape (out / 4, in).
    """

    words: Array
    bits: int = 4

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        fours, columns = self.words.shape
        return fours * 4, columns

    def native(self) -> _native.PackedLayer:
        return _native.PackedLayer(as_bytes(np.ascontiguousarray(self.words)), 4, *self.shape, "fours")

    def unpack(self, rows: slice = slice(None)) -> CodeArray:
        start, stop, _ = rows.indices(self.shape[0])
        first, end = start // 4, max(-(-stop // 4), start // 4)
        columns = self.shape[1]
        blocks = self.words[first:end].reshape(end - first, columns // 64, 4, 16).transpose(0, 2, 1, 3)
        words = np.ascontiguousarray(blocks).reshape(4 * (end - first), columns // 4).view(np.uint32)
        stored = unpack("stream", 4, words, columns).reshape(-1, columns // 32, 32)
        return stored[..., _FAST_PLACE].reshape(-1, columns)[start - 4 * first : stop - 4 * first]


class Awq(Format):
    """The format ``awq``."""

    id = "awq"

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        config, key = _settings(params)
        version = _version(config)
        kind = "I16" if version == "gemv_fast" else ("I32", "U32")
        words = _planes.get(planes, "qweight", kind, (None, None)).data
        if not words.size:
            raise FormatError(f"plane 'qweight' has shape {list(words.shape)}: expected codes")
        scales = _planes.get(planes, "scales", "F16", (None, None))
        if version == "gemm":
            columns, eighth = words.shape
            groups = scales.shape[0]
            _planes.get(planes, "scales", "F16", (None, eighth * 8))
            group_size = setting_group_size(config, columns, groups, key)
            if columns % group_size:
                raise FormatError(f"plane 'qweight' has {columns} rows: expected whole groups of {group_size}")
            qzeros = _planes.get(planes, "qzeros", ("I32", "U32"), (groups, eighth)).data
            zeros = np.ascontiguousarray(_unpack_gemm(qzeros).T).astype(np.int16)
            turned = Plane(np.ascontiguousarray(scales.data.T), "F16")
            return Affine((eighth * 8, columns), GemmCodes(words), turned, zeros, group_size)
        if version == "marlin":
            if "qzeros" in planes:
                raise FormatError("plane 'qzeros' is there, while version 'marlin' of the settings has no zeros")
            _planes.get(planes, "scales", "F16", (None, words.shape[1] // 2))
            return marlin.read(
                Plane(words, "I32"), scales, setting_group_size(config, words.shape[0] * 16, scales.shape[0], key)
            )
        return self._read_gemv(planes, config, key, version, words)

    def _read_gemv(
        self, planes: Mapping[str, Any], config: Mapping[str, Any], key: str, version: str, words: Array
    ) -> Form:
        fast = version == "gemv_fast"
        out, columns = (words.shape[0] * 4, words.shape[1]) if fast else (words.shape[0], words.shape[1] * 8)
        group_size = setting_group_size(config, columns, None, key)
        if columns % (64 if fast else 32) or columns % group_size:
            raise FormatError(
                f"plane 'qweight' has {columns} columns: expected a multiple of {64 if fast else 32} and of the group "
                f"size {group_size}"
            )
        groups = -(-columns // group_size)
        width = zero_words(groups, group_size)
        shape = (out, columns)
        if not fast:
            scales = _planes.get(planes, "scales", "F16", (out, 8 * width))
            qzeros = _planes.get(planes, "qzeros", ("I32", "U32"), (out, width)).data
            zeros = unpack("stream", 4, qzeros, 8 * width)[:, :groups].astype(np.int16)
            used = Plane(np.ascontiguousarray(scales.data[:, :groups]), "F16")
            return Affine(shape, PackedCodes(words, 4, shape), used, zeros, group_size)
        scaled_zeros = "scaled_zeros" if "scaled_zeros" in planes else "qzeros"
        scales, biases = (
            Plane(np.ascontiguousarray(_planes.get(planes, name, "F16", (8 * width, out)).data[:groups].T), "F16")
            for name in ("scales", scaled_zeros)
        )
        found = _integer_zeros(scales, biases)
        if found is None:
            return Biased(shape, FastCodes(words), scales, biases, group_size)
        return Affine(shape, FastCodes(words), scales, found, group_size)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        config, key = _settings(params)
        source = _planes.source(array)
        if source.data.ndim != 2 or not source.data.size:
            raise UnsupportedError(f"AWQ stores matrices; the array has shape {list(source.shape)}")
        out, columns = source.shape
        group_size = setting_group_size(config, columns, None, key)
        if columns % group_size:
            raise UnsupportedError(f"{columns} columns are no whole groups of {group_size}")
        symmetric = _version(config) == "marlin"
        found = quantized(source, params, Grid(4, group_size, symmetric), importance)
        if found is not None:
            return encoded(self.id, self.write(found, params), source.shape, params)
        codes, scales, zeros = _quantize(source.float32(), group_size, symmetric)
        packed = PackedCodes(pack("stream", 4, codes), 4, (out, columns))
        form = Affine((out, columns), packed, float_plane(scales, "F16"), zeros, group_size)
        return encoded(self.id, self.write(form, params), source.shape, params)

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        return 32 if len(shape) == 2 else 0

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        config, key = _settings(params)
        version = _version(config)
        if not isinstance(form, Affine) and not (isinstance(form, Biased) and version == "gemv_fast"):
            return super().write(form, params)
        group_size = setting_group_size(config, form.columns, None, key)
        _check(form, group_size, version)
        if isinstance(form, Biased):
            if form.group_size != group_size or form.signed or form.scales.kind != "F16" or form.biases.kind != "F16":
                raise UnsupportedError(f"biases of another type than F16, or groups of {form.group_size}")
            return _write_fast(form.codes, form.scales, form.biases.data, group_size, config)
        form = form.regrouped(group_size).rescaled("F16")
        if version == "marlin":
            words, scales = marlin.write(form)
            return {"qweight": words, "scales": scales}
        zeros = np.broadcast_to(np.asarray(form.zeros, np.int16), form.scales.shape)
        if zeros.min() < 0 or zeros.max() > 15:
            raise UnsupportedError("a zero point is out of the range of 4 bits")
        if version == "gemm":
            return {
                "qweight": Plane(_lay_gemm(form.codes), "I32"),
                "qzeros": Plane(_pack_gemm(zeros.T.astype(np.uint8)), "I32"),
                "scales": Plane(np.ascontiguousarray(form.scales.data.T), "F16"),
            }
        if version == "gemv":
            width = zero_words(zeros.shape[1], group_size)
            padded = np.zeros((form.rows, 8 * width), np.uint8)
            padded[:, : zeros.shape[1]] = zeros
            scales_padded = np.zeros(padded.shape, np.float16)
            scales_padded[:, : zeros.shape[1]] = form.scales.data
            return {
                "qweight": Plane(np.ascontiguousarray(form.codes.stream()).view(np.int32), "I32"),
                "qzeros": Plane(pack("stream", 4, padded).view(np.int32), "I32"),
                "scales": Plane(scales_padded, "F16"),
            }
        scaled = float_plane(-(form.scales.float32() * zeros.astype(np.float32)), "F16").data
        return _write_fast(form.codes, form.scales, scaled, group_size, config)

    def layers(self, folder: Folder) -> Sequence[Layer]:
        optional = ("qzeros", "scaled_zeros")
        found = []
        for module, tensors in folder.modules(("qweight", "scales"), optional, marker="qweight").items():
            config, _ = module_settings(folder.settings, module)
            qweight = folder.source[tensors["qweight"]]
            if len(qweight.shape) != 2:
                raise FormatError(f"qweight has shape {list(qweight.shape)}: expected a matrix", tensor=qweight.name)
            if not ({"version", "format", "checkpoint_format"} & set(config)) and config.get("backend") != "llm-awq":
                config = config | _guessed(folder, tensors)
            rows, columns = qweight.shape
            version = _version(config)
            shape = {
                "gemm": (columns * 8, rows),
                "gemv": (rows, columns * 8),
                "gemv_fast": (rows * 4, columns),
                "marlin": (columns // 2, rows * 16),
            }[version]
            found.append(Layer(f"{module}.weight", shape, tensors, {"quantization_config": config}))
        folder.note_exceptions(found)
        return found


def _settings(params: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The settings, and the name of the one that holds the group size."""
    config = settings(params)
    setting_int(config, "w_bit" if "w_bit" in config else "bits", 4, allowed=(4,))
    if "q_group_size" in config and config.get("group_size", config["q_group_size"]) != config["q_group_size"]:
        raise FormatError(
            f"settings 'group_size' and 'q_group_size' differ: {config['group_size']!r:.20} and "
            f"{config['q_group_size']!r:.20}"
        )
    return config, "q_group_size" if "q_group_size" in config else "group_size"


def _version(config: Mapping[str, Any]) -> str:
    """The layout that the settings name; ``gemm`` if they name none."""
    said = {
        key: setting_text(config, key).lower()
        for key in ("version", "format", "checkpoint_format")
        if config.get(key) is not None
    }
    if config.get("backend") == "llm-awq":
        said = {"backend": "gemv_fast"}
    if len(set(said.values())) > 1:
        raise FormatError("the settings contradict each other: " + ", ".join(f"{k} is '{v}'" for k, v in said.items()))
    version = next(iter(said.values()), "gemm")
    if version not in VERSIONS:
        raise UnsupportedError(f"AWQ files of version '{version}' cannot be read: expected {', '.join(VERSIONS)}")
    if not setting_bool(config, "zero_point", True) and version != "marlin":
        raise UnsupportedError(f"AWQ version '{version}' without zero points cannot be read")
    return version


def _guessed(folder: Folder, tensors: Mapping[str, str]) -> dict[str, Any]:
    """The version of a module whose settings do not name one, by its shapes."""
    qweight, scales = folder.source[tensors["qweight"]], folder.source[tensors["scales"]]
    if qweight.dtype == "I16":
        return {"version": "gemv_fast"}
    if "qzeros" not in tensors:
        return {"version": "marlin", "zero_point": False}
    outputs = scales.shape[1] if len(scales.shape) == 2 else 0
    return {"version": "gemm" if outputs == qweight.shape[1] * 8 else "gemv"}


def zero_words(groups: int, group_size: int) -> int:
    """32-bit words that hold the zeros of a row of ``gemv``."""
    multiple = 1 if group_size >= 128 else 2 if group_size >= 64 else 4
    words = -(-groups // 8)
    return -(-words // multiple) * multiple


def _unpack_gemm(words: Array) -> CodeArray:
    rows, count = words.shape
    return unpack("aligned", 4, words, count * 8).reshape(rows, count, 8)[..., _GEMM_PLACE].reshape(rows, count * 8)


def _lay_gemm(codes: Codes) -> NDArray[np.int32]:
    if codes.shape[1] % 8 or codes.shape[0] % 8:
        return _pack_gemm(codes.unpack().T)
    return laid(codes.stream(), "across")


def _pack_gemm(codes: CodeArray) -> NDArray[np.int32]:
    rows, columns = codes.shape
    ordered = codes.reshape(rows, columns // 8, 8)[..., _GEMM_ORDER].reshape(rows, columns)
    return pack("aligned", 4, ordered).view(np.int32)


def _integer_zeros(scales: Plane, biases: Plane) -> NDArray[np.int16] | None:
    """The integers whose negative products with the scales are ``biases``; None where there are none."""
    scale, bias = scales.float32(), biases.float32()
    with np.errstate(all="ignore"):
        found = np.rint(np.where(scale == 0, 0, -bias / scale))
        again = rounded(-(scale * found), "F16")
    if not np.all((again == bias) & (found >= 0) & (found <= 15)):
        return None
    return found.astype(np.int16)


def _write_fast(
    codes: Codes, scales: Plane, scaled_zeros: Array, group_size: int, config: Mapping[str, Any]
) -> dict[str, Plane]:
    out, columns = codes.shape
    groups = scales.shape[1]
    stored = codes.unpack().reshape(out, columns // 32, 32)[..., _FAST_ORDER].reshape(out, columns)
    words = pack("stream", 4, stored).view(np.int16).reshape(out // 4, 4, columns // 64, 16).transpose(0, 2, 1, 3)
    planes = {"qweight": Plane(np.ascontiguousarray(words).reshape(out // 4, columns), "I16")}
    of_zeros = "scaled_zeros" if config.get("backend") == "llm-awq" else "qzeros"
    for name, values in (("scales", scales.data), (of_zeros, scaled_zeros)):
        padded = np.zeros((8 * zero_words(groups, group_size), out), np.float16)
        padded[:groups] = values.T
        planes[name] = Plane(padded, "F16")
    return planes


def _check(form: Affine | Biased, group_size: int, version: str) -> None:
    """Refuses what the layout has no room for."""
    if form.codes.bits != 4 or len(form.shape) != 2:
        raise UnsupportedError(f"a weight {list(form.shape)} of {form.codes.bits} bits: AWQ stores matrices of 4 bits")
    if isinstance(form, Affine) and form.group_of is not None:
        raise UnsupportedError("columns are out of order (act-order), which AWQ cannot store")
    rows, columns = {"gemm": (8, 1), "gemv": (1, 32), "gemv_fast": (4, 64), "marlin": (1, 1)}[version]
    if form.rows % rows or form.columns % columns or form.columns % group_size:
        raise UnsupportedError(
            f"a weight {list(form.shape)} in groups of {group_size}: version '{version}' needs rows that {rows} "
            f"divides, and columns that {columns} and the group size divide"
        )


def _quantize(
    values: NDArray[np.float32], group_size: int, symmetric: bool
) -> tuple[CodeArray, NDArray[np.float32], NDArray[np.int16]]:
    """Codes, scales and zeros by AutoAWQ's quantizer, each step rounded to F16."""
    rows, columns = values.shape
    cut = rounded(values, "F16").reshape(rows, columns // group_size, group_size)
    smallest = np.float32(np.float16(1e-5))
    with np.errstate(all="ignore"):
        if symmetric:
            scale = rounded(np.maximum(np.abs(cut).max(2), smallest) / np.float32(7), "F16")
            zero = np.full(scale.shape, 8, np.float32)
        else:
            low, high = cut.min(2), cut.max(2)
            width = np.maximum(rounded(high - low, "F16"), smallest)
            scale = rounded(np.asarray(width / np.float32(15), np.float32), "F16")
            zero = np.clip(-np.rint(rounded(low / scale, "F16")), 0, 15).astype(np.float32)
        codes = np.clip(np.rint(rounded(cut / scale[..., None], "F16")) + zero[..., None], 0, 15)
        return codes.reshape(rows, columns).astype(np.uint8), scale, zero.astype(np.int16)


FORMATS = {"awq": Awq()}
