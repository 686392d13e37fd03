"""File types (``LLAMA_FTYPE``) and the mixes they stand for: which ggml type every tensor of a model gets.

A file type is not one type: ``Q4_K_M`` keeps some attention and feed-forward tensors at six bits. The choice depends on
the architecture, on the number of layers, heads and experts, and on the order in which the tensors are visited
(:func:`visit_order`), because some rules count the tensors of a class seen so far. The rules here reproduce the choices
of llama.cpp's ``llama-quantize`` (revision 0c1e57098) tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from subbyte.convert.types import FLOATS, quantized
from subbyte.errors import ArgumentError, FormatError, LimitError
from subbyte.formats.patterns import matches
from subbyte.ggml import TYPES


@dataclass(frozen=True, slots=True)
class FileType:
    """One value of ``general.file_type``: its number, its name, and the ggml type most of its tensors get."""

    number: int
    name: str
    base: str


_BASES = {
    (0, "F32"): "F32", (1, "F16"): "F16", (2, "Q4_0"): "Q4_0", (3, "Q4_1"): "Q4_1", (7, "Q8_0"): "Q8_0",
    (8, "Q5_0"): "Q5_0", (9, "Q5_1"): "Q5_1", (10, "Q2_K"): "Q2_K", (11, "Q3_K_S"): "Q3_K", (12, "Q3_K_M"): "Q3_K",
    (13, "Q3_K_L"): "Q3_K", (14, "Q4_K_S"): "Q4_K", (15, "Q4_K_M"): "Q4_K", (16, "Q5_K_S"): "Q5_K",
    (17, "Q5_K_M"): "Q5_K", (18, "Q6_K"): "Q6_K", (19, "IQ2_XXS"): "IQ2_XXS", (20, "IQ2_XS"): "IQ2_XS",
    (21, "Q2_K_S"): "Q2_K", (22, "IQ3_XS"): "IQ3_S", (23, "IQ3_XXS"): "IQ3_XXS", (24, "IQ1_S"): "IQ1_S",
    (25, "IQ4_NL"): "IQ4_NL", (26, "IQ3_S"): "IQ3_S", (27, "IQ3_M"): "IQ3_S", (28, "IQ2_S"): "IQ2_XS",
    (29, "IQ2_M"): "IQ2_S", (30, "IQ4_XS"): "IQ4_XS", (31, "IQ1_M"): "IQ1_M", (32, "BF16"): "BF16",
    (36, "TQ1_0"): "TQ1_0", (37, "TQ2_0"): "TQ2_0", (38, "MXFP4_MOE"): "MXFP4", (39, "NVFP4"): "NVFP4",
    (40, "Q1_0"): "Q1_0", (41, "Q2_0"): "Q2_0",
}  # fmt: skip

FILE_TYPES: Mapping[str, FileType] = {name: FileType(number, name, base) for (number, name), base in _BASES.items()}
"""Every file type by its upper-case name."""

ALIASES: Mapping[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
"""Other names of file types."""


@dataclass(frozen=True, slots=True)
class Model:
    """The hyper-parameters that the mixes look at (``general.architecture`` and the ``ARCH.*`` keys)."""

    arch: str
    n_layer: int
    n_head: int = 0
    n_head_kv: int = 0
    n_expert: int = 0

    @property
    def gqa(self) -> int:
        """Query heads per key/value head."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0


@dataclass(frozen=True, slots=True)
class MixOptions:
    """What the user asked for on top of the file type; type names are upper-case ggml names."""

    pure: bool = False
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    tensor_type: tuple[tuple[str, str], ...] = ()
    importance: bool = False


def file_type(name: str) -> FileType:
    """The file type called ``name`` (any case, aliases such as ``q4_k`` included).

    Raises:
        ArgumentError: there is no such file type.
    """
    upper = name.upper()
    found = FILE_TYPES.get(ALIASES.get(upper, upper))
    if found is None:
        raise unknown_target(f"gguf.{name}")
    return found


def unknown_target(to: str) -> ArgumentError:
    """The error for a target that there is not, with those it may stand for."""
    known = [f"gguf.{name.lower()}" for name in (*FILE_TYPES, *ALIASES)]
    near = get_close_matches(f"gguf.{to.lower().removeprefix('gguf').removeprefix('.')}", known, n=3, cutoff=0.8)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
    return ArgumentError(f"unknown target '{to}': {hint}")


def layer_number(name: str) -> int:
    """The N of a tensor name that starts with ``blk.N.``, otherwise -1."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def visit_order(names: Sequence[str]) -> list[str]:
    """``names`` in the order in which a mixed file visits and stores its tensors: by layer, then by name."""
    return sorted(names, key=lambda name: (layer_number(name), name.encode()))


_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight",
    ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger",
    "a.rvq.codebook", "mm.a.code_embd",
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2",
                                             "decay_w1", "decay_w2", "lerp_fused")),
)  # fmt: skip


def is_quantizable(name: str, shape: Sequence[int]) -> bool:
    """Whether a mix may change the type of the tensor; ``shape`` in NumPy order (leading ones do not count)."""
    dims = 0
    for place, size in enumerate(reversed(shape), start=1):
        if size != 1:
            dims = place
    return (
        dims >= 2
        and name.endswith("weight")
        and name not in ("position_embd.weight", "token_types.weight")
        and not any(part in name for part in _KEPT)
    )


def tensor_class(name: str) -> str:
    """The role of a tensor: OUT, EMB, V, K, Q, O, UP, GATE, DOWN; empty for any other."""
    if name == "output.weight":
        return "OUT"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "EMB"
    for part, found in (
        ("attn_qkv.weight", "V"), ("attn_kv_b.weight", "V"), ("attn_v.weight", "V"), ("attn_k.weight", "K"),
        ("attn_q.weight", "Q"), ("attn_output.weight", "O"), ("ffn_up", "UP"), ("ffn_gate", "GATE"),
        ("ffn_down", "DOWN"),
    ):  # fmt: skip
        if part in name:
            return found
    return ""


def _more(i: int, n: int) -> bool:
    """The layers that get more bits: the first and last eighth, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


_TWO_BIT = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M", "IQ2_S", "IQ2_M")
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip


def _fit(name: str, shape: Sequence[int], chosen: str) -> str:
    """``chosen``, or the type that takes its place where the row length is no multiple of its block."""
    row = shape[-1]
    if row % TYPES[chosen].block == 0:
        return chosen
    if chosen not in _FALLBACK and TYPES[chosen].block != 32:
        raise ArgumentError(
            f"rows of {row} elements do not fit {chosen}, whose blocks hold {TYPES[chosen].block}, and {chosen} has no "
            "fallback; give it another type with tensor_type",
            tensor=name,
        )
    chosen = _FALLBACK.get(chosen, chosen)
    return chosen if row % TYPES[chosen].block == 0 else "F16"


def rule_finds(pattern: str, name: str) -> bool:
    """Whether the expression of a rule is found in a tensor's name; expressions that could run for long are refused.

    Raises:
        ArgumentError: it is no regular expression, or a costly one.
    """
    try:
        return matches(pattern, name, anywhere=True)
    except (FormatError, LimitError) as error:
        raise ArgumentError(f"tensor_type: {error.message}") from None


def overridden(name: str, shape: Sequence[int], options: MixOptions) -> str | None:
    """The type that the user's options give a tensor; ``None`` where they leave it to the file type.

    The types of embedding and output are final; those of rules fall back where the shape does not allow them.
    """
    kind = tensor_class(name)
    if kind == "EMB" and options.token_embedding_type:
        return options.token_embedding_type
    if kind == "OUT" and options.output_tensor_type:
        return options.output_tensor_type
    for pattern, chosen in options.tensor_type:
        if rule_finds(pattern, name):
            return _fit(name, shape, chosen)
    return None


@dataclass(slots=True)
class _Chooser:
    """The state of one walk over a model's tensors."""

    file_type: FileType
    model: Model
    options: MixOptions
    tied: bool
    n_v: int
    seen: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("V", "DOWN", "GATE", "UP"), 0))

    def choose(self, name: str, shape: Sequence[int]) -> str:
        own = overridden(name, shape, self.options)
        if own is not None or self.file_type.base in FLOATS:
            return own or self.file_type.base
        mixed = self.file_type.base if self.options.pure else self._mixed(name, tensor_class(name), shape)
        return _fit(name, shape, mixed)

    def _count(self, kind: str) -> int:
        """The number of tensors of the class visited before this one; visits it."""
        self.seen[kind] += 1
        return self.seen[kind] - 1

    def _layer(self, name: str, kind: str) -> int:
        """The layer index that the feed-forward rules use; visits the tensor."""
        count = self._count(kind)
        if self.model.n_expert <= 1:
            return count
        layer = layer_number(name)
        if not 0 <= layer < self.model.n_layer:
            raise ArgumentError(f"tensor '{name}': expected a name blk.N.… with N below {self.model.n_layer}")
        return layer

    def _mixed(self, name: str, kind: str, shape: Sequence[int]) -> str:
        ftype, base, model = self.file_type.name, self.file_type.base, self.model
        if kind == "OUT" or (kind == "EMB" and self.tied):
            return self._output(shape)
        if ftype == "MXFP4_MOE":
            return "MXFP4" if len(shape) > 2 and shape[-3] > 1 else "Q8_0"
        if kind == "EMB":
            return self._embedding()
        if ftype in _TWO_BIT:
            return self._two_bit(kind)
        if kind == "V":
            return self._value()
        if kind in ("K", "Q"):
            if kind == "K" and model.n_expert == 8:
                return "Q8_0"
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(ftype, base)
        if kind == "DOWN":
            return self._down(self._layer(name, kind))
        if kind == "O":
            return self._attention_output()
        if kind in ("GATE", "UP"):
            i, n = self._layer(name, kind), model.n_layer
            return "IQ3_XXS" if ftype == "IQ3_XS" and n // 8 <= i < 7 * n // 8 else base
        return base

    def _output(self, shape: Sequence[int]) -> str:
        ftype, base = self.file_type.name, self.file_type.base
        if self.options.output_tensor_type:
            return self.options.output_tensor_type
        if ftype == "MXFP4_MOE" or self.model.arch == "falcon" or shape[-1] % TYPES[base].block:
            return "Q8_0"
        if ftype in ("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M"):
            return "Q5_K"
        return base if base == "Q8_0" else "Q6_K"

    def _embedding(self) -> str:
        ftype = self.file_type.name
        if ftype in ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"):
            return "Q2_K"
        if ftype in ("IQ2_S", "IQ2_M", "IQ3_XXS"):
            return "IQ3_S"
        if ftype in ("TQ1_0", "TQ2_0", "Q2_0"):
            return "Q4_K"
        return self.file_type.base

    def _two_bit(self, kind: str) -> str:
        ftype, base, model = self.file_type.name, self.file_type.base, self.model
        better = "IQ3_S" if ftype in ("IQ2_S", "IQ2_M") else "Q2_K"
        if kind == "V":
            self._count(kind)
            return "Q4_K" if model.gqa >= 4 or model.n_expert >= 4 else better
        if kind == "K":
            return "Q4_K" if model.n_expert == 8 else base
        if kind == "DOWN":
            return better if self._count(kind) < model.n_layer // 8 else base
        if kind == "O":
            if model.n_expert == 8:
                return "Q5_K"
            return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(ftype, base)
        return base

    def _value(self) -> str:
        ftype, chosen, model = self.file_type.name, self.file_type.base, self.model
        i, grouped = self._count("V"), self.model.gqa >= 4
        if ftype == "Q2_K":
            chosen = "Q4_K" if grouped else "Q3_K"
        elif ftype == "IQ3_XXS":
            chosen = "Q4_K" if grouped else ("IQ3_XXS" if self.options.importance else "IQ3_S")
        elif (ftype in ("Q2_K_S", "IQ3_XS", "IQ3_S") and grouped) or ftype == "IQ3_M":
            chosen = "Q4_K"
        elif ftype == "Q3_K_M":
            chosen = "Q5_K" if i < 2 else "Q4_K"
        elif ftype == "Q3_K_L" or (ftype in ("IQ4_NL", "IQ4_XS") and grouped):
            chosen = "Q5_K"
        elif ftype in ("Q4_K_M", "Q5_K_M") and _more(i, self.n_v):
            chosen = "Q6_K"
        elif ftype == "Q4_K_S" and i < 4:
            chosen = "Q5_K"
        if (
            model.arch == "llama"
            and model.n_layer == 80
            and model.n_head != model.n_head_kv
            and chosen in ("Q3_K", "Q4_K")
        ):
            chosen = "Q5_K"  # the 70B model shares each value head among eight query heads: it is small and pays off
        return "Q8_0" if model.n_expert == 8 else chosen

    def _down(self, i: int) -> str:
        ftype, base, n = self.file_type.name, self.file_type.base, self.model.n_layer
        falcon, imatrix = self.model.arch == "falcon", self.options.importance
        first = i < n // 8
        if ftype == "Q2_K":
            return "Q3_K"
        if ftype == "Q2_K_S":
            return "Q4_K" if first else base
        if ftype == "IQ3_XXS" and not imatrix:
            return "Q4_K" if first else "Q3_K"
        if ftype == "Q3_K_M":
            return "Q5_K" if i < n // 16 else "Q4_K" if not falcon or _more(i, n) else "Q3_K"
        if ftype == "IQ3_M":
            return "Q4_K" if first or (self.model.n_expert == 8 and _more(i, n)) else base
        if ftype == "Q3_K_L":
            return "Q4_K" if falcon else "Q5_K"
        if ftype == "Q4_K_M":
            if falcon:
                return "Q6_K" if i < n // 16 else "Q5_K" if _more(i, n) else "Q4_K"
            return "Q6_K" if _more(i, n) else base
        if ftype in ("IQ4_NL", "IQ4_XS"):
            return "Q5_K" if first and not imatrix else base
        if ftype == "Q5_K_M":
            return "Q6_K" if _more(i, n) else base
        if ftype == "Q4_K_S":
            return "Q5_K" if first and not falcon else base
        if ftype in ("Q4_0", "Q5_0") and imatrix and first:
            return "Q4_1" if ftype == "Q4_0" else "Q5_1"
        return base

    def _attention_output(self) -> str:
        ftype, base = self.file_type.name, self.file_type.base
        if self.model.arch == "falcon":
            return "Q4_K" if ftype == "Q3_K_L" else base
        if self.model.n_expert == 8:
            raised = (
                "Q2_K",
                "IQ3_XS",
                "IQ3_XXS",
                "Q3_K_S",
                "Q3_K_M",
                "IQ4_NL",
                "Q4_K_S",
                "Q4_K_M",
                "IQ3_S",
                "IQ3_M",
                "IQ4_XS",
            )
            return "Q5_K" if ftype in raised else base
        return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(
            ftype, base
        )


def choose_types(
    tensors: Mapping[str, Sequence[int]], target: FileType, model: Model, options: MixOptions | None = None
) -> dict[str, str | None]:
    """The ggml type of every tensor of a file of type ``target``.

    Args:
        tensors: shape (NumPy order: row length last) by tensor name, of the whole model.
        target: the file type.
        model: the hyper-parameters.
        options: overrides of the user, and whether importance data are used.

    Returns:
        Type by name in visit order; ``None`` where the tensor keeps the type it has.

    Raises:
        ArgumentError: a type was asked for that the tensor's shape does not allow and that has no fallback.
    """
    order = visit_order(list(tensors))
    chooser = _Chooser(
        target,
        model,
        options or MixOptions(),
        tied="output.weight" not in tensors,
        n_v=sum(tensor_class(name) == "V" for name in order),
    )
    return {
        name: chooser.choose(name, tensors[name]) if is_quantizable(name, tensors[name]) else None for name in order
    }


def lacking_importance(target: FileType, types: Mapping[str, str | None]) -> list[str]:
    """The tensors whose chosen type needs importance data.

    IQ2_XXS, IQ2_XS and IQ1_S cannot be computed without; for IQ3_XXS, IQ2_S, IQ1_M (and Q2_K in a Q2_K_S file) the
    result would be unusable, so these are refused too except in token_embd and output, as llama-quantize does.
    """
    poor = {"IQ3_XXS", "IQ2_S", "IQ1_M"} | ({"Q2_K"} if target.name == "Q2_K_S" else set())
    return [
        name
        for name, chosen in types.items()
        if chosen in ("IQ2_XXS", "IQ2_XS", "IQ1_S") or (chosen in poor and tensor_class(name) not in ("OUT", "EMB"))
    ]


def converter_type(name: str, shape: Sequence[int], target: FileType) -> str:
    """The type of a tensor in a file that a Hugging Face checkpoint becomes directly (F32, F16, BF16, Q8_0).

    Vectors, norms, routers, position tables and everything that is no weight stay F32; a row that blocks do not divide
    becomes F16.
    """
    if len(shape) <= 1 or name.endswith("_norm.weight") or not name.endswith((".weight", ".lora_a", ".lora_b")):
        return "F32"
    if any(part in name for part in ("ffn_gate_inp", "position_embd", "token_types", "ssm_conv1d", "shortconv.conv")):
        return "F32"
    base = target.base
    return base if not quantized(base) or shape[-1] % TYPES[base].block == 0 else "F16"
