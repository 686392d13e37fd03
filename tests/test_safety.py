"""A conversion never harms what it reads, notices when that changes, and trusts no manifest further than its hashes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import subbyte
from checkpoints import GOLDEN
from subbyte import _native
from subbyte.convert.journal import journal_path, partial_path
from subbyte.convert.manifest import manifest_path, pending_path, read_manifest

TINY = GOLDEN / "convert" / "tiny-llama"
BF16 = GOLDEN / "convert" / "tiny-llama-bf16.gguf"


@pytest.mark.parametrize("beside", [partial_path, journal_path, manifest_path, pending_path])
@pytest.mark.parametrize("linked", [False, True])
def test_a_source_under_a_name_beside_the_target(tmp_path: Path, beside: Callable[[Path], Path], linked: bool) -> None:
    dst = tmp_path / "x.gguf"
    source = tmp_path / "source.gguf" if linked else beside(dst)
    shutil.copy(BF16, source)
    if linked:
        beside(dst).hardlink_to(source)
    before = source.read_bytes()
    for call in (subbyte.convert, subbyte.plan):
        with pytest.raises(subbyte.ArgumentError, match="the source is never written"):
            call(source, dst, to="gguf.q4_0")
    assert source.read_bytes() == before
    assert not dst.exists()


def test_a_source_folder_under_the_name_of_the_unfinished_one(tmp_path: Path) -> None:
    source = partial_path(tmp_path / "x")
    shutil.copytree(TINY, source)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    with pytest.raises(subbyte.ArgumentError, match="the source is never written"):
        subbyte.convert(source, tmp_path / "x", to="hf.f32")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    dst = tmp_path / "x.gguf"
    journal_path(dst).write_text("my notes\n")
    with pytest.raises(subbyte.ArgumentError, match="is no journal of a conversion"):
        subbyte.convert(TINY, dst, to="gguf.q8_0")
    assert journal_path(dst).read_text() == "my notes\n"
    journal_path(dst).write_text('{"subbyte_jour')  # a run that died at once
    subbyte.convert(TINY, dst, to="gguf.q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.gguf", "x.gguf.subbyte.json"]


def test_importance_data_and_plan_are_never_replaced(tmp_path: Path) -> None:
    imatrix, plan = tmp_path / "im.gguf", tmp_path / "plan.json"
    shutil.copy(GOLDEN / "imatrix" / "tiny-llama.imatrix.gguf", imatrix)
    plan.write_text(json.dumps(subbyte.plan(TINY, to="gguf.q8_0").to_json()))
    before = imatrix.read_bytes(), plan.read_bytes()
    for options in ({"to": "gguf.q4_0", "imatrix": imatrix}, {"plan": plan}):
        for dst in options.values():
            if isinstance(dst, Path):
                with pytest.raises(subbyte.ArgumentError, match="the source is never written"):
                    subbyte.convert(TINY, dst, overwrite=True, **options)  # type: ignore[arg-type]
    assert (imatrix.read_bytes(), plan.read_bytes()) == before


@pytest.mark.parametrize("to", ["gguf.q4_0", "hf.f32"])
def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path, to: str) -> None:
    source, dst = tmp_path / "source.gguf", tmp_path / "out"
    shutil.copy(BF16, source)

    def change(done: int, total: int, name: str) -> None:
        os.utime(source, ns=(0, 1 + source.stat().st_mtime_ns))

    with pytest.raises(subbyte.Error, match=r"source file source\.gguf: changed while it was read"):
        subbyte.convert(source, dst, to=to, progress=change)
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]
    assert not subbyte.convert(source, dst, to=to).unchanged


def test_importance_data_that_change_meanwhile_are_noticed(tmp_path: Path) -> None:
    imatrix = tmp_path / "im.gguf"
    shutil.copy(GOLDEN / "imatrix" / "tiny-llama.imatrix.gguf", imatrix)
    with pytest.raises(subbyte.Error, match=r"im\.gguf: changed while it was read"):
        subbyte.convert(TINY, tmp_path / "out.gguf", to="gguf.q4_0", imatrix=imatrix,
                        progress=lambda *_: os.utime(imatrix, ns=(0, 5)))  # fmt: skip


def test_a_failed_conversion_leaves_no_folder(tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    data = bytearray(BF16.read_bytes())
    data[-64:] = b"\xff" * 64
    source.write_bytes(data)
    (tmp_path / "there").mkdir()
    for folder in ("new/deep", "there"):
        with pytest.raises(subbyte.NonFiniteError):
            subbyte.convert(source, tmp_path / folder / "out.gguf", to="gguf.f32")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["source.gguf", "there"]


@pytest.mark.parametrize("to", ["gguf.q8_0", "hf.bf16"])
@pytest.mark.parametrize("how", ["touched", "copied"])
def test_what_was_touched_or_copied_is_known_by_its_hashes(tmp_path: Path, to: str, how: str) -> None:
    dst = tmp_path / "out"
    subbyte.convert(TINY, dst, to=to)
    if how == "copied":
        shutil.move(dst, tmp_path / "moved")
        (shutil.copytree if to.startswith("hf") else shutil.copy)(
            tmp_path / "moved", dst, **({"copy_function": shutil.copy} if to.startswith("hf") else {})
        )
    for path in dst.rglob("*") if dst.is_dir() else [dst]:
        os.utime(path, ns=(7, 7))
    found = subbyte.report(dst)
    assert found.made["to"] == to
    assert "touched or copied" in found.warnings[-1]
    assert subbyte.verify(dst).ok
    assert subbyte.convert(TINY, dst, to=to).unchanged
    manifest = read_manifest(dst)
    assert manifest is not None
    assert manifest.describes(dst)
    file = dst / "model.safetensors" if dst.is_dir() else dst
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(subbyte.ArgumentError, match="exists already"):
        subbyte.convert(TINY, dst, to=to)


def _edit(dst: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(manifest_path(dst).read_text())
    change(data)
    manifest_path(dst).write_text(json.dumps(data))


def _row(data: dict[str, Any], **values: Any) -> None:
    data["report"]["tensors"][0].update(values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data["report"]["tensors"].pop(0), "the manifest has no hash of it"),
        (lambda data: _row(data, sha256=""), "the manifest has no hash of it"),
        (lambda data: data["files"][""].update(nbytes=1), "the manifest has 1"),
        (lambda data: data["files"].clear(), "the manifest does not have it"),
    ],
)
def test_a_manifest_that_says_less_is_no_proof(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    dst = tmp_path / "out.gguf"
    subbyte.convert(TINY, dst, to="gguf.q8_0")
    _edit(dst, change)
    assert any(says in failure for failure in subbyte.verify(dst).failures)


def test_bytes_after_the_last_tensor_are_noticed(tmp_path: Path) -> None:
    dst = tmp_path / "out.gguf"
    subbyte.convert(TINY, dst, to="gguf.q8_0")
    size = dst.stat().st_size
    dst.write_bytes(dst.read_bytes() + bytes(32))
    assert subbyte.verify(dst).failures == (f"{size + 32:,} bytes, the manifest has {size:,}",)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: _row(data, unit_rows="8"),
        lambda data: _row(data, unit_rows=1.5),
        lambda data: _row(data, unit_rows=-1),
        lambda data: _row(data, unit_rows=True),
        lambda data: _row(data, name=[]),
        lambda data: _row(data, shape=[1, "2"]),
        lambda data: _row(data, seconds="x"),
        lambda data: _row(data, bits_per_weight=float("nan")),
        lambda data: _row(data, nbytes=10**400),
        lambda data: data["report"].update(seconds="x"),
        lambda data: data["report"].update(nbytes="many"),
        lambda data: data["report"].update(left_out=[5]),
        lambda data: data["report"].update(warnings=[5]),
        lambda data: data["report"].update(files={"a": None}),
        lambda data: data["report"].update(src=[]),
        lambda data: data["report"].pop("to"),
        lambda data: data["identity"].pop("subbyte"),
        lambda data: data.update(report={}),
        lambda data: data["files"].update({"": 5}),
    ],
)
def test_a_damaged_manifest_blocks_nothing(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    dst = tmp_path / "out.gguf"
    subbyte.convert(TINY, dst, to="gguf.q8_0")
    _edit(dst, change)
    found = subbyte.report(dst)
    assert found.made == {}
    assert "the manifest is left out" in found.warnings[-1]
    json.dumps(found.to_json(), allow_nan=False)
    assert not subbyte.verify(dst).ok
    assert not subbyte.convert(TINY, dst, to="gguf.q8_0", overwrite=True).unchanged
    assert subbyte.verify(dst).ok


def test_at_every_call_a_crash_leaves_a_file_and_its_own_manifest(tmp_path: Path) -> None:
    dst = tmp_path / "out.gguf"
    nth = 0
    while True:
        nth += 1
        for path in tmp_path.iterdir():
            path.unlink()
        subbyte.convert(TINY, dst, to="gguf.f16")
        _native.fault_arm(nth, 5)
        try:
            subbyte.convert(TINY, dst, to="gguf.q8_0", overwrite=True)
            failed = False
        except OSError:
            failed = True
        finally:
            _native.fault_disarm()
        assert subbyte.verify(dst).ok  # of the old file, or of the new one
        assert subbyte.convert(TINY, dst, to="gguf.q8_0", overwrite=True).nbytes == dst.stat().st_size
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "out.gguf.subbyte.json"]
        if not failed and nth > 40:
            break


@pytest.mark.parametrize("option", ["lossy", "pure", "strict", "overwrite", "fresh", "wait"])
@pytest.mark.parametrize("value", [b"x", "yes", 1, None, []])
def test_options_that_are_no_truth_values(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(subbyte.ArgumentError, match=f"{option}: expected True or False"):
        subbyte.convert(TINY, tmp_path / "o.gguf", to="gguf.q8_0", **{option: value})


@pytest.mark.parametrize("option", ["progress", "cancel"])
def test_callbacks_that_cannot_be_called(tmp_path: Path, option: str) -> None:
    with pytest.raises(subbyte.ArgumentError, match=f"{option}: expected something that can be called"):
        subbyte.convert(TINY, tmp_path / "o.gguf", to="gguf.q8_0", **{option: 5})
    assert not list(tmp_path.iterdir())


def test_a_plan_says_that_the_target_exists(tmp_path: Path) -> None:
    dst = tmp_path / "o.gguf"
    assert "exists" not in subbyte.plan(TINY, dst, to="gguf.q8_0").summary()
    subbyte.convert(TINY, dst, to="gguf.q8_0")
    plan = subbyte.plan(TINY, dst, to="gguf.q8_0")
    assert plan.exists
    assert "exists already, and is replaced with overwrite only" in plan.summary()


@pytest.mark.parametrize("to", ["gguf.q8_0", "hf.f32"])
@pytest.mark.parametrize("dst", [".", "..", "/", "sub/..", "here"])
def test_the_current_folder_and_those_above_are_no_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dst: str, to: str
) -> None:
    here = tmp_path / "above" / "here"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    for overwrite in (False, True):
        with pytest.raises(subbyte.ArgumentError, match="the current folder, or one that holds it"):
            subbyte.convert(TINY, here if dst == "here" else dst, to=to, overwrite=overwrite)
    with pytest.raises(subbyte.ArgumentError, match="the current folder, or one that holds it"):
        subbyte.plan(TINY, here if dst == "here" else dst, to=to)
    assert [path.name for path in tmp_path.rglob("*")] == ["above", "here", "sub"]


def test_a_target_that_ends_in_dots_is_the_folder_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    with pytest.raises(subbyte.ArgumentError, match="a folder; expected the name of a GGUF file"):
        subbyte.convert(TINY, tmp_path / "out" / "sub" / "..", to="gguf.q8_0")
    (tmp_path / "out" / "sub").rmdir()
    (tmp_path / "out").rmdir()
    subbyte.convert(TINY, tmp_path / "out" / "sub" / "..", to="hf.f32")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert subbyte.verify(tmp_path / "out", TINY).ok


@pytest.mark.parametrize("path", [".", "..", "/", "sub/.."])
def test_looks_at_folders_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    for call in (subbyte.report, subbyte.verify):
        with pytest.raises(subbyte.Error):
            call(path)
    subbyte.convert(TINY, tmp_path / "out", to="hf.f32")
    monkeypatch.chdir(tmp_path / "out")
    assert subbyte.report(".").made["to"] == "hf.f32"
    assert subbyte.verify(".").ok
    assert "<h1>out</h1>" in subbyte.report(".").to_html()
    assert subbyte.convert(".", tmp_path / "again.gguf", to="gguf.q8_0").nbytes
