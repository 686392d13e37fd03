"""What a conversion starts from: a Hugging Face checkpoint or a GGUF file, seen as recipes and metadata."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from subbyte.arch import Architecture, find_architecture
from subbyte.arch.base import Config, common_keys, layer_count
from subbyte.convert.mix import Model
from subbyte.convert.recipe import ByteRange, Part, Raw, Recipe, SourceTensor, computed
from subbyte.errors import ArgumentError, FormatError, IoError, UnsupportedError
from subbyte.ggml import TYPES
from subbyte.io import same_file
from subbyte.io.gguf import GgufFile, GgufValue
from subbyte.io.safetensors import SafetensorsFile
from subbyte.jsonfile import read_object
from subbyte.tokenizer import tokenizer_keys


@dataclass(slots=True)
class Source:
    """A model to convert.

    Attributes:
        path: what the user named.
        format: ``"safetensors"`` or ``"gguf"``.
        recipes: the tensors of the target, in the order of the source.
        metadata: keys of the target; ``general.file_type`` and ``general.quantization_version`` are set by the plan.
        model: hyper-parameters for the mixes.
        unknown: tensors the architecture does not have.
        left_out: tensors that are not stored, with the reason.
        warnings: everything a user should know, each naming its tensor or file.
        files: files that are read.
    """

    path: Path
    format: str
    recipes: list[Recipe]
    metadata: dict[str, GgufValue]
    model: Model
    unknown: frozenset[str] = frozenset()
    left_out: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


_SIDE_FILES = (".json", ".model", ".safetensors", ".jinja", ".txt")


def open_source(path: Path) -> Source:
    """The model at ``path``: a checkpoint folder, its index or safetensors file, or a GGUF file.

    Raises:
        FormatError: the files are damaged or contradict each other.
        UnsupportedError: an architecture or a format that cannot be converted (yet).
        IoError: a file cannot be read.
    """
    if path.is_dir() or path.name.endswith((".safetensors", ".safetensors.index.json")):
        return _checkpoint(path)
    if is_gguf(path):
        return _gguf(path)
    raise UnsupportedError(
        "expected a checkpoint folder, a .safetensors file with its config.json, or a GGUF file", file=path
    )


def is_gguf(path: Path) -> bool:
    """Whether a file is to be opened as GGUF: by its name, else by its first bytes.

    Raises:
        IoError: there is no such file, or it cannot be read.
    """
    if path.suffix == ".gguf":
        return True
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None


def _checkpoint(path: Path) -> Source:
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.json").is_file():
        raise FormatError("no config.json: not a Hugging Face checkpoint", file=folder)
    config = read_object(folder / "config.json")
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        method = quantization.get("quant_method", "unknown")
        raise UnsupportedError(f"a checkpoint quantized with '{method}' cannot be converted (yet)", file=folder)
    try:
        arch, filled = find_architecture(config)
        return _from_checkpoint(path, folder, arch, filled)
    except (FormatError, UnsupportedError) as error:
        error.file = error.file or str(folder)
        raise


def _from_checkpoint(path: Path, folder: Path, arch: Architecture, config: Config) -> Source:
    tensors = SafetensorsFile(path, mmap=False)  # reading bounded chunks keeps the peak of memory down
    layers = layer_count(config)
    heads = {key: config.get(name) for key, name in (("q", "num_attention_heads"), ("kv", "num_key_value_heads"))}
    model = Model(arch.name, layers, _count(heads["q"]), _count(heads["kv"]), _count(config.get("num_local_experts")))
    source = Source(path, "safetensors", [], {}, model)
    source.recipes += [computed(name, array) for name, array in arch.generated(config).items()]
    tied = config.get("tie_word_embeddings") is True
    seen: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        if arch.is_dropped(name):
            source.left_out.append((name, "a buffer that is computed when the model is loaded"))
            continue
        target = arch.gguf_name(name, layers)
        if target == "output.weight" and tied:
            source.left_out.append((name, "config.json ties it to the embedding"))
            continue
        if target is None:
            unknown.append(target := name)
            source.warnings.append(
                f"tensor '{name}': unknown to architecture {arch.name}, copied unchanged; "
                "programs that know every tensor of the model may refuse the file"
            )
        if target in seen:
            raise FormatError(f"tensors '{seen[target]}' and '{name}' both become '{target}'")
        if len(target.encode()) > 63:
            raise FormatError(f"tensor '{name}': GGUF names have at most 63 bytes")
        if tensor.dtype not in TYPES:
            raise UnsupportedError(f"dtype {tensor.dtype} cannot be stored in GGUF", tensor=name)
        seen[target] = name
        where = ByteRange(Path(tensor.path), tensor.offset, tensor.nbytes)
        stored = SourceTensor(name, tensor.dtype, tuple(tensor.shape), where, _loader(tensors, name))
        interleaved = arch.heads_of(target, config) if target not in unknown else 0
        source.recipes.append(Recipe(target, stored.shape, (Part(stored, interleaved),)))
    source.unknown = frozenset(unknown)
    if not seen:
        raise FormatError("no tensors")
    expected = arch.expected(layers) + ([] if tied else ["output.weight"])
    source.warnings += [f"tensor '{name}' is missing from the checkpoint" for name in expected if name not in seen]
    source.warnings += _other_shapes(arch, config, source)
    source.files = [Path(file) for file in tensors.paths]
    source.files += [file for file in folder.iterdir() if file.is_file() and file.suffix in _SIDE_FILES]

    vocabulary = tokenizer_keys(folder, dict(config))
    source.warnings += vocabulary.warnings
    if vocabulary.keys:
        arch.vocabulary(config, vocabulary.keys)
    keys = source.metadata
    keys["general.architecture"] = GgufValue("str", arch.name)
    keys["general.type"] = GgufValue("str", "model")
    keys["general.name"] = GgufValue("str", _title(folder.resolve().name))
    keys["general.size_label"] = GgufValue("str", _size_label(sum(recipe.elements for recipe in source.recipes)))
    keys.update(common_keys(config, arch.name))
    keys["general.file_type"] = GgufValue("u32", 0)
    keys.update(arch.keys(config))
    keys["general.quantization_version"] = GgufValue("u32", 2)
    keys.update(vocabulary.keys)
    return source


def _other_shapes(arch: Architecture, config: Config, source: Source) -> list[str]:
    """Warnings for tensors whose shape is not what config.json implies."""
    sizes = arch.sizes(config)
    warnings = []
    for recipe in source.recipes:
        axes = arch.shapes.get(recipe.name.removesuffix(".weight").rpartition(".")[2])
        if axes is None or recipe.name in source.unknown or not recipe.name.endswith(".weight"):
            continue
        expected = tuple(sizes[axis] for axis in axes)
        if recipe.shape != expected:
            warnings.append(f"tensor '{recipe.name}': shape {recipe.shape}, config.json implies {expected}")
    return warnings


def _loader(file: SafetensorsFile | GgufFile, name: str) -> Callable[[int, int], Raw]:
    return lambda start, count: file.read(name, start, count)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _title(folder: str) -> str:
    """The model's name from the folder's: hyphens become spaces, lower-case words get a capital, versions stay."""
    words = folder.replace("-", " ").split()
    return " ".join(
        word.title() if word.islower() and not re.match(r"v\d+(\.\d+)*$|\d", word) else word for word in words
    )


def _size_label(parameters: int) -> str:
    """Number of parameters with at least two digits: ``100K``, ``6.8M``, ``70B``."""
    for exponent, suffix in ((12, "T"), (9, "B"), (6, "M"), (3, "K")):
        if parameters > 10**exponent or exponent == 3:
            value = parameters / 10**exponent
            digits = max(2 - len(str(round(value)).lstrip("0")), 0)
            return f"{value:.{digits}f}{suffix}"
    raise AssertionError("the last suffix always applies")


_REPLACED = ("general.alignment", "general.quantization_version", "general.file_type")


def _gguf(path: Path) -> Source:
    file = GgufFile(path, mmap=False)
    arch = file.metadata.get("general.architecture")
    kind = file.metadata.get("general.type", "model")
    if not isinstance(arch, str) or kind != "model":
        raise UnsupportedError(f"a GGUF file of type '{kind}' is not a model", file=path)
    metadata = {
        key: GgufValue(file.metadata_types[key], value)
        for key, value in file.metadata.items()
        if key not in _REPLACED and not key.startswith("split.")
    }
    layers = file.metadata.get(f"{arch}.block_count")
    if not isinstance(layers, int):
        raise FormatError(f"metadata key {arch}.block_count: expected a number, found {layers!r}", file=path)
    heads, heads_kv = (_per_layer(file.metadata.get(f"{arch}.attention.head_count{kv}")) for kv in ("", "_kv"))
    model = Model(arch, layers, heads, heads_kv or heads, _per_layer(file.metadata.get(f"{arch}.expert_count")))
    recipes = []
    for name, tensor in file.items():
        where = ByteRange(Path(tensor.path), tensor.offset, tensor.nbytes)
        stored = SourceTensor(name, tensor.type, tuple(tensor.shape), where, _loader(file, name))
        recipes.append(Recipe(name, stored.shape, (Part(stored),)))
    if not recipes:
        raise FormatError("no tensors", file=path)
    return Source(path, "gguf", recipes, metadata, model, files=[Path(entry) for entry in file.paths])


def _per_layer(value: Any) -> int:
    """A hyper-parameter that may be one number or one per layer: the first."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        value = value[0] if value else 0
    return _count(value)


def check_target(source: Source, dst: Path, overwrite: bool) -> None:
    """Refuse a target that would destroy its source or, unless ``overwrite``, any file.

    Raises:
        ArgumentError: the target is one of the source's files, a folder, or exists.
    """
    if dst.is_dir():
        raise ArgumentError("a folder; expected the name of a GGUF file to write", file=dst)
    if not dst.exists():
        return
    if any(same_file(dst, path) for path in source.files):
        raise ArgumentError("is a file of the source; the source is never written, choose another name", file=dst)
    if not overwrite:
        raise ArgumentError("exists already; choose another name or allow it to be replaced with overwrite", file=dst)
