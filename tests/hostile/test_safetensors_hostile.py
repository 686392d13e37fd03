"""Hostile safetensors files, indices and folders: each is refused with the class and the words that name its fault."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from builders import U64_BOUNDARIES, safetensors, tensor, written

import subbyte
from subbyte.io import load_json
from subbyte.io.safetensors import SafetensorsFile, write_safetensors

CASES = {
    "an empty file": (b"", subbyte.CorruptError, "0 bytes"),
    "seven bytes": (bytes(7), subbyte.CorruptError, "7 bytes"),
    "an empty header": (safetensors(b""), subbyte.FormatError, "does not begin with"),
    "a header that is an array": (safetensors([]), subbyte.FormatError, "does not begin with"),
    "a header that begins with a space": (safetensors(b" {}"), subbyte.FormatError, "does not begin with"),
    "text after the header": (safetensors(b"{} x"), subbyte.FormatError, "after the end"),
    "a header longer than the file": (safetensors({}, length=3), subbyte.CorruptError, "only 2 follow"),
    "invalid UTF-8": (safetensors(b'{"\xff": 1}'), subbyte.FormatError, "not UTF-8"),
    "a NUL in a name": (
        safetensors({"a\0": tensor("U8", [1], 0, 1)}, b"x"),
        subbyte.FormatError,
        "control character",
    ),
    "a raw newline in a name": (safetensors(b'{"a\n": 1}'), subbyte.FormatError, "control character"),
    "an empty name": (safetensors({"": tensor("U8", [1], 0, 1)}, b"x"), subbyte.FormatError, "empty"),
    "a lone surrogate": (safetensors(b'{"\\ud800": 1}'), subbyte.FormatError, "surrogate"),
    "a duplicate tensor": (
        safetensors(
            '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
            b"xy",
        ),
        subbyte.CorruptError,
        "two tensors have this name",
    ),
    "a duplicate spelled with an escape": (
        safetensors(
            '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        subbyte.CorruptError,
        "two tensors have this name",
    ),
    "a duplicate metadata key": (
        safetensors('{"__metadata__":{"k":"1","k":"2"}}'),
        subbyte.CorruptError,
        "'k' occurs twice",
    ),
    "metadata twice": (safetensors('{"__metadata__":{},"__metadata__":{}}'), subbyte.FormatError, "occurs twice"),
    "metadata that is a number": (safetensors({"__metadata__": {"k": 1}}), subbyte.FormatError, "not a string"),
    "a field twice": (
        safetensors('{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        subbyte.FormatError,
        "dtype occurs twice",
    ),
    "an unknown field": (
        safetensors({"a": {**tensor("U8", [1], 0, 1), "hidden": 1}}, b"x"),
        subbyte.FormatError,
        "unknown field",
    ),
    "a missing field": (
        safetensors({"a": {"dtype": "U8", "shape": []}}),
        subbyte.CorruptError,
        "data_offsets is missing",
    ),
    "an unknown dtype": (safetensors({"a": tensor("F128", [1], 0, 16)}, bytes(16)), subbyte.UnsupportedError, "F128"),
    "three data offsets": (
        safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}', b"x"),
        subbyte.FormatError,
        "more than 2",
    ),
    "one data offset": (
        safetensors('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}', b"x"),
        subbyte.CorruptError,
        "not two numbers",
    ),
    "a negative dimension": (
        safetensors('{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}', b"x"),
        subbyte.FormatError,
        "no integer",
    ),
    "a fractional dimension": (
        safetensors('{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"x"),
        subbyte.FormatError,
        "no integer",
    ),
    "a dimension of 1e999999": (
        safetensors('{"a":{"dtype":"U8","shape":[1e999999],"data_offsets":[0,1]}}', b"x"),
        subbyte.FormatError,
        "no integer",
    ),
    "sixty-five dimensions": (
        safetensors({"a": tensor("U8", [1] * 65, 0, 1)}, b"x"),
        subbyte.FormatError,
        "more than 64",
    ),
    "a product that wraps": (
        safetensors({"a": tensor("U8", [2**32, 2**32], 0, 0)}),
        subbyte.CorruptError,
        "elements",
    ),
    "zero beside huge dimensions": (
        safetensors({"a": tensor("U8", [0, 2**40, 2**40], 0, 0)}),
        subbyte.CorruptError,
        "elements",
    ),
    "offsets that do not span the shape": (
        safetensors({"a": tensor("F32", [2], 0, 4)}, bytes(4)),
        subbyte.CorruptError,
        "do not span the 8 bytes",
    ),
    "reversed offsets": (safetensors({"a": tensor("U8", [1], 1, 0)}, b"x"), subbyte.CorruptError, "do not span"),
    "half a byte": (safetensors({"a": tensor("F4", [3], 0, 2)}, bytes(2)), subbyte.CorruptError, "whole bytes"),
    "an overlap": (
        safetensors({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, bytes(3)),
        subbyte.CorruptError,
        "overlap",
    ),
    "a hole": (
        safetensors({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 2, 3)}, bytes(3)),
        subbyte.CorruptError,
        "hole",
    ),
    "a hole at the start": (safetensors({"a": tensor("U8", [1], 1, 2)}, bytes(2)), subbyte.CorruptError, "hole"),
    "bytes after the last tensor": (
        safetensors({"a": tensor("U8", [1], 0, 1)}, b"xy"),
        subbyte.CorruptError,
        "which has 2 bytes",
    ),
    "data that is cut": (safetensors({"a": tensor("U8", [2], 0, 2)}, b"x"), subbyte.CorruptError, "truncated"),
    "many tensors on one range": (
        safetensors({f"t{i}": tensor("U8", [4], 0, 4) for i in range(1000)}, bytes(4)),
        subbyte.CorruptError,
        "overlap",
    ),
    "deep nesting": (safetensors('{"a":' + "[" * 100_000), subbyte.FormatError, "expected"),
    "a zip with a pickle": (b"PK\x03\x04" + bytes(40), subbyte.UnsupportedError, "pickle"),
    "a bare pickle": (b"\x80\x02}q\x00." + bytes(40), subbyte.UnsupportedError, "pickle"),
    "a GGUF file": (b"GGUF" + bytes(40), subbyte.FormatError, "GGUF file"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(tmp_path: Path, name: str) -> None:
    content, kind, words = CASES[name]
    path = written(tmp_path, "x.safetensors", content)
    with pytest.raises(kind, match=words) as caught:
        SafetensorsFile(path)
    assert type(caught.value) is kind
    assert caught.value.file == str(path)


@pytest.mark.parametrize("value", U64_BOUNDARIES)
@pytest.mark.parametrize("field", ["length", "shape", "begin", "end"])
def test_boundary_values(tmp_path: Path, field: str, value: int) -> None:
    content = {
        "length": lambda: struct.pack("<Q", value) + safetensors({"a": tensor("U8", [5], 0, 5)}, b"hello")[8:],
        "shape": lambda: safetensors({"a": tensor("U8", [value], 0, 5)}, b"hello"),
        "begin": lambda: safetensors({"a": tensor("U8", [5], value or 2, 5)}, b"hello"),
        "end": lambda: safetensors({"a": tensor("U8", [5], 0, value)}, b"hello"),
    }[field]()
    with pytest.raises(subbyte.Error):
        SafetensorsFile(written(tmp_path, "x.safetensors", content))


def test_header_over_the_cap(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(100_000_100)
    with pytest.raises(subbyte.LimitError, match="at most 100000000"):
        SafetensorsFile(path)


def test_bool_other_than_0_and_1(tmp_path: Path) -> None:
    file = SafetensorsFile(written(tmp_path, "x.safetensors", safetensors({"a": tensor("BOOL", [2], 0, 2)}, b"\1\2")))
    with pytest.raises(subbyte.CorruptError, match="neither 0 nor 1"):
        file.array("a")


def index(folder: Path, weight_map: object) -> Path:
    return written(folder, "model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "a\\x.safetensors", "C:x.safetensors", "..",
        ".x.safetensors", "x.bin", "", "x\n.safetensors", "x\0.safetensors", 7, None, ["x.safetensors"],
    ],
)  # fmt: skip
def test_index_that_leaves_the_folder(tmp_path: Path, name: object) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(1, np.float32)})
    (tmp_path / "sub").mkdir()
    with pytest.raises(subbyte.FormatError, match="only files beside the index"):
        SafetensorsFile(index(tmp_path / "sub", {"a": name}))


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "1.safetensors", "b": "1.safetensors"}, "in 2.safetensors|in no shard"),
        ({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}, "in no shard"),
        ({"a": "2.safetensors", "b": "1.safetensors"}, "it is in"),
    ],
)
def test_index_that_lies(tmp_path: Path, weight_map: dict[str, str], words: str) -> None:
    write_safetensors(tmp_path / "1.safetensors", {"a": np.zeros(1, np.float32)})
    write_safetensors(tmp_path / "2.safetensors", {"b": np.zeros(1, np.float32)})
    with pytest.raises(subbyte.CorruptError, match=words):
        SafetensorsFile(index(tmp_path, weight_map))


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    for name in ("1.safetensors", "2.safetensors"):
        write_safetensors(tmp_path / name, {"a": np.zeros(1, np.float32), name: np.zeros(1, np.float32)})
    with pytest.raises(subbyte.CorruptError, match="which one counts"):
        SafetensorsFile(index(tmp_path, {"1.safetensors": "1.safetensors", "2.safetensors": "2.safetensors"}))


@pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": 3}', "{", '{"a":1,"a":2}', "\xff"])
def test_index_that_is_none(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, "model.safetensors.index.json", text.encode("latin-1"))
    with pytest.raises(subbyte.FormatError):
        SafetensorsFile(path)


def test_index_with_a_tensor_twice(tmp_path: Path) -> None:
    text = b'{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}'
    with pytest.raises(subbyte.FormatError, match="'a' occurs twice"):
        SafetensorsFile(written(tmp_path, "model.safetensors.index.json", text))


def test_shard_that_is_no_regular_file(tmp_path: Path) -> None:
    path = index(tmp_path, {"a": "1.safetensors"})
    with pytest.raises(FileNotFoundError):
        SafetensorsFile(path)
    (tmp_path / "1.safetensors").mkdir()
    with pytest.raises(subbyte.FormatError, match="not a regular file"):
        SafetensorsFile(path)
    if hasattr(os, "mkfifo"):
        (tmp_path / "1.safetensors").rmdir()
        os.mkfifo(tmp_path / "1.safetensors")
        with pytest.raises(subbyte.FormatError, match="not a regular file"):
            SafetensorsFile(path)


def test_shard_that_is_a_link(tmp_path: Path) -> None:
    """The Hugging Face cache keeps files as links out of the folder, so links to regular files are followed."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    write_safetensors(blobs / "0123", {"a": np.zeros(1, np.float32)})
    (snapshot / "1.safetensors").symlink_to(blobs / "0123")
    assert list(SafetensorsFile(index(snapshot, {"a": "1.safetensors"}))) == ["a"]


def test_folder_of_pickles(tmp_path: Path) -> None:
    with pytest.raises(subbyte.FormatError, match=r"no \.safetensors file"):
        SafetensorsFile(tmp_path)
    written(tmp_path, "pytorch_model.bin", b"PK\x03\x04")
    with pytest.raises(subbyte.UnsupportedError, match="never read"):
        SafetensorsFile(tmp_path)
    with pytest.raises(subbyte.UnsupportedError, match="never read"):
        SafetensorsFile(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"[" * 65 + b"]" * 65, subbyte.LimitError),
        (b"[" * 1_000_000, subbyte.LimitError),
        (b"9" * 5000, subbyte.FormatError),
        (b'"\xff"', subbyte.FormatError),
        (b'{"a":1', subbyte.FormatError),
        (b"NaN", subbyte.FormatError),
    ],
)
def test_side_file(tmp_path: Path, text: bytes, kind: type[subbyte.Error]) -> None:
    with pytest.raises(kind):
        load_json(written(tmp_path, "config.json", text))


def test_side_file_too_large(tmp_path: Path) -> None:
    path = written(tmp_path, "config.json", b"{}")
    os.truncate(path, subbyte._native.SIDE_FILE_BYTES + 1)
    with pytest.raises(subbyte.LimitError):
        load_json(path)
