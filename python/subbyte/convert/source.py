"""What a conversion starts from: a Hugging Face checkpoint or a GGUF file, seen as recipes and metadata."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from subbyte.arch import ARCHITECTURES, Architecture, find_architecture
from subbyte.arch.base import (
    EXPERTS,
    MAX_LAYERS,
    Config,
    Split,
    integer,
    interleave_heads,
    layer_count,
    rope_parameters,
    rope_type,
)
from subbyte.convert.layers import Layers, layer_rows
from subbyte.convert.manifest import SUFFIX as MANIFEST_SUFFIX
from subbyte.convert.recipe import Recipe, computed
from subbyte.convert.rows import ByteRange, Mxfp4, Reordered, Reshaped, Rows, Selected, Shifted, SourceTensor, stacked
from subbyte.convert.types import Raw
from subbyte.errors import FormatError, IoError, UnsupportedError
from subbyte.ggml import TYPES
from subbyte.io import load_json
from subbyte.io.gguf import GgufFile, GgufValue
from subbyte.io.remote import Place, RemotePath
from subbyte.io.safetensors import SafetensorsFile, check_whole
from subbyte.jsonfile import read_object, read_object_if_there
from subbyte.paths import utf8
from subbyte.planning.mix import Model
from subbyte.sidefiles.card import LISTS, general_keys, read_card, titled
from subbyte.sidefiles.copied import with_side_files, without_place
from subbyte.tokenizer import tokenizer_keys


@dataclass(slots=True)
class Source:
    """A model to convert.

    Attributes:
        path: what the user named.
        format: ``"safetensors"`` or ``"gguf"``.
        recipes: the tensors of the target, in the order of the source.
        metadata: keys of the target; those that tell the file type are set by the plan.
        model: hyper-parameters for the mixes.
        no_model: why the file is no model whose tensors could change their types; empty where it is one.
        unknown: tensors the architecture does not have.
        left_out: tensors that are not stored, with the reason.
        not_copied: files of the source that are not stored, with the reason.
        warnings: everything a user should know, each naming its tensor or file.
        files: local files that are read.
        remote: size and version by name of the remote files that are read.
        base: id or name of the model, for the card of a quantized form.
    """

    path: Place
    format: str
    recipes: list[Recipe]
    metadata: dict[str, GgufValue]
    model: Model
    no_model: str = ""
    unknown: frozenset[str] = frozenset()
    left_out: list[tuple[str, str]] = field(default_factory=list)
    not_copied: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    remote: dict[str, list[str | int]] = field(default_factory=dict)
    base: str = ""


_SIDE_FILES = (".json", ".model", ".safetensors", ".jinja", ".txt")


def _is_side_file(name: str) -> bool:
    return name.endswith(_SIDE_FILES) and not name.endswith(MANIFEST_SUFFIX)


def open_source(path: Place, pre: str | None = None) -> Source:
    """The model at ``path``: a checkpoint folder, its index or safetensors file, or a GGUF file; remote ones too.

    ``pre`` is the value of ``tokenizer.ggml.pre``; ``None`` derives it from the tokenizer.

    Raises:
        FormatError: the files are damaged or contradict each other.
        UnsupportedError: an architecture or a format that cannot be converted (yet).
        IoError: a file cannot be read.
    """
    if is_checkpoint(path):
        return _checkpoint(path, pre)
    if is_gguf(path):
        return _gguf(path)
    raise UnsupportedError(
        "expected a checkpoint folder, a .safetensors file with its config.json, or a GGUF file", file=path
    )


def is_checkpoint(path: Place) -> bool:
    """Whether a name is that of a checkpoint folder, or of its weights."""
    return path.is_dir() or path.name.endswith((".safetensors", ".safetensors.index.json"))


def is_gguf(path: Place) -> bool:
    """Whether a file is to be opened as GGUF: by its name, else by its first bytes.

    Raises:
        IoError: there is no such file, or it cannot be read.
    """
    if path.suffix == ".gguf" or isinstance(path, RemotePath):
        return path.suffix == ".gguf"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None


def _checkpoint(path: Place, pre: str | None) -> Source:
    check_whole(path)
    with with_side_files(path) as folder:
        source = _read_checkpoint(path, folder, pre)
        source.not_copied = without_place(path, folder)
    if isinstance(path, RemotePath):
        source.files, source.remote = [], path.versions
    return source


def _read_checkpoint(path: Place, folder: Path, pre: str | None) -> Source:
    """The checkpoint whose weights are at ``path``, and everything else in ``folder``."""
    if not (folder / "config.json").is_file():
        raise FormatError("no config.json: not a Hugging Face checkpoint", file=folder)
    config = read_object(folder / "config.json")
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    try:
        arch, filled = find_architecture(config)
        # Experts of gpt-oss are blocks of ggml's own kind, and need no form.
        layers = None if method == "mxfp4" else Layers(path)
        return _from_checkpoint(path, folder, arch, {**filled, **_pooling(folder)}, pre, layers)
    except (FormatError, UnsupportedError) as error:
        error.file = error.file or str(folder)
        raise


_POOLING = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}


def _pooling(folder: Path) -> dict[str, int]:
    """How the sentence encoder in ``folder`` pools its tokens, from the files of sentence-transformers."""
    if not (folder / "modules.json").is_file():
        return {}
    modules = load_json(folder / "modules.json")
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and str(module.get("type")).endswith(".Pooling"):
            settings = read_object_if_there(folder / Path(str(module.get("path"))).name / "config.json")
            for field_name, number in _POOLING.items():
                if settings.get(field_name) is True:
                    return {"pooling_type": number}
    return {}


_OTHER_PARTS = re.compile(
    r"^(mlp|vit\.|vpm\.|siglip2\.|conformer\.|merger\.|resampler\.|sound_encoder\.|sound_projection\.|speech_embeddings\.)"
    r"|visual\.|vision\.|audio\.|talker\.|vision_|audio_|token2wav\.|code2wav\.|projector\.|pre_mm_projector_norm"
    r"|image_newline|view_seperator|patch_embed|patch_merger\.|patch_merge_mlp\.|model\.connector\."
)
"""Names of a multimodal checkpoint's tensors that are not its language model's."""


def _from_checkpoint(
    path: Place, folder: Path, arch: Architecture, config: Config, pre: str | None, layers: Layers | None
) -> Source:
    # Reading bounded chunks keeps the peak of memory down.
    tensors = SafetensorsFile(path, mmap=False) if layers is None else layers.tensors
    vocabulary = tokenizer_keys(folder, dict(config), pre)
    source = Source(path, "safetensors", [], {}, Model(arch.name, layer_count(config)))
    collected = _Collected(arch, config, source, tensors, vocabulary.size, layers)
    for name in collected.order():
        collected.add(name)
    source.recipes = [computed(name, array) for name, array in arch.generated(config).items()] + collected.finish()
    source.unknown = frozenset(collected.unknown)
    tied = config.get("tie_word_embeddings") is True
    present = {recipe.name for recipe in source.recipes}
    if not collected.seen:
        raise FormatError("no tensors")
    missing = arch.missing(layer_count(config), present)
    if "lm_head" in arch.tensors and not tied and "output.weight" not in present:
        missing.append("output.weight")
    source.warnings += [f"tensor '{name}' is missing from the checkpoint" for name in missing]
    shapes = {recipe.name: recipe.shape for recipe in source.recipes if recipe.name not in source.unknown}
    source.warnings += other_shapes(arch, config, shapes, "config.json implies")
    if collected.experts > 1 and not any("_exps." in name for name in present):
        source.warnings.append(f"config.json: {collected.experts:,} experts, the checkpoint has none")
    source.files = [Path(file) for file in tensors.paths]
    source.files += [file for file in folder.iterdir() if file.is_file() and _is_side_file(file.name)]

    source.warnings += vocabulary.warnings
    source.warnings += [] if layers is None else layers.notes
    keys = source.metadata
    keys["general.architecture"] = GgufValue("str", arch.name)
    keys["general.type"] = GgufValue("str", "model")
    keys["general.name"] = GgufValue("str", titled(utf8(folder.resolve().name)))
    card = general_keys(read_card(folder, source.warnings))
    first = [key for key in card if not key.startswith(("general.license", "general.base_model.", *LISTS))]
    keys.update({key: card.pop(key) for key in first})
    keys["general.size_label"] = GgufValue("str", _size_label(source.recipes))
    keys.update(card)
    keys.update(arch.keys(config))
    source.warnings += _lost_scaling(arch, config, keys, present)
    keys["general.quantization_version"] = GgufValue("u32", 2)
    keys.update(arch.vocabulary(config, vocabulary.keys) if vocabulary.keys else {})
    source.model = _model(arch.name, {key: value.value for key, value in keys.items()})
    return source


def _lost_scaling(arch: Architecture, config: Config, keys: Mapping[str, GgufValue], tensors: set[str]) -> list[str]:
    """A warning where the factors of config.json's rotary scaling became neither keys nor tensors."""
    kind = rope_type(rope_parameters(config))
    factors = {"su": "rope_factors_long.weight", "longrope": "rope_factors_long.weight", "llama3": "rope_freqs.weight"}
    if kind in factors:
        stored = factors[kind] in tensors
    else:
        stored = kind == "default" or f"{arch.name}.rope.scaling.type" in keys or "rope_factors_long.weight" in tensors
    if stored:
        return []
    return [
        f"config.json: rotary scaling '{kind}' cannot be stored for {arch.name}, or lacks its factors, and is "
        "left out: programs will treat long texts otherwise than the original"
    ]


_ACTIVATIONS = (".input_scale", ".input_global_scale", ".k_scale", ".v_scale", ".output_scale", ".input_zero_point")


class _Collected:
    """The recipes of a checkpoint while its tensors are looked at one by one."""

    def __init__(
        self,
        arch: Architecture,
        config: Config,
        source: Source,
        tensors: SafetensorsFile,
        n_vocab: int,
        layers: Layers | None,
    ) -> None:
        self.layers: Mapping[str, Any] = {} if layers is None else layers
        self.planes = {} if layers is None else layers.planes
        self.arch, self.config, self.source, self.tensors, self.n_vocab = arch, config, source, tensors, n_vocab
        self.recipes: dict[str, Recipe] = {}
        self.seen: dict[str, str] = {}
        self.unknown: list[str] = []
        self.stacks: dict[str, dict[int, Rows]] = {}
        self.experts = next((integer(config, name) for name in EXPERTS if config.get(name) is not None), 0)

    def order(self) -> list[str]:
        """The checkpoint's names, tensors in MXFP4 first as in the original; their scales come with their codes."""
        if self.layers:
            order = (self.planes.get(name, name) for name in self.tensors)
            return list(dict.fromkeys(order))
        codes = [name for name in self.tensors if name.endswith("_blocks") and self._scales(name) in self.tensors]
        scales = {self._scales(name) for name in codes}
        return codes + [name for name in self.tensors if name not in scales and name not in codes]

    @staticmethod
    def _scales(name: str) -> str:
        return name.removesuffix("_blocks") + "_scales"

    def add(self, name: str) -> None:
        """Find out what becomes of one tensor."""
        plain = self.arch.plain_name(name)
        if "text_config" in self.config:
            plain = plain.replace("language_model.", "")
            if _OTHER_PARTS.search(plain):
                self.source.left_out.append((name, "not a part of the language model"))
                return
        if plain.endswith(".e_score_correction.bias"):
            plain = plain.removesuffix(".bias") + "_bias"
        if self.arch.is_dropped(plain):
            self.source.left_out.append((name, "not used by programs that read GGUF, or computed by them"))
            return
        layer = re.search(r"\.layers\.(\d+)\.", plain)
        if self.arch.drops_further_layers and layer and int(layer[1]) >= layer_count(self.config):
            self.source.left_out.append((name, "a layer that predicts further tokens"))
            return
        if name in self.empty_biases:
            self.source.left_out.append((name, "a bias of zeros that the quantizer added"))
            return
        match = self.arch.match(plain, self.config)
        if match is None and self.layers and self._is_left_out(name):
            return
        stored = self._stored(name)
        if match is None:
            self.unknown.append(name)
            self.source.warnings.append(
                f"tensor '{name}': unknown to architecture {self.arch.name}, copied unchanged; "
                "programs that know every tensor of the model may refuse the file"
            )
            self._put(name, name, stored.shape, stored)
        elif match.name == "output.weight" and self.config.get("tie_word_embeddings") is True:
            self.source.left_out.append((name, "config.json ties it to the embedding"))
        elif match.split is not None:
            self._split(name, stored, match.split)
        elif match.expert is not None:
            self._expert(name, match.name, match.expert, stored)
        else:
            rows = self._whole(match.name, stored)
            cut = isinstance(rows, Selected)
            self._put(match.name, name, rows.shape[1:] if cut else stored.shape, rows)

    @cached_property
    def empty_biases(self) -> set[str]:
        """Biases of quantized layers that are zeros in every block: some quantizers give each layer one."""
        roles: dict[str, list[str]] = {}
        for name in self.tensors:
            if name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in self.layers:
                roles.setdefault(re.sub(r"\.\d+\.", ".N.", name), []).append(name)
        return {
            name
            for names in roles.values()
            if not any(self.tensors.array(name).view(np.uint8).any() for name in names)
            for name in names
        }

    def _is_left_out(self, name: str) -> bool:
        """Whether a tensor that stands beside quantized layers has no place in GGUF."""
        if name.endswith(_ACTIVATIONS):
            self.source.left_out.append((name, "a scale of activations or of the cache, which GGUF has no place for"))
            return True
        return False

    def _stored(self, name: str) -> Rows:
        if isinstance(self.layers, Layers) and name in self.layers:
            return layer_rows(self.layers, name)
        if name.endswith("_blocks") and self._scales(name) in self.tensors:
            codes, scales = (stored_tensor(self.tensors, part, "I8") for part in (name, self._scales(name)))
            try:
                return Mxfp4(codes, scales)
            except FormatError as error:
                error.tensor = name
                raise
        dtype = self.tensors[name].dtype
        if dtype not in TYPES:
            raise UnsupportedError(f"dtype {dtype} cannot be stored in GGUF", tensor=name)
        return stored_tensor(self.tensors, name, dtype)

    def _whole(self, target: str, stored: Rows) -> Rows:
        heads, shift = self.arch.heads_of(target, self.config), self.arch.shift_of(target)
        if heads:
            return _interleaved(stored, heads)
        if self.arch.cuts_embedding and target == "token_embd.weight" and 0 < self.n_vocab < stored.rows:
            return Selected(stored, (1, stored.rows, stored.columns), (slice(0, self.n_vocab), slice(None)))
        unused = self.arch.unused_positions(self.config) if target == "position_embd.weight" else 0
        if 0 < unused < stored.rows:
            return Selected(stored, (1, stored.rows, stored.columns), (slice(unused, None), slice(None)))
        return Shifted(stored, shift) if shift else stored

    def _expert(self, name: str, target: str, expert: int, stored: Rows) -> None:
        if expert >= self.experts:
            raise FormatError(f"config.json has {self.experts} experts", tensor=name)
        stack = self.stacks.setdefault(target, {})
        stack[expert] = stored
        if len(stack) == self.experts:
            try:
                rows = stacked([stack[number] for number in range(self.experts)])
            except FormatError as error:
                error.tensor = target
                raise
            self._put(target, name, (self.experts, *stored.shape), rows)
            del self.stacks[target]

    def _split(self, name: str, stored: Rows, split: Split) -> None:
        expected = split.view if split.shape is None else split.shape
        if stored.shape != tuple(expected):
            raise FormatError(f"shape {stored.shape}, config.json implies {tuple(expected)}", tensor=name)
        for piece in split.pieces:
            if stored.type == "MXFP4" and (piece.swapped or piece.columns != slice(None)):
                raise UnsupportedError("MXFP4 blocks cannot be divided", tensor=name)
            rows = Selected(stored, split.view, (piece.rows, piece.columns), piece.swapped)
            self._put(piece.name, name, rows.shape if split.stacked else rows.shape[1:], rows)

    def _put(self, target: str, name: str, shape: tuple[int, ...], rows: Rows) -> None:
        if target in self.seen:
            raise FormatError(f"tensors '{self.seen[target]}' and '{name}' both become '{target}'")
        if len(target.encode()) > 63:
            raise FormatError(f"tensor '{name}': GGUF names have at most 63 bytes")
        self.seen[target] = name
        self.recipes[target] = Recipe(target, shape, rows)

    def finish(self) -> list[Recipe]:
        """The recipes; refuses stacks that are not complete."""
        for target, stack in self.stacks.items():
            lacking = [number for number in range(self.experts) if number not in stack]
            raise FormatError(f"expert {lacking[0]} of {self.experts} is missing", tensor=target)
        return list(self.recipes.values())


def _interleaved(stored: Rows, heads: int) -> Rows:
    """Rows of a query or key matrix, or the elements of a bias, with rotary pairs side by side."""
    size = stored.columns if len(stored.shape) == 1 else stored.rows
    try:
        order = interleave_heads(size, heads)
    except FormatError as error:
        error.tensor = getattr(stored, "name", None)
        raise
    if len(stored.shape) > 1:
        return Reordered(stored, order)
    return Reshaped(Reordered(Reshaped(stored, (size, 1)), order), (size,))


def stored_tensor(file: SafetensorsFile | GgufFile, name: str, kind: str) -> SourceTensor:
    """A tensor of an open file, to be read as ``kind``.

    Raises:
        UnsupportedError: a type of a GGUF file that has no blocks (those of BitNet's fork).
    """
    tensor = file[name]
    if isinstance(file, GgufFile) and kind not in TYPES:
        raise UnsupportedError(f"{kind} cannot be converted yet", file=tensor.path, tensor=name)
    where = ByteRange(tensor.path, tensor.offset, tensor.nbytes)
    return SourceTensor(name, kind, tuple(tensor.shape), where, _loader(file, name))


def other_shapes(arch: Architecture, config: Config, shapes: Mapping[str, tuple[int, ...]], implied: str) -> list[str]:
    """Warnings for tensors, by their GGUF names, whose shape is not what the settings imply.

    Raises:
        FormatError: a setting that a size comes from is missing, or no size.
    """
    sizes = arch.sizes(config)
    warnings = []
    for name, shape in shapes.items():
        axes = arch.shapes.get(name.removesuffix(".weight").rpartition(".")[2])
        if axes is None or not name.endswith(".weight"):
            continue
        expected = tuple(sizes[axis] for axis in axes)
        if shape != expected:
            warnings.append(f"tensor '{name}': shape {shape}, {implied} {expected}")
    return warnings


def _loader(file: SafetensorsFile | GgufFile, name: str) -> Callable[[int, int], Raw]:
    return lambda start, count: file.read(name, start, count)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _size_label(recipes: Sequence[Recipe]) -> str:
    """Number of parameters with at least two digits: ``100K``, ``6.8M``, ``70B``; of a mixture ``8x7B``.

    A mixture counts one expert's share of the stacked matrices and everything else whole.
    """
    parameters, counts = 0, []
    for recipe in recipes:
        stacked = "_exps." in recipe.name and len(recipe.shape) > 2
        parameters += recipe.elements // (recipe.shape[0] if stacked else 1)
        counts += [recipe.shape[0]] if stacked else []
    experts = f"{sum(counts) // len(counts)}x" if counts else ""
    for exponent, suffix in ((12, "T"), (9, "B"), (6, "M"), (3, "K")):
        if parameters > 10**exponent or exponent == 3:
            value = parameters / 10**exponent
            digits = max(2 - len(str(round(value)).lstrip("0")), 0)
            return f"{experts}{value:.{digits}f}{suffix}"
    raise AssertionError("the last suffix always applies")


def _gguf(path: Place) -> Source:
    file = GgufFile(path, mmap=False)
    arch = file.metadata.get("general.architecture")
    kind = file.metadata.get("general.type", "model")
    metadata = {
        key: GgufValue(file.metadata_types[key], value)
        for key, value in file.metadata.items()
        if not key.startswith("split.")
    }
    recipes = []
    for name, tensor in file.items():
        stored = stored_tensor(file, name, tensor.type)
        recipes.append(Recipe(name, stored.shape, stored))
    if not recipes:
        raise FormatError("no tensors", file=path)
    source = Source(path, "gguf", recipes, metadata, Model("", 0))
    try:
        if kind != "model":
            raise FormatError(f"a GGUF file of type '{kind}' is not a model")
        if not isinstance(arch, str):
            raise FormatError(f"metadata key general.architecture: expected a string, found {arch!r:.80}")
        source.model = _model(arch, file.metadata)
    except FormatError as error:
        source.no_model = error.message
    source.warnings += _gaps(arch, source.model, file)
    if isinstance(path, RemotePath):
        source.remote = path.versions
    else:
        source.files = [Path(entry) for entry in file.paths]
    return source


def _gaps(arch: Any, model: Model, file: GgufFile) -> list[str]:
    """Warnings for tensors that a file of a known architecture lacks, and an embedding of another width."""
    known = next((entry for entry in ARCHITECTURES if entry.name == arch), None)
    if known is None or not 0 < model.n_layer <= MAX_LAYERS:
        return []
    warnings = [f"tensor '{name}' is missing from the file" for name in known.missing(model.n_layer, file)]
    width, embedding = file.metadata.get(f"{arch}.embedding_length"), file.get("token_embd.weight")
    if embedding is not None and width != embedding.shape[-1]:
        warnings.append(f"tensor 'token_embd.weight': shape {tuple(embedding.shape)}, embedding_length is {width}")
    return warnings


def _model(arch: str, metadata: Mapping[str, Any]) -> Model:
    """What the mixes look at, from metadata.

    Raises:
        FormatError: the number of layers is missing.
    """
    layers = metadata.get(f"{arch}.block_count")
    if not isinstance(layers, int):
        raise FormatError(f"metadata key {arch}.block_count: expected a number, found {layers!r}")
    heads, heads_kv = (_per_layer(metadata.get(f"{arch}.attention.head_count{kv}")) for kv in ("", "_kv"))
    return Model(arch, layers, heads, heads_kv or heads, _per_layer(metadata.get(f"{arch}.expert_count")))


def _per_layer(value: Any) -> int:
    """A hyper-parameter that may be one number or one per layer: the first."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        value = value[0] if value else 0
    return _count(value)


def stamp(path: Path) -> list[str | int]:
    """What tells a file from another one and from an edited one without reading it: name, size, modification time.

    Raises:
        IoError: it cannot be looked at.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None
    return [path.name, found.st_size, found.st_mtime_ns]
