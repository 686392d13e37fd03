"""Hostile GGUF files: each is refused with the class and the words that name its fault, or accepted for a reason."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from builders import U64_BOUNDARIES, entry, gguf, info, string, written

import subbyte
from subbyte.io.gguf import GgufFile

MALFORMED = Path(__file__).parent.parent / "golden" / "gguf" / "malformed"
EXPECTED = json.loads((MALFORMED / "expected.json").read_text())

#: Why a file of the folder is accepted. Everything else is refused with the class and words given below.
ACCEPTED = {
    "data_last_unpadded": "all bytes of the last tensor are there; padding after it carries nothing",
    "ndims_0": "no dimensions are one element, as both original readers take it",
    "ok_base": "valid",
    "ok_no_tensors": "valid: metadata only",
    "ok_zero_elem": "valid: a dimension of zero makes an empty tensor",
}
REFUSED = {
    "align_0": (subbyte.FormatError, "must be a power of two"),
    "align_3": (subbyte.FormatError, "must be a power of two"),
    "align_arr": (subbyte.FormatError, "general.alignment has type arr"),
    "arr_n_2e61_str": (subbyte.CorruptError, "has room for at most"),
    "arr_n_2e61_u64": (subbyte.CorruptError, "has room for at most"),
    "arr_n_past_eof": (subbyte.CorruptError, "has room for at most"),
    "arr_of_arr": (subbyte.UnsupportedError, "array of arrays"),
    "bool_2": (subbyte.CorruptError, "must be 0 or 1"),
    "dim_bytes_wrap": (subbyte.CorruptError, "too long"),
    "dim_exabyte": (subbyte.CorruptError, "past the file's"),
    "dim_prod_4d_wrap": (subbyte.CorruptError, "more than 2\\^63 - 1 elements"),
    "dim_prod_wrap0": (subbyte.CorruptError, "more than 2\\^63 - 1 elements"),
    "key_dup": (subbyte.CorruptError, "'k' occurs twice"),
    "key_empty": (subbyte.FormatError, "key is empty"),
    "key_nul": (subbyte.FormatError, "control character"),
    "keylen_2e62": (subbyte.CorruptError, "only 224 remain"),
    "magic": (subbyte.FormatError, "not a GGUF file"),
    "name_64": (subbyte.LimitError, "has 64 bytes; GGUF allows 63"),
    "name_empty": (subbyte.FormatError, "name is empty"),
    "name_len_2e63": (subbyte.CorruptError, "remain"),
    "ndims_2e31": (subbyte.CorruptError, "2147483648 dimensions"),
    "nkv_2e40": (subbyte.CorruptError, "1099511627776 metadata keys"),
    "nkv_2e63": (subbyte.CorruptError, "at most 2\\^63 - 1"),
    "ntensors_2e63": (subbyte.CorruptError, "at most 2\\^63 - 1"),
    "ntensors_plus1": (subbyte.FormatError, "tensor 2: "),
    "off_2e64": (subbyte.CorruptError, "expected 0"),
    "off_gap": (subbyte.CorruptError, "data offset 64, expected 32"),
    "off_order": (subbyte.CorruptError, "data offset 32, expected 0"),
    "off_overlap": (subbyte.CorruptError, "data offset 0, expected 32"),
    "row_not_block_multiple": (subbyte.CorruptError, "row of 33"),
    "str_len_2e63": (subbyte.CorruptError, "remain"),
    "str_len_minus1": (subbyte.CorruptError, "remain"),
    "trunc_100": (subbyte.CorruptError, "truncated"),
    "trunc_12": (subbyte.CorruptError, "truncated"),
    "trunc_20": (subbyte.CorruptError, "truncated"),
    "trunc_248": (subbyte.CorruptError, "truncated"),
    "trunc_30": (subbyte.CorruptError, "has room for at most 0"),
    "trunc_60": (subbyte.CorruptError, "has room for at most 1"),
    "type_43": (subbyte.UnsupportedError, "ggml type 43"),
    "type_neg": (subbyte.UnsupportedError, "ggml type -1"),
    "type_removed_4": (subbyte.UnsupportedError, "ggml type 4"),
    "version_00000000": (subbyte.UnsupportedError, "version 0"),
    "version_00000004": (subbyte.UnsupportedError, "version 4"),
    # A version whose low half is zero announces a big-endian file; its counts then cannot be right.
    "version_03000000": (subbyte.CorruptError, "announced"),
    "vtype_neg": (subbyte.CorruptError, "unknown value type -1"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_malformed_golden_file(name: str) -> None:
    path = MALFORMED / f"{name}.gguf"
    if name in ACCEPTED:
        assert EXPECTED[name]["want"] in ("accept", "reject or scalar"), ACCEPTED[name]
        with GgufFile(path) as file:
            for tensor in file:
                file.raw(tensor)
        return
    assert EXPECTED[name]["want"].startswith("reject")
    kind, words = REFUSED[name]
    with pytest.raises(kind, match=words) as caught:
        GgufFile(path)
    assert caught.value.file == str(path)


def test_every_malformed_file_is_judged() -> None:
    assert {path.stem for path in MALFORMED.glob("*.gguf")} == ACCEPTED.keys() | REFUSED.keys() == EXPECTED.keys()


def test_scalar_without_dimensions() -> None:
    with GgufFile(MALFORMED / "ndims_0.gguf") as file:
        name = next(iter(file))
        assert file[name].shape == ()
        assert file.array(name).shape == ()


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def strings(*texts: bytes) -> bytes:
    return struct.pack("<iQ", 8, len(texts)) + b"".join(map(string, texts))


def numbers(kind: int, code: str, *values: float) -> bytes:
    return struct.pack(f"<iQ{len(values)}{code}", kind, len(values), *values)


LLAMA = entry(b"general.architecture", 8, string(b"llama"))
TOKENS = entry(b"tokenizer.ggml.tokens", 9, strings(b"a", b"b", b"c"))

CASES = {
    "alignment above the ceiling": (
        gguf([entry(b"general.alignment", 4, u32(1 << 21))], alignment=1 << 21),
        subbyte.LimitError,
        "at most 1048576",
    ),
    "alignment as u64": (
        gguf([entry(b"general.alignment", 10, struct.pack("<Q", 64))]),
        subbyte.FormatError,
        "must be u32",
    ),
    "version 1": (gguf(version=1), subbyte.UnsupportedError, "version 1"),
    "key that is not UTF-8": (gguf([entry(b"\xff", 4, u32(1))]), subbyte.FormatError, "not UTF-8"),
    "tensor name that is not UTF-8": (
        gguf(infos=[info(b"\xc3", [1], 0, 0)], data=bytes(32)),
        subbyte.FormatError,
        "not UTF-8",
    ),
    "escape sequence in a tensor name": (
        gguf(infos=[info(b"a\x1b[31m", [1], 0, 0)], data=bytes(32)),
        subbyte.FormatError,
        "control character",
    ),
    "five dimensions": (gguf(infos=[info(b"a", [1] * 5, 0, 0)], data=bytes(32)), subbyte.CorruptError, "5 dimensions"),
    "n_dims of nine, one stored": (
        gguf(infos=[info(b"a", [1], 0, 0, n_dims=9)], data=bytes(32)),
        subbyte.CorruptError,
        "9 dimensions",
    ),
    "zero beside huge dimensions": (
        gguf(infos=[info(b"a", [0, 2**40, 2**40], 0, 0)]),
        subbyte.CorruptError,
        "elements",
    ),
    "negative dimension": (gguf(infos=[info(b"a", [2**64 - 1], 0, 0)]), subbyte.CorruptError, "elements"),
    "same name twice": (
        gguf(infos=[info(b"a", [8], 0, 0), info(b"a", [8], 0, 32)], data=bytes(64)),
        subbyte.CorruptError,
        "this name",
    ),
    "bool array with 7": (gguf([entry(b"k", 9, numbers(7, "B", 0, 7))]), subbyte.CorruptError, "neither 0 nor 1"),
    "value type 13": (gguf([entry(b"k", 13, bytes(8))]), subbyte.CorruptError, "unknown value type 13"),
    "element type 13": (
        gguf([entry(b"k", 9, struct.pack("<iQ", 13, 1) + bytes(8))]),
        subbyte.CorruptError,
        "unknown value type 13",
    ),
    "string array whose third string ends outside": (
        gguf([entry(b"k", 9, struct.pack("<iQ", 8, 3) + string(b"a") + string(b"b") + struct.pack("<Q", 1 << 40))]),
        subbyte.CorruptError,
        "remain",
    ),
    "fewer scores than tokens": (
        gguf([TOKENS, entry(b"tokenizer.ggml.scores", 9, numbers(6, "f", 1, 2))]),
        subbyte.CorruptError,
        "scores has 2 entries, tokenizer.ggml.tokens has 3",
    ),
    "token types that are one number": (
        gguf([TOKENS, entry(b"tokenizer.ggml.token_type", 4, u32(1))]),
        subbyte.CorruptError,
        "token_type has u32 entries",
    ),
    "tokens that are numbers": (
        gguf([entry(b"tokenizer.ggml.tokens", 9, numbers(4, "I", 1))]),
        subbyte.CorruptError,
        "expected arr",
    ),
    "token id out of range": (
        gguf([TOKENS, entry(b"tokenizer.ggml.bos_token_id", 4, u32(3))]),
        subbyte.CorruptError,
        "bos_token_id is 3, but there are 3 tokens",
    ),
    "heads for one of two layers": (
        gguf(
            [
                LLAMA,
                entry(b"llama.block_count", 4, u32(2)),
                entry(b"llama.attention.head_count_kv", 9, numbers(4, "I", 8)),
            ]
        ),
        subbyte.CorruptError,
        "1 entries for 2 layers",
    ),
    "20,000 tensors on the same bytes": (
        gguf(infos=[info(b"t%d" % i, [8], 0, 0) for i in range(20_000)], data=bytes(32)),
        subbyte.CorruptError,
        "expected 32",
    ),
    "2^20 + 1 tensors": (
        gguf(infos=[info(b"%x" % i, [0], 0, 0) for i in range(2**20 + 1)]),
        subbyte.LimitError,
        "at most 1048576",
    ),
    "an empty file": (b"", subbyte.CorruptError, "truncated"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(tmp_path: Path, name: str) -> None:
    content, kind, words = CASES[name]
    with pytest.raises(kind, match=words) as caught:
        GgufFile(written(tmp_path, "x.gguf", content))
    assert type(caught.value) is kind


def test_no_token_is_minus_one(tmp_path: Path) -> None:
    content = gguf([TOKENS, entry(b"tokenizer.ggml.padding_token_id", 4, u32(2**32 - 1))])
    assert GgufFile(written(tmp_path, "x.gguf", content)).metadata["tokenizer.ggml.padding_token_id"] == 2**32 - 1


@pytest.mark.parametrize("value", [v for v in U64_BOUNDARIES if v > 1])
@pytest.mark.parametrize("field", ["n_kv", "n_tensors", "dimension", "offset", "string", "array", "key"])
def test_boundary_values(tmp_path: Path, field: str, value: int) -> None:
    number = struct.pack("<Q", value)
    key, tensor = entry(b"k", 4, u32(1)), info(b"a", [8], 0, 0)
    content = {
        "n_kv": lambda: gguf([key], n_kv=value),
        "n_tensors": lambda: gguf([key], [tensor], bytes(32), n_tensors=value),
        "dimension": lambda: gguf([key], [info(b"a", [value], 0, 0)], bytes(32)),
        "offset": lambda: gguf([key], [info(b"a", [8], 0, value)], bytes(32)),
        "string": lambda: gguf([entry(b"k", 8, number)]),
        "array": lambda: gguf([entry(b"k", 9, struct.pack("<i", 0) + number)]),
        "key": lambda: gguf([number + b"k"]),
    }[field]()
    with pytest.raises(subbyte.Error):
        GgufFile(written(tmp_path, "x.gguf", content))


def test_not_a_regular_file(tmp_path: Path) -> None:
    with pytest.raises(subbyte.FormatError, match="not a regular file"):
        GgufFile(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.gguf")
        with pytest.raises(subbyte.FormatError, match="not a regular file"):
            GgufFile(tmp_path / "pipe.gguf")
    with pytest.raises(FileNotFoundError) as caught:
        GgufFile(tmp_path / "missing.gguf")
    assert isinstance(caught.value, subbyte.Error)


def split(no: int, count: int, tensors: int) -> list[bytes]:
    return [
        entry(b"split.no", 2, struct.pack("<H", no)),
        entry(b"split.count", 2, struct.pack("<H", count)),
        entry(b"split.tensors.count", 5, struct.pack("<i", tensors)),
    ]


def one(name: bytes) -> list[bytes]:
    return [info(name, [8], 0, 0)]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ((0, 2, 3), (1, 2, 3), "the shards hold 2 tensors, split.tensors.count announces 3"),
        ((0, 2, 2), (0, 2, 2), "split.no is 0, expected 1"),
        ((0, 2, 2), (1, 3, 2), "split.count is 3, expected 2"),
        ((0, 3, 2), (1, 3, 2), "the name says shard 1 of 2"),
        ((1, 2, 2), (1, 2, 2), "the name says shard 1 of 2, the metadata says 2 of 2"),
        ((0, 2, -2), (1, 2, 2), "split.tensors.count is no non-negative integer"),
    ],
)
def test_contradictory_shards(
    tmp_path: Path, first: tuple[int, int, int], second: tuple[int, int, int], words: str
) -> None:
    path = written(tmp_path, "m-00001-of-00002.gguf", gguf(split(*first), one(b"a"), bytes(32)))
    written(tmp_path, "m-00002-of-00002.gguf", gguf(split(*second), one(b"b"), bytes(32)))
    with pytest.raises(subbyte.CorruptError, match=words):
        GgufFile(path)


def test_shards_that_share_a_name_or_are_missing(tmp_path: Path) -> None:
    path = written(tmp_path, "m-00001-of-00002.gguf", gguf(split(0, 2, 2), one(b"a"), bytes(32)))
    with pytest.raises(FileNotFoundError, match="m-00002-of-00002"):
        GgufFile(path)
    second = written(tmp_path, "m-00002-of-00002.gguf", gguf(split(1, 2, 2), one(b"a"), bytes(32)))
    with pytest.raises(subbyte.CorruptError, match="two shards"):
        GgufFile(path)
    with pytest.raises(subbyte.FormatError, match=r"open the first one, 'm-00001-of-00002\.gguf'"):
        GgufFile(second)
    renamed = written(tmp_path, "renamed.gguf", path.read_bytes())
    with pytest.raises(subbyte.FormatError, match="rename the shards back"):
        GgufFile(renamed)
