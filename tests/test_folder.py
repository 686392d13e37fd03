"""Checkpoint folders as targets: planned to the byte, resumed, locked, proved, and replaced as a whole."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, llama_tensors
from server import serve
from subbyte import _native, cli
from subbyte.convert.journal import Journal, journal_path, partial_path
from subbyte.convert.manifest import manifest_path, read_manifest
from subbyte.io.safetensors import SafetensorsFile, write_safetensors
from subbyte.planning import folder as folders
from test_resume import Stop, names

UNITS = sys.modules["subbyte.convert.units"]
TINY = GOLDEN / "convert" / "tiny-llama-bf16.gguf"
TO = "hf.f32"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of many units."""
    monkeypatch.setattr(UNITS, "CHUNK", 1 << 9)
    monkeypatch.setattr(folders, "SHARD", 200_000)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder but its manifest, which holds times."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "manifest.subbyte.json"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    dst = tmp_path_factory.mktemp("good") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "SHARD", 200_000)
        subbyte.convert(TINY, dst, to=TO)
    return contents(dst)


def stop(dst: Path, after: int = 20, src: Path = TINY, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        subbyte.convert(src, dst, **{"to": TO, "progress": Stop(after), **options})


@pytest.mark.parametrize("to", ["hf", "hf.bf16", "hf.f16", "hf.f32"])
@pytest.mark.parametrize("source", [TINY, SMALL_LLAMA], ids=["gguf", "folder"])
def test_every_file_has_its_planned_size(tmp_path: Path, source: Path, to: str) -> None:
    dst = tmp_path / "out"
    plan = subbyte.plan(source, dst, to=to)
    assert not list(tmp_path.iterdir())
    report = subbyte.convert(source, dst, to=to)
    sizes = {name: len(data) for name, data in contents(dst).items()}
    assert plan.to_json()["files"] == plan.plan.sizes == report.files == sizes
    assert {"config.json", "model.safetensors.index.json", "tokenizer_config.json"} <= set(sizes)
    assert plan.nbytes == report.nbytes == sum(sizes.values())
    assert [(row.name, row.type, row.nbytes, row.kind) for row in plan.rows] == [
        (row.name, row.type, row.nbytes, row.kind) for row in report.tensors
    ]


def test_the_same_command_goes_on(tmp_path: Path, good: dict[str, bytes]) -> None:
    dst = tmp_path / "out"
    assert sum(name.endswith(".safetensors") for name in good) > 2
    stop(dst)
    assert names(tmp_path) == sorted([journal_path(dst).name, partial_path(dst).name])
    stop(dst, after=150)
    seen: list[int] = []
    report = subbyte.convert(TINY, dst, to=TO, progress=lambda done, *_: seen.append(done))
    assert contents(dst) == good
    assert seen == sorted(seen)
    assert report.resumed == seen[149]
    assert names(tmp_path) == ["out"]


def test_the_same_command_after_success_does_nothing(tmp_path: Path, good: dict[str, bytes]) -> None:
    dst = tmp_path / "out"
    first = subbyte.convert(TINY, dst, to=TO)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in dst.iterdir()}
    again = subbyte.convert(TINY, dst, to=TO)
    assert again.unchanged
    assert again.tensors == first.tensors
    assert again.files == first.files
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in dst.iterdir()} == before
    with pytest.raises(subbyte.ArgumentError, match="exists already"):
        subbyte.convert(TINY, dst, to="hf.bf16")
    assert not subbyte.convert(TINY, dst, to=TO, fresh=True).unchanged
    assert contents(dst) == good
    (dst / "config.json").write_text("{}")  # no longer what the manifest speaks of
    with pytest.raises(subbyte.ArgumentError, match="exists already"):
        subbyte.convert(TINY, dst, to=TO)


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, good: dict[str, bytes]) -> None:
    dst = tmp_path / "out"
    subbyte.convert(SMALL_LLAMA, dst, to="hf.f32")
    subbyte.convert(TINY, dst, to=TO, overwrite=True)
    assert contents(dst) == good
    (dst / "notes.txt").write_text("mine")
    with pytest.raises(subbyte.ArgumentError, match=r"holds 'notes\.txt', which no conversion wrote"):
        subbyte.convert(SMALL_LLAMA, dst, to="hf.f32", overwrite=True)
    (dst / "notes.txt").unlink()
    assert contents(dst) == good
    manifest_path(dst).unlink()
    with pytest.raises(subbyte.ArgumentError, match="which no conversion wrote"):
        subbyte.convert(SMALL_LLAMA, dst, to="hf.f32", overwrite=True)
    assert names(tmp_path) == ["out"]


def test_targets_that_would_lose_something(tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(SMALL_LLAMA, source)
    for overwrite in (False, True):
        with pytest.raises(subbyte.ArgumentError, match="holds a file of the source"):
            subbyte.convert(source, source, to="hf.f32", overwrite=overwrite)
    (tmp_path / "file").write_text("x")
    with pytest.raises(subbyte.ArgumentError, match="not a folder"):
        subbyte.convert(source, tmp_path / "file", to="hf.f32", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(subbyte.ArgumentError, match="symbolic link"):
        subbyte.convert(source, tmp_path / "link", to="hf.f32", overwrite=True)
    (tmp_path / "empty").mkdir()
    subbyte.convert(source, tmp_path / "empty", to="hf.f32")
    assert subbyte.verify(tmp_path / "empty", source).ok
    assert contents(source) == contents(SMALL_LLAMA)


def _no_shard(dst: Path) -> None:
    sorted(partial_path(dst).glob("*.safetensors"))[0].unlink()


def _short_shard(dst: Path) -> None:
    path = sorted(partial_path(dst).glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-5])


def _lost_pages(dst: Path) -> None:
    path = sorted(partial_path(dst).glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-5000:] = bytes(5000)
    path.write_bytes(data)


def _small_files(dst: Path) -> None:
    (partial_path(dst) / "sub").mkdir()
    (partial_path(dst) / "sub" / ".x.subbyte-tmp").write_text("left by a run that died")
    (partial_path(dst) / "config.json").write_text("half")
    manifest_path(partial_path(dst)).write_text("half")


def _no_folder(dst: Path) -> None:
    shutil.rmtree(partial_path(dst))


def _link(dst: Path) -> None:
    shutil.rmtree(partial_path(dst))
    (dst.parent / "precious").mkdir()
    partial_path(dst).symlink_to(dst.parent / "precious", target_is_directory=True)


@pytest.mark.parametrize("damage", [_no_shard, _short_shard, _lost_pages, _small_files, _no_folder, _link])
def test_a_damaged_folder_costs_work_but_no_bytes(
    tmp_path: Path, good: dict[str, bytes], damage: Callable[[Path], None]
) -> None:
    dst = tmp_path / "out"
    stop(dst, after=180)
    damage(dst)
    report = subbyte.convert(TINY, dst, to=TO)
    assert contents(dst) == good
    if damage in (_no_shard, _short_shard):
        assert report.resumed > 0  # the other shards count
    assert names(dst.parent) == (["out", "precious"] if damage is _link else ["out"])


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    with (
        Journal.open(tmp_path / "out"),
        pytest.raises(subbyte.BusyError, match="another conversion to this target is running"),
    ):
        subbyte.convert(TINY, tmp_path / "out", to=TO)


def test_cancel_and_other_options(tmp_path: Path, good: dict[str, bytes]) -> None:
    dst = tmp_path / "out"
    calls = iter(range(100))
    with pytest.raises(subbyte.CancelledError):
        subbyte.convert(TINY, dst, to=TO, cancel=lambda: next(calls) == 30)
    with pytest.raises(subbyte.ArgumentError, match=r"option to hf\.f32 \(now hf\.f16\)"):
        subbyte.convert(TINY, dst, to="hf.f16")
    assert subbyte.convert(TINY, dst, to=TO).resumed > 0
    assert contents(dst) == good


def test_too_little_space_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(subbyte.Error, match="bytes are needed"):
        subbyte.convert(TINY, tmp_path / "out", to=TO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [errno.EIO, 0], ids=["EIO", "short"])
def test_every_failing_call_can_be_gone_on_from(
    tmp_path: Path, good: dict[str, bytes], kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UNITS, "CHUNK", 1 << 16)
    dst = tmp_path / "out"
    struck = 0
    for nth in range(1, 2000):
        _native.fault_arm(nth, kind)
        try:
            subbyte.convert(TINY, dst, to=TO)
            failed = False
        except subbyte.IoError:
            failed = True
        calls = _native.fault_disarm()
        struck += failed
        if dst.exists():
            assert contents(dst) == good
        if failed:
            subbyte.convert(TINY, dst, to=TO)
        assert contents(dst) == good
        shutil.rmtree(dst)
        assert names(tmp_path) == []
        if calls < nth:
            break
    assert nth > 100
    assert struck > 50 or kind == 0


def test_folders_are_verified(tmp_path: Path) -> None:
    dst = tmp_path / "out"
    subbyte.convert(TINY, dst, to=TO)
    assert subbyte.verify(dst).ok
    found = subbyte.verify(dst, TINY)
    assert found.ok
    assert {row.kind for row in found.tensors} == {"exact", "exact-value"}
    assert {row.max_error for row in found.tensors} == {0.0}
    report = subbyte.report(dst, TINY)
    assert report.made["to"] == TO
    assert not report.failures
    manifest = read_manifest(dst)
    assert manifest is not None
    assert set(manifest.files) == set(contents(dst))
    shard = next(path for path in sorted(dst.glob("*.safetensors")))
    before = shard.read_bytes()
    shard.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    failures = subbyte.verify(dst, TINY).failures
    assert any("hash" in failure for failure in failures)
    shard.write_bytes(before)
    (dst / "config.json").write_text("{}")
    assert any("config.json: 2 bytes, the manifest has" in failure for failure in subbyte.verify(dst).failures)
    (dst / "tokenizer.json").unlink()
    assert any("tokenizer.json: missing" in failure for failure in subbyte.verify(dst).failures)


def test_folders_of_others_are_verified(tmp_path: Path) -> None:
    assert subbyte.verify(SMALL_LLAMA).ok
    changed = llama_tensors()
    name = "model.layers.1.mlp.up_proj.weight"
    source = checkpoint(tmp_path / "a", llama_tensors())
    changed[name] = changed[name] + np.float32(1)
    (failure,) = subbyte.verify(checkpoint(tmp_path / "b", changed), source).failures
    assert name in failure
    changed[name][3, 4] = np.nan
    (failure,) = subbyte.verify(checkpoint(tmp_path / "c", changed)).failures
    assert "row 3, column 4" in failure
    del changed[name]
    (failure,) = subbyte.verify(checkpoint(tmp_path / "d", changed), source).failures
    assert "missing" in failure


def test_a_remote_gguf_becomes_the_same_folder(tmp_path: Path, good: dict[str, bytes]) -> None:
    with serve({"m/tiny.gguf": TINY.read_bytes()}) as server:
        plan = subbyte.plan(server.url + "m/tiny.gguf", to=TO)
        subbyte.convert(server.url + "m/tiny.gguf", tmp_path / "out", to=TO)
        assert subbyte.convert(server.url + "m/tiny.gguf", tmp_path / "out", to=TO).unchanged
        assert subbyte.verify(tmp_path / "out", server.url + "m/tiny.gguf").ok
    assert contents(tmp_path / "out") == good
    assert plan.nbytes == sum(map(len, good.values()))


def test_a_remote_folder_becomes_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNITS, "CHUNK", 1 << 20)  # each unit is a request
    subbyte.convert(SMALL_LLAMA, tmp_path / "local", to="hf.f16")
    files = {f"m/small/{path.name}": path.read_bytes() for path in SMALL_LLAMA.iterdir()}
    with serve(files) as server:
        subbyte.convert(server.url + "m/small/", tmp_path / "remote", to="hf.f16")
        assert subbyte.verify(tmp_path / "remote", server.url + "m/small/").ok
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


def test_a_checkpoint_folder_changes_its_floats_and_nothing_else(tmp_path: Path) -> None:
    tensors = llama_tensors(ml_dtypes.bfloat16) | {"position_ids": np.arange(5, dtype=np.int64)}
    source = checkpoint(tmp_path / "model", tensors, {
        "LICENSE": "free", "README.md": "---\nlicense: mit\n---\n", "tokenizer.model": "t", "modeling_own.py": "pass",
        "pytorch_model.bin": "x", "picture.png": "x", "quantize_config.json": {},
    })  # fmt: skip
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_text("x")
    report = subbyte.convert(source, tmp_path / "out", to="hf.f32")
    after = SafetensorsFile(tmp_path / "out")
    for name, want in tensors.items():
        got = after.array(name)
        assert got.dtype == (np.int64 if name == "position_ids" else np.float32)
        assert np.array_equal(got, np.asarray(want).astype(got.dtype))
    for name in ("LICENSE", "README.md", "tokenizer.model", "modeling_own.py", "1_Pooling/config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert {name for name, _ in report.not_copied} == {
        "onnx/",
        "picture.png",
        "pytorch_model.bin",
        "quantize_config.json",
    }
    assert "4 files of the source not copied" in report.summary()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**json.loads((source / "config.json").read_text()), "torch_dtype": "float32"}
    assert {row.kind for row in report.tensors} == {"exact", "exact-value"}


def test_the_experts_of_gpt_oss_become_dense_as_through_gguf(tmp_path: Path) -> None:
    source = GOLDEN / "convert" / "tiny-gptoss"
    subbyte.convert(source, tmp_path / "direct", to="hf.bf16")
    subbyte.convert(source, tmp_path / "m.gguf", to="gguf")
    subbyte.convert(tmp_path / "m.gguf", tmp_path / "through", to="hf.bf16")
    direct, through = SafetensorsFile(tmp_path / "direct"), SafetensorsFile(tmp_path / "through")
    assert set(direct) == set(through)
    for name in direct:  # the original's table has a negative zero, that of ggml has not
        assert np.array_equal(direct.array(name), through.array(name)), name
    assert "quantization_config" not in json.loads((tmp_path / "direct" / "config.json").read_text())


def test_refusals(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "q", quantization_config={"quant_method": "unheard-of"})
    with pytest.raises(subbyte.UnsupportedError, match="'unheard-of'"):
        subbyte.convert(source, tmp_path / "out", to="hf.bf16")
    bare = tmp_path / "bare"
    bare.mkdir()
    write_safetensors(bare / "model.safetensors", llama_tensors())
    with pytest.raises(subbyte.FormatError, match=r"no config\.json"):
        subbyte.convert(bare, tmp_path / "out", to="hf.bf16")
    with pytest.raises(subbyte.ArgumentError, match="pure, tensor_type are options for GGUF files"):
        subbyte.convert(TINY, tmp_path / "out", to="hf.bf16", pure=True, tensor_type=["a=q4_0"])
    assert names(tmp_path) == ["bare", "q"]


def test_a_plan_of_a_folder_can_be_edited(tmp_path: Path) -> None:
    data = subbyte.plan(TINY, to="hf.bf16").to_json()
    data["tensors"][0]["type"] = "f32"
    (tmp_path / "plan.json").write_text(json.dumps(data))
    report = subbyte.convert(TINY, tmp_path / "out", plan=tmp_path / "plan.json")
    assert [row.type for row in report.tensors[:2]] == ["F32", "BF16"]
    data["tensors"][0]["type"] = "q8_0"
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(subbyte.ArgumentError, match="f32, f16 or bf16"):
        subbyte.plan(TINY, plan=tmp_path / "plan.json")


def test_the_folder_of_an_edited_plan_is_called_by_what_it_holds(tmp_path: Path) -> None:
    data = subbyte.plan(TINY, to="hf.f16").to_json()
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    assert subbyte.convert(TINY, tmp_path / "same", plan=file).to == "hf.f16"
    assert json.loads((tmp_path / "same" / "config.json").read_text())["torch_dtype"] == "float16"
    for tensor in data["tensors"]:
        tensor["type"] = "F32" if len(tensor["shape"]) > 1 else "BF16"
    file.write_text(json.dumps(data))
    assert subbyte.convert(TINY, tmp_path / "edited", plan=file).to == "hf.f32"
    assert json.loads((tmp_path / "edited" / "config.json").read_text())["torch_dtype"] == "float32"
    made = read_manifest(tmp_path / "edited")
    assert made is not None
    assert made.report["to"] == "hf.f32"


@pytest.mark.parametrize("name", ["diary.txt", "config.json"])
def test_somebodys_folder_under_the_unfinished_name_is_left_alone(tmp_path: Path, name: str) -> None:
    dst = tmp_path / "out"
    own = partial_path(dst) / name
    own.parent.mkdir()
    own.write_text("mine")
    for options in ({}, {"fresh": True}, {"overwrite": True}):
        with pytest.raises(subbyte.ArgumentError, match=rf"{name}', which no conversion wrote"):
            subbyte.convert(TINY, dst, to=TO, **options)  # type: ignore[arg-type]
        assert own.read_text() == "mine"
        assert names(tmp_path) == [partial_path(dst).name]
    own.unlink()
    subbyte.convert(TINY, dst, to=TO)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("fresh", [False, True])
def test_somebodys_file_among_unfinished_ones_is_left_alone(
    tmp_path: Path, good: dict[str, bytes], fresh: bool
) -> None:
    dst = tmp_path / "out"
    stop(dst)
    own = partial_path(dst) / "sub" / "diary.txt"
    own.parent.mkdir()
    own.write_text("mine")
    before = contents(partial_path(dst))
    for _ in range(2):
        with pytest.raises(subbyte.ArgumentError, match=r"diary\.txt', which no conversion wrote"):
            subbyte.convert(TINY, dst, to=TO, fresh=fresh)
        assert contents(partial_path(dst)) == before
    own.unlink()
    assert (subbyte.convert(TINY, dst, to=TO, fresh=fresh).resumed > 0) is not fresh
    assert contents(dst) == good
    assert names(tmp_path) == ["out"]


def test_files_of_another_unfinished_conversion_can_be_given_up(tmp_path: Path, good: dict[str, bytes]) -> None:
    dst = tmp_path / "out"
    stop(dst, src=SMALL_LLAMA, after=300)
    assert set(names(partial_path(dst))) - set(good)
    subbyte.convert(TINY, dst, to=TO, fresh=True)
    assert contents(dst) == good
    assert names(tmp_path) == ["out"]


def test_the_former_folder_goes_when_a_run_died_after_the_exchange(
    tmp_path: Path, good: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = tmp_path / "out"
    subbyte.convert(SMALL_LLAMA, dst, to="hf.f16")
    old = contents(dst)

    def die(folder: Path, files: object) -> None:
        if folder.exists() and contents(folder) == old:
            raise KeyboardInterrupt
        remove(folder, files)

    output = sys.modules["subbyte.convert.output"]
    remove = output._remove
    with monkeypatch.context() as patch:
        patch.setattr(output, "_remove", die)
        with pytest.raises(KeyboardInterrupt):
            subbyte.convert(TINY, dst, to=TO, overwrite=True)
    assert contents(dst) == good
    assert contents(partial_path(dst)) == old
    assert names(tmp_path) == ["out", journal_path(dst).name, partial_path(dst).name]
    (partial_path(dst) / "diary.txt").write_text("mine")
    with pytest.raises(subbyte.ArgumentError, match=r"diary\.txt', which no conversion wrote"):
        subbyte.convert(TINY, dst, to=TO)
    (partial_path(dst) / "diary.txt").unlink()
    assert subbyte.convert(TINY, dst, to=TO).unchanged
    assert names(tmp_path) == ["out"]
    assert contents(dst) == good


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda dst: sorted(dst.glob("*.safetensors"))[0].unlink(), "model-00001-of-00003.safetensors: missing"),
        (lambda dst: (dst / "model.safetensors.index.json").unlink(), "model.safetensors.index.json: missing"),
        (lambda dst: (dst / "config.json").write_text('{"a'), "config.json: 3 bytes, the manifest has"),
        (lambda dst: _cut(sorted(dst.glob("*.safetensors"))[1]), "model-00002-of-00003.safetensors: "),
    ],
    ids=["shard", "index", "config", "cut"],
)
def test_what_is_missing_or_broken_is_reported_by_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], says: str
) -> None:
    dst = tmp_path / "out"
    subbyte.convert(TINY, dst, to=TO)
    damage(dst)
    for against in ([], ["--against", str(TINY)]):
        assert cli.main(["verify", str(dst), *against]) == 1
        assert f"FAILED: {says}" in capsys.readouterr().out
    found = subbyte.verify(dst)
    assert found.to_json()["ok"] is False
    assert len(found.failures) == 2  # the manifest, and who could not open it
    manifest_path(dst).unlink()
    with pytest.raises(subbyte.Error):
        subbyte.verify(dst)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def test_a_file_that_is_gone_is_reported_by_the_manifest(tmp_path: Path) -> None:
    subbyte.convert(TINY, tmp_path / "a.gguf", to="gguf.q8_0")
    (tmp_path / "a.gguf").unlink()
    assert subbyte.verify(tmp_path / "a.gguf").failures[0] == "a.gguf: missing, the manifest has it"
