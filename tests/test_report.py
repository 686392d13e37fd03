"""Reports: JSON of a fixed shape, CSV, a page that opens offline; hashes of the manifest that verification checks."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, quantized_checkpoint
from subbyte import cli
from subbyte.convert.manifest import manifest_path
from subbyte.io.gguf import GgufFile

FOREIGN = GOLDEN / "quantized" / "tiny-llama.Q4_K_M.gguf"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dst = tmp_path_factory.mktemp("report") / "model.gguf"
    subbyte.convert(SMALL_LLAMA, dst, to="gguf.q4_k_m")
    return dst


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_json_has_a_fixed_shape(made: Path) -> None:
    data = json.loads(json.dumps(subbyte.report(made, SMALL_LLAMA).to_json(), allow_nan=False))
    assert data["version"] == 1
    assert sorted(data) == [
        "against", "bits_per_weight", "checked", "elements", "failures", "made", "nbytes", "path", "roles", "subbyte",
        "tensors", "version", "warnings",
    ]  # fmt: skip
    assert sorted(data["made"]) == ["seconds", "src", "subbyte", "to"]
    for entry in data["tensors"]:
        assert sorted(entry) == [
            "bits_per_weight", "clipped", "cosine", "elements", "kind", "layer", "max_error", "name", "nbytes",
            "relative_error", "rms_error", "role", "seconds", "sha256", "shape", "source_nbytes", "source_type",
            "sqnr", "type",
        ]  # fmt: skip
    assert data["nbytes"] == sum(entry["nbytes"] for entry in data["tensors"])
    assert sum(role["nbytes"] for role in data["roles"].values()) == data["nbytes"]
    assert data["roles"]["feed-forward down"]["tensors"] == 6
    size = sum(tensor.nbytes for tensor in GgufFile(made).values())
    checked = f"{size:,} bytes of tensors: scales and values finite, 57 hashes of the manifest, values against "
    assert data["checked"].startswith(checked + str(SMALL_LLAMA))
    assert re.search(r"; \d{4}-\d\d-\d\d \d\d:\d\d UTC: 0 failures$", data["checked"])


def test_the_errors_are_those_of_the_verification(made: Path) -> None:
    found, checked = subbyte.report(made, SMALL_LLAMA), subbyte.verify(made, SMALL_LLAMA)
    assert [entry.relative_error for entry in found.tensors] == [row.relative_error for row in checked.tensors]
    worst = found.worst()
    assert len(worst) == 10
    assert worst[0].relative_error == max(row.relative_error for row in checked.tensors)


def test_nothing_is_measured_without_a_source(made: Path) -> None:
    found = subbyte.report(made)
    assert {entry.relative_error for entry in found.tensors} == {None}
    assert {entry.kind for entry in found.tensors} == {"quantized", "exact-value"}
    assert found.made["to"] == "gguf.q4_k_m"
    assert found.checked.startswith("headers only")


def test_files_of_others_have_a_report(tmp_path: Path) -> None:
    found = subbyte.report(FOREIGN)
    assert found.made == {}
    assert len(found.tensors) == 22
    assert "Not measured" in found.to_html()


def test_a_file_that_was_changed_leaves_its_manifest_behind(tmp_path: Path) -> None:
    dst = tmp_path / "a.gguf"
    subbyte.convert(GOLDEN / "convert" / "tiny-llama", dst, to="gguf.q8_0")
    dst.write_bytes(dst.read_bytes() + bytes(32))
    found = subbyte.report(dst)
    assert found.made == {}
    assert "changed after its manifest" in found.warnings[0]


def test_csv_has_as_many_cells_as_names(made: Path) -> None:
    lines = list(csv.reader(io.StringIO(subbyte.report(made, SMALL_LLAMA).to_csv())))
    assert {len(line) for line in lines} == {19}
    assert len(lines) == 58
    assert lines[0][0] == "name"
    assert dict(zip(*lines[:2], strict=True))["shape"].count("x") == lines[1][4].count("x")


class _Page(HTMLParser):
    """Checks that tags are closed in order, and that nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onclick", "onload"}
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def test_the_page_stands_alone(made: Path) -> None:
    html = subbyte.report(made, SMALL_LLAMA).to_html()
    page = _Page()
    page.feed(html)
    assert page.open == []
    assert page.seen.count("svg") == 4
    assert page.seen.count("circle") == 2 * 57
    assert "script" not in page.seen
    assert "link" not in page.seen
    assert not re.search(r"https?://|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert len(html) < 100_000


def test_names_cannot_inject(tmp_path: Path) -> None:
    import numpy as np

    from subbyte.io.gguf import write_gguf

    metadata = {"general.architecture": "llama", "llama.block_count": 1}
    write_gguf(tmp_path / "a.gguf", metadata, {"<script>alert(1)</script>": np.ones((2, 32), np.float32)})
    html = subbyte.report(tmp_path / "a.gguf").to_html()
    assert "<script" not in html


def test_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, table = tmp_path / "r.html", tmp_path / "r.csv"
    code, out, err = run(capsys, "report", made, "--against", SMALL_LLAMA, "--html", html, "--csv", table)
    assert code == 0
    assert "feed-forward down" in out
    assert "largest errors" in out
    assert f"{html}: written" in err
    assert html.read_text().startswith("<!doctype html>")
    assert table.read_text().count("\n") == 58
    assert json.loads(run(capsys, "report", made, "--json")[1])["version"] == 1
    assert run(capsys, "report", tmp_path / "none.gguf")[0] == 2


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_verify_checks_the_hashes_of_the_manifest(tmp_path: Path) -> None:
    dst = tmp_path / "a.gguf"
    subbyte.convert(SMALL_LLAMA, dst, to="gguf.q4_k_m")
    assert subbyte.verify(dst).ok
    tensor = GgufFile(dst)["blk.3.ffn_up.weight"]
    flip(dst, tensor.offset + 1000)  # one bit of one code: nothing else would notice
    found = subbyte.verify(dst)
    assert found.failures == ("tensor 'blk.3.ffn_up.weight': its bytes are not those whose hash is in the manifest",)
    flip(dst, tensor.offset + 1000)
    assert subbyte.verify(dst).ok
    where = dst.read_bytes().index(b"Small Llama") if b"Small Llama" in dst.read_bytes() else 40
    flip(dst, where)
    assert any("header" in failure for failure in subbyte.verify(dst).failures)
    flip(dst, where)
    text = manifest_path(dst).read_text()
    for before, after in (
        ('"sha256": "', '"sha256": "0'),
        ('"blk.3.ffn_up.weight"', '"blk.3.ffn_up.wait"'),
    ):
        manifest_path(dst).write_text(text.replace(before, after))
        assert not subbyte.verify(dst).ok
    manifest_path(dst).write_text("{}")
    assert "expected a manifest" in subbyte.verify(dst).failures[0]
    manifest_path(dst).unlink()
    assert subbyte.verify(dst).ok


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(run(capsys, "env", "--json")[1])
    assert facts["subbyte"] == subbyte.__version__
    assert "(used)" in facts["levels"]
    assert facts["numpy"][0].isdigit()
    out = run(capsys, "env")[1]
    assert len(out.splitlines()) == len(facts)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "completion", shell)
    assert code == 0
    assert "convert" in out
    assert "target-size" in out
    if shell == "fish" and shutil.which("fish"):
        command = ["fish", "--no-config", "-c", f"{out}\ncomplete -C 'subbyte convert --target-'"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--target-bpw", "--target-size"]
    if shell == "bash":
        words = "COMP_WORDS=(subbyte convert --tar); COMP_CWORD=2; _subbyte; echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", f"{out}\n{words}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--target-size", "--target-bpw"]


def test_progress_for_a_log_and_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = GOLDEN / "convert" / "tiny-llama"
    _, _, err = run(capsys, "convert", source, tmp_path / "a.gguf", "--to", "gguf.q8_0", "--progress", "log")
    lines = err.splitlines()
    assert len(lines) == 22
    assert lines[-1] == "converting 100 % output_norm.weight (107,392 of 107,392 bytes)"
    _, _, err = run(capsys, "convert", source, tmp_path / "b.gguf", "--to", "gguf.q8_0", "--progress", "json")
    entries = [json.loads(line) for line in err.splitlines()]
    assert sorted(entries[0]) == ["done", "event", "seconds", "seconds_left", "tensor", "total"]
    assert entries[1]["seconds_left"] is None
    assert entries[2]["seconds_left"] > 0
    assert entries[-1]["seconds_left"] == 0
    assert entries[-1]["done"] == entries[-1]["total"]
    _, _, err = run(capsys, "verify", tmp_path / "b.gguf", "--progress", "none")
    assert err == ""


def test_the_package_logs_to_its_own_logger_only(tmp_path: Path) -> None:
    script = """
import logging, sys, subbyte
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
subbyte.convert(sys.argv[1], sys.argv[2], to="gguf.q8_0")
"""
    arguments = [str(GOLDEN / "convert" / "tiny-llama"), str(tmp_path / "a.gguf")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"subbyte\.convert INFO .*a\.gguf: complete, 116384 bytes\n", done.stderr)


def test_what_is_read_is_never_written(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    shutil.copytree(SMALL_LLAMA, source)
    (tmp_path / "link").hardlink_to(made)
    (tmp_path / "other").symlink_to(source / "config.json")
    files = [made, tmp_path / "link", tmp_path / "other", made.with_name(made.name + ".subbyte.json")]
    files += list(source.iterdir())
    before = [file.read_bytes() for file in files]
    for option in ("--html", "--csv"):
        for file in files:
            code, _, err = run(capsys, "report", made, "--against", source, option, file)
            assert code == 2
            assert "is a file that is read here" in err
    assert [file.read_bytes() for file in files] == before


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    assert run(capsys, "report", made, "--html", page)[0] == 0
    (tmp_path / "link.html").symlink_to(page)
    assert run(capsys, "report", made, "--html", tmp_path / "link.html")[0] == 0
    assert page.read_text().startswith("<!doctype html>")
    assert (tmp_path / "link.html").is_symlink()
    assert run(capsys, "report", made, "--csv", "/dev/null")[0] == 0
    assert run(capsys, "report", made, "--csv", tmp_path / "none" / "r.csv")[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "page.html"]


def test_only_an_earlier_report_of_the_same_kind_is_replaced(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, page, table = tmp_path / "model.gguf", tmp_path / "page", tmp_path / "table"
    shutil.copy(FOREIGN, model)
    (tmp_path / "link").symlink_to(page)
    for _ in range(2):
        assert run(capsys, "report", made, "--html", page, "--csv", table)[0] == 0
    before = {file: file.read_bytes() for file in (model, page, table)}
    for options, says in (
        (("--html", model), "no earlier html report"),
        (("--csv", model), "no earlier csv report"),
        (("--csv", page), "no earlier csv report"),
        (("--html", table), "no earlier html report"),
        (("--html", page, "--csv", tmp_path / "link"), "is named twice"),
        (("--html", tmp_path / "new", "--csv", tmp_path / "new"), "is named twice"),
    ):
        code, _, err = run(capsys, "report", made, *options)
        assert code == 2
        assert says in err
    assert {file: file.read_bytes() for file in before} == before
    assert not (tmp_path / "new").exists()


def test_the_source_that_the_manifest_names_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.gguf"
    shutil.copy(GOLDEN / "convert" / "tiny-llama-bf16.gguf", source)
    subbyte.convert(source, tmp_path / "a.gguf", to="gguf.q8_0")
    before = source.read_bytes()
    for option in ("--html", "--csv"):
        assert run(capsys, "report", tmp_path / "a.gguf", option, source)[0] == 2
    assert source.read_bytes() == before


@pytest.mark.parametrize("model_type", ["llama", "unknown-model", None])
def test_tensors_of_folders_have_the_roles_and_layers_of_a_file(
    made: Path, tmp_path: Path, model_type: str | None
) -> None:
    folder = quantized_checkpoint(tmp_path / "folder", "gptq", bits=4, group_size=32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    found, file = subbyte.report(folder), subbyte.report(made)
    assert sorted((entry.role, entry.layer) for entry in found.tensors) == sorted(
        (entry.role, entry.layer) for entry in file.tensors
    )
    roles = {entry.name: (entry.role, entry.layer) for entry in found.tensors}
    assert roles["model.layers.5.mlp.down_proj.weight"] == ("feed-forward down", 5)
    assert roles["lm_head.weight"] == ("output", -1)


def test_roles_of_fused_and_foreign_names(tmp_path: Path) -> None:
    fused = {entry.name: entry.role for entry in subbyte.report(GOLDEN / "convert" / "tiny-phi3").tensors}
    assert fused["model.layers.1.self_attn.qkv_proj.weight"] == "attention value"
    assert fused["model.layers.1.mlp.gate_up_proj.weight"] == "feed-forward up"
    tensors = {"decoder.block.3.deep.7.weight": np.ones((2, 32), np.float32), "odd": np.ones(32, np.float32)}
    foreign = subbyte.report(checkpoint(tmp_path / "m", tensors, model_type="foreign"))
    assert {entry.name: (entry.role, entry.layer) for entry in foreign.tensors} == {
        "decoder.block.3.deep.7.weight": ("norms and others", 3), "odd": ("norms and others", -1),
    }  # fmt: skip
