"""Importance data: both kinds of files, the bytes of the original quantizer, and what is refused."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA
from subbyte.imatrix import Entry, ImportanceMatrix, load_imatrix, save_imatrix
from subbyte.io.gguf import GgufFile, write_gguf
from subbyte.io.safetensors import SafetensorsFile
from subbyte.planning.plan import make_plan

FOLDER = GOLDEN / "imatrix"
FILES = {kind: FOLDER / f"tiny-llama.imatrix.{kind}" for kind in ("gguf", "dat")}


@pytest.mark.parametrize("kind", FILES)
def test_vectors_equal_those_that_the_original_quantizer_uses(kind: str) -> None:
    data = load_imatrix(FILES[kind])
    want = SafetensorsFile(FOLDER / "tiny-llama.imatrix.decoded.safetensors")
    names = [name for name in want if name.startswith(f"{kind}.")]
    assert {f"{kind}.{name}" for name in data} == set(names)
    for name in names:
        vector = want.array(name)
        got = data.importance(name.removeprefix(f"{kind}."), 1, vector.size)
        assert got.dtype == np.float32
        assert np.array_equal(got[0], vector.reshape(-1))
    assert (data.datasets, data.chunk_count) == (("calib.txt",), 6)


def test_written_files_equal_those_of_the_original(tmp_path: Path) -> None:
    for kind, file in FILES.items():
        save_imatrix(tmp_path / "same", load_imatrix(file), kind=kind)
        assert (tmp_path / "same").read_bytes() == file.read_bytes()
    save_imatrix(tmp_path / "other", load_imatrix(FILES["gguf"]), kind="dat")
    assert (tmp_path / "other").read_bytes() == FILES["dat"].read_bytes()
    save_imatrix(tmp_path / "back", load_imatrix(FILES["dat"]), kind="gguf")
    back = load_imatrix(tmp_path / "back")
    for name, entry in load_imatrix(FILES["dat"]).items():
        assert np.array_equal(back[name].sums / back[name].counts, entry.sums / entry.counts)


@pytest.mark.parametrize(
    ("want", "to", "imatrix"),
    [
        ("tiny-llama.Q4_0-im.gguf", "gguf.q4_0", "tiny-llama.imatrix.gguf"),
        ("tiny-llama.IQ4_NL-imdat.gguf", "gguf.iq4_nl", "tiny-llama.imatrix.dat"),
    ],
)
@pytest.mark.parametrize("source", ["tiny-llama", "tiny-llama-bf16.gguf"])
def test_whole_files_equal_those_of_the_original_quantizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, want: str, to: str, imatrix: str, source: str
) -> None:
    (tmp_path / "gg").mkdir()
    (tmp_path / "gg" / imatrix).write_bytes((FOLDER / imatrix).read_bytes())
    monkeypatch.chdir(tmp_path)  # the file records the name it was given
    golden = GOLDEN.resolve()
    subbyte.convert(golden / "convert" / source, "out.gguf", to=to, imatrix=f"gg/{imatrix}")
    assert Path("out.gguf").read_bytes() == (golden / "quantized" / want).read_bytes()


def stack(rows: int = 3) -> ImportanceMatrix:
    """Two experts with different importance, the third never reached."""
    rng = np.random.default_rng(5)
    sums = rng.random((rows, 64), np.float32) * 100
    counts = np.array([10, 20, 0], np.float32)
    return ImportanceMatrix.of({"blk.0.ffn_up_exps.weight": Entry(sums, counts)}, chunk_count=1, chunk_size=10)


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_each_expert_has_its_own_vector(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(6).standard_normal((3, 32, 64)).astype(np.float32)
    write_gguf(
        tmp_path / "m.gguf",
        {"general.architecture": "llama", "llama.block_count": 1, "llama.expert_count": np.uint32(3)},
        {"blk.0.ffn_up_exps.weight": values, "output.weight": values[0]},
    )
    save_imatrix(tmp_path / "im", stack(), kind=kind)
    subbyte.convert(tmp_path / "m.gguf", tmp_path / "q.gguf", to="gguf.q4_0", imatrix=tmp_path / "im")
    got = GgufFile(tmp_path / "q.gguf").raw("blk.0.ffn_up_exps.weight").reshape(3, 32, -1)
    importance = load_imatrix(tmp_path / "im").importance("blk.0.ffn_up_exps.weight", 3, 64)
    assert np.array_equal(importance[2], np.ones(64, np.float32))
    for expert in range(3):
        want = subbyte.encode("gguf.q4_0", values[expert], importance=importance[expert])["blocks"]
        assert np.array_equal(got[expert], np.asarray(want).reshape(32, -1))
    (tensor,) = (
        t for t in make_plan(tmp_path / "m.gguf", "gguf.q4_0", imatrix=tmp_path / "im").tensors if t.importance
    )
    raw = tensor.recipe.read(20, 70)
    assert np.array_equal(tensor.importance.encode("F32", raw, 64, "Q4_0", 20), got.reshape(96, -1)[20:70])


def test_mixes_that_need_importance_can_be_made_with_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    plan = make_plan(SMALL_LLAMA, "gguf.f16")
    names = {t.name: t.recipe.columns for t in plan.tensors if "blk." in t.name and len(t.shape) > 1}
    entries = {
        name: Entry(rng.random((1, columns), np.float32), np.ones(1, np.float32)) for name, columns in names.items()
    }
    save_imatrix(tmp_path / "im.gguf", ImportanceMatrix.of(entries))
    subbyte.convert(SMALL_LLAMA, tmp_path / "o.gguf", to="gguf.iq2_xxs", imatrix=tmp_path / "im.gguf")
    written = GgufFile(tmp_path / "o.gguf")
    assert "IQ2_XXS" in {tensor.type for tensor in written.values()}
    metadata = written.metadata
    assert metadata["quantize.imatrix.entries_count"] == len(entries)
    lacking = next(name for name in entries if "attn_q" in name)
    del entries[lacking]
    save_imatrix(tmp_path / "less.gguf", ImportanceMatrix.of(entries))
    with pytest.raises(subbyte.ArgumentError, match=f"1 tensors that the imatrix lacks.*{lacking}"):
        subbyte.convert(SMALL_LLAMA, tmp_path / "p.gguf", to="gguf.iq2_xxs", imatrix=tmp_path / "less.gguf")


def test_what_cannot_be_importance_is_refused(tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    base = {n: Entry(e.sums.copy(), e.counts) for n, e in load_imatrix(FILES["gguf"]).items()}
    for value, match in ((np.nan, "nan"), (np.inf, "inf"), (-1.0, "no finite positive")):
        base[name].sums[0, 3] = value
        save_imatrix(tmp_path / "bad", ImportanceMatrix.of(base))
        with pytest.raises(subbyte.NonFiniteError, match=match) as caught:
            subbyte.convert(
                GOLDEN / "convert/tiny-llama", tmp_path / "o.gguf", to="gguf.q4_0", imatrix=tmp_path / "bad"
            )
        assert (caught.value.tensor, caught.value.column) == (name, 3)
    for shape in ((1, 32), (2, 64)):
        base[name] = Entry(np.ones(shape, np.float32), np.ones(shape[0], np.float32))
        save_imatrix(tmp_path / "bad", ImportanceMatrix.of(base))
        with pytest.raises(subbyte.ArgumentError, match="another model"):
            subbyte.convert(
                GOLDEN / "convert/tiny-llama", tmp_path / "o.gguf", to="gguf.q4_0", imatrix=tmp_path / "bad"
            )
    assert not (tmp_path / "o.gguf").exists()


def test_all_zero_vectors_count_as_no_information() -> None:
    data = ImportanceMatrix.of({"a": Entry(np.zeros((2, 4), np.float32), np.array([5, 0], np.float32))})
    assert np.array_equal(data.importance("a", 2, 4), np.ones((2, 4), np.float32))


def test_an_entry_for_the_embedding_of_another_size_is_ignored(tmp_path: Path) -> None:
    entries = dict(load_imatrix(FILES["gguf"])) | {
        "token_embd.weight": Entry(np.ones((1, 7), np.float32), np.ones(1, np.float32))
    }
    save_imatrix(tmp_path / "im", ImportanceMatrix.of(entries))
    tensors = make_plan(GOLDEN / "convert/tiny-llama", "gguf.q4_0", imatrix=tmp_path / "im").tensors
    assert {t.name for t in tensors if t.importance} == set(entries) - {"token_embd.weight"}


def dat(*entries: tuple[bytes, int, int, bytes], count: int | None = None, tail: bytes = b"") -> bytes:
    raw = struct.pack("<i", len(entries) if count is None else count)
    for name, calls, values, body in entries:
        raw += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, values) + body
    return raw + tail


GOOD = (b"a", 1, 2, b"\0" * 8)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\1\0", dat(count=0), dat(GOOD, count=2), dat(GOOD, GOOD), dat((b"a", 1, 3, b"\0" * 8)),
        dat((b"a", 1, -1, b"")), dat((b"a", -1, 2, b"\0" * 8)), dat((b"\xff", 1, 2, b"\0" * 8)), dat(GOOD, tail=b"\1"),
        dat(GOOD, tail=struct.pack("<ii", 1, 9) + b"short"), dat(GOOD, tail=struct.pack("<ii", 1, 4) + b"text\0"),
        dat(count=2**31 - 1), dat((b"a", 1, 2**31 - 1, b"")),
    ],
)  # fmt: skip
def test_damaged_dat_files_are_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "im.dat").write_bytes(raw)
    with pytest.raises(subbyte.FormatError):
        load_imatrix(tmp_path / "im.dat")


def test_without_a_trailer_there_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "im.dat").write_bytes(dat((b"a", 0, 2, struct.pack("<2f", 3, 4))))
    data = load_imatrix(tmp_path / "im.dat")
    assert (data.datasets, data.chunk_count) == ((), 0)
    assert data.importance("a", 1, 2).tolist() == [[3, 4]]


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 4312), value=st.integers(0, 255))
def test_any_changed_byte_is_read_or_refused(tmp_path_factory: Any, at: int, value: int) -> None:
    raw = bytearray(FILES["dat"].read_bytes())
    raw[at] = value
    path = tmp_path_factory.mktemp("im") / "im.dat"
    path.write_bytes(raw)
    try:
        data = load_imatrix(path)
        for name, entry in data.items():
            data.importance(name, 1, entry.sums.size)
    except subbyte.Error:
        pass


@pytest.mark.parametrize("broken", ["type", "size", "pair", "shape", "dtype"])
def test_gguf_files_that_are_no_imatrix_are_refused(tmp_path: Path, broken: str) -> None:
    metadata: dict[str, Any] = {"general.type": "imatrix", "imatrix.datasets": ["x"],
                                "imatrix.chunk_count": np.uint32(1), "imatrix.chunk_size": np.uint32(1)}  # fmt: skip
    tensors = {"a.in_sum2": np.ones((2, 4), np.float32), "a.counts": np.ones((2, 1), np.float32)}
    if broken == "type":
        metadata["general.type"] = "model"
    elif broken == "size":
        del metadata["imatrix.chunk_size"]
    elif broken == "pair":
        del tensors["a.counts"]
    elif broken == "shape":
        tensors["a.counts"] = np.ones((3, 1), np.float32)
    else:
        tensors["a.in_sum2"] = tensors["a.in_sum2"].astype(np.float16)
    write_gguf(tmp_path / "im", metadata, tensors)
    with pytest.raises(subbyte.FormatError):
        load_imatrix(tmp_path / "im")


def test_refusals_of_saving(tmp_path: Path) -> None:
    good = stack()
    with pytest.raises(subbyte.ArgumentError, match="unknown kind"):
        save_imatrix(tmp_path / "x", good, kind="npz")
    with pytest.raises(subbyte.ArgumentError, match="no entries"):
        save_imatrix(tmp_path / "x", ImportanceMatrix.of({}))
    bad = ImportanceMatrix.of({"a": Entry(np.ones((2, 4), np.float32), np.ones(3, np.float32))})
    with pytest.raises(subbyte.ArgumentError, match="counts"):
        save_imatrix(tmp_path / "x", bad)
    with pytest.raises(subbyte.Error):
        load_imatrix(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_a_file_can_be_written_over_itself(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "im"
    path.write_bytes(FILES["dat"].read_bytes())
    before = load_imatrix(FILES["dat"])
    save_imatrix(path, load_imatrix(path), kind=kind)
    after = load_imatrix(path)
    assert set(after) == set(before)
    for name, entry in before.items():
        assert np.array_equal(after[name].sums, entry.sums)


def test_the_module_is_there_without_an_import_of_its_own() -> None:
    script = "import subbyte; assert subbyte.imatrix.load_imatrix; assert 'imatrix' in dir(subbyte)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importance_data_that_are_not_used_are_mentioned(tmp_path: Path) -> None:
    def warnings(data: dict[str, Entry], to: str) -> list[str]:
        save_imatrix(tmp_path / "im", ImportanceMatrix.of(data))
        found = make_plan(GOLDEN / "convert/tiny-llama", to, imatrix=tmp_path / "im").warnings
        return [warning for warning in found if "imatrix" in warning]

    whole = dict(load_imatrix(FILES["gguf"]))
    assert warnings(whole, "gguf.q4_0") == []
    assert "none gets a type that uses it" in warnings(whole, "gguf.q8_0")[0]
    foreign = {f"other.{name}": entry for name, entry in whole.items()}
    assert f"none of its {len(whole)} entries" in warnings(foreign, "gguf.q4_0")[0]
    lacking = whole.pop("blk.0.attn_q.weight")
    assert "no entry for 1 of the" in warnings(whole, "gguf.q4_0")[0]
    assert "'blk.0.attn_q.weight'" in warnings(whole, "gguf.q4_0")[0]
    whole["blk.0.attn_q.weight"] = Entry(lacking.sums[:, :-1], lacking.counts)
    for to in ("gguf.q4_0", "gguf.q8_0", "gguf.bf16"):
        with pytest.raises(subbyte.ArgumentError, match="another model"):
            warnings(whole, to)
