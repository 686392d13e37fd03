"""The command: examples of its help, exit codes, JSON, clean errors."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, llama_tensors
from server import serve
from subbyte import cli
from subbyte.convert.catalogue import CLASSES
from subbyte.io.gguf import write_gguf

TINY = GOLDEN / "convert" / "tiny-llama"


def test_the_examples_of_the_help_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "small-llama").symlink_to(SMALL_LLAMA)
    monkeypatch.chdir(tmp_path)
    lines = [line.strip() for line in cli.parser().format_help().splitlines() if line.startswith("  subbyte ")]
    assert lines == [examples.splitlines()[0].strip() for examples in cli._EXAMPLES.values()]
    (commands,) = (action.choices for action in cli.parser()._actions if action.dest == "command")
    for name, examples in cli._EXAMPLES.items():
        assert commands[name].format_help().endswith(f"examples:\n{examples}\n")
        for line in map(str.strip, examples.splitlines()):
            assert line.startswith(f"subbyte {name}")
            assert cli.main(shlex.split(line)[1:]) == 0, line
    assert list(cli._EXAMPLES) == list(commands)


def test_settings_of_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "group_size=64", "--set", "sym=false", "--set", "version=gptq"]
    code, out, _ = run(capsys, "convert", SMALL_LLAMA, tmp_path / "a", "--to", "gptq", "--json", *settings)
    assert code == 0
    config = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert (config["group_size"], config["sym"], config["checkpoint_format"]) == (64, False, "gptq")
    rows = [row for row in json.loads(out)["tensors"] if row["layer"] == "model.layers.0.mlp.up_proj.weight"]
    assert {row["elements"] for row in rows} == {256 * 768}
    assert [row["source_nbytes"] for row in rows] == [2 * 256 * 768] + [0] * (len(rows) - 1)
    assert sum(row["bits_per_weight"] for row in rows) == pytest.approx(4 + 20 / 64 + 32 / 768)
    for wrong, message in (
        ("group_size", "expected KEY=VALUE"),
        ("colour=red", "no setting 'colour'"),
        ("bits=9", "expected one of"),
        ("to=awq", "no setting of a target"),
    ):
        code, _, err = run(capsys, "plan", SMALL_LLAMA, "--to", "gptq", "--set", wrong)
        assert (code, message in err) == (2, True), err
    assert "has no setting 'bits'" in run(capsys, "plan", SMALL_LLAMA, "--to", "gguf.q8_0", "--set", "bits=4")[2]


def test_targets_are_listed_with_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "targets", "--json")
    assert code == 0
    rows = {(row["target"], row["setting"]): row for row in json.loads(out)}
    assert rows["gptq", "group_size"]["about"]
    assert rows["gptq.v1", "version"]["default"] == "gptq"
    assert rows["awq", "bits"]["choices"] == [4]
    assert ("gguf.q4_k_m", None) in rows
    assert "group_size" in run(capsys, "list", "targets")[1]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_convert_prints_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "convert", TINY, tmp_path / "new" / "a.gguf", "--to", "gguf.q4_k_m")
    assert code == 0
    assert len(err.splitlines()) == 22
    assert "blk.1.attn_v.weight" in out
    assert "quantized" in out
    size = (tmp_path / "new" / "a.gguf").stat().st_size
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'new' / 'a.gguf'}: {size:,} bytes, 22 tensors")


def test_options_reach_the_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--pure",
        "--output-tensor-type",
        "f16",
        "--token-embedding-type",
        "bf16",
        "--tensor-type",
        "attn_q=q5_1",
    ]
    code, out, _ = run(capsys, "convert", SMALL_LLAMA, tmp_path / "a.gguf", "--to", "gguf.q6_k", "--json", *options)
    assert code == 0
    types = {row["name"]: row["type"] for row in json.loads(out)["tensors"]}
    assert types["output.weight"] == "F16"
    assert types["token_embd.weight"] == "BF16"
    assert types["blk.0.attn_q.weight"] == "Q5_1"
    assert types["blk.0.attn_k.weight"] == "Q6_K"
    again = ["convert", SMALL_LLAMA, tmp_path / "a.gguf", "--to", "gguf.q6_k"]
    assert run(capsys, *again)[0] == 2
    assert run(capsys, *again, "--overwrite")[0] == 0
    smaller = ["convert", tmp_path / "a.gguf", tmp_path / "b.gguf", "--to", "gguf.q4_0"]
    assert run(capsys, *smaller)[0] == 2
    assert run(capsys, *smaller, "--lossy")[0] == 0


def test_warnings_name_the_tensor_and_can_be_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = llama_tensors()
    del tensors["model.norm.weight"]
    source = checkpoint(tmp_path / "m", tensors)
    code, _, err = run(capsys, "convert", source, tmp_path / "a.gguf", "--to", "gguf.q8_0")
    assert code == 0
    assert "subbyte: warning: tensor 'output_norm.weight' is missing" in err
    code, _, err = run(capsys, "convert", source, tmp_path / "b.gguf", "--to", "gguf.q8_0", "--strict")
    assert code == 2
    assert "output_norm.weight" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", str(TINY), "OUT", "--to", "gguf.q9"],
        ["convert", str(SMALL_LLAMA), "OUT", "--to", "gguf.iq2_xs"],
        ["convert", "/nowhere/at/all", "OUT", "--to", "gguf.q8_0"],
        ["convert", str(TINY / "config.json"), "OUT", "--to", "gguf.q8_0"],
        ["convert", str(TINY), "/proc/x/y.gguf", "--to", "gguf.q8_0"],
        ["inspect", "/nowhere/at/all.gguf"],
        ["inspect", str(GOLDEN / "malformed" / "align_3.gguf")],
        ["verify", str(GOLDEN / "malformed" / "align_3.gguf")],
        ["verify", str(TINY / "config.json")],
        ["convert", str(TINY), "OUT"],
        ["convert", str(TINY), "OUT", "--target-size", "big"],
        ["convert", str(TINY), "OUT", "--target-size", "1kB"],
        ["convert", str(TINY), "OUT", "--target-bpw", "0.5"],
        ["convert", str(TINY), "OUT", "--to", "gguf.q4_0", "--target-bpw", "4"],
        ["plan", str(TINY), "--plan", str(TINY / "config.json")],
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, out, err = run(capsys, *(str(tmp_path / "out.gguf") if a == "OUT" else a for a in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("subbyte: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["convert", "a"], ["list", "things"]])
def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: subbyte" in capsys.readouterr().err


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = GOLDEN / "convert" / "tiny-llama-q8_0.gguf"
    code, out, _ = run(capsys, "verify", file, "--against", TINY)
    assert code == 0
    assert "SQNR" in out
    assert out.splitlines()[-1].endswith("all good")
    code, out, _ = run(capsys, "verify", file, "--against", TINY, "--json")
    assert json.loads(out)["ok"] is True
    code, out, _ = run(capsys, "verify", file, "--against", SMALL_LLAMA)
    assert code == 1
    assert "FAILED: tensor 'blk.2.attn_q.weight': missing" in out


def test_inspect_reads_headers_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = GOLDEN / "quantized" / "tiny-llama.Q4_K_M.gguf"
    code, out, _ = run(capsys, "inspect", file)
    assert code == 0
    assert "gguf Q4_K_M, 22 tensors, 100,168 parameters" in out
    assert "tokenizer.ggml.tokens" in out
    assert "blk.0.attn_q.weight" not in out
    code, out, _ = run(capsys, "inspect", file, "--tensors")
    assert "blk.0.attn_q.weight" in out
    data = json.loads(run(capsys, "inspect", file, "--json")[1])
    assert data["types"]["Q8_0"]["tensors"] == 3
    assert data["metadata"]["tokenizer.ggml.tokens"]["length"] == 300
    assert len(data["tensors"]) == 22
    data = json.loads(run(capsys, "inspect", SMALL_LLAMA, "--json")[1])
    assert (data["format"], data["parameters"]) == ("safetensors", subbyte.inspect(SMALL_LLAMA).parameters)


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {"general.architecture": "llama", "general.name": "\x1b[2J\x07evil\r\n" + "x" * 200}
    write_gguf(tmp_path / "a.gguf", metadata, {"a": np.ones(4, np.float32)})
    code, out, _ = run(capsys, "inspect", tmp_path / "a.gguf", "--tensors")
    assert code == 0
    assert all(c.isprintable() or c == "\n" for c in out)


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "subbyte.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "ünï 🦙", llama_tensors() | {"模型.weight": np.ones((2, 32), np.float32)})
    for arguments in (("inspect", folder, "--tensors"), ("convert", folder, tmp_path / "a.gguf", "--to", "gguf.f32")):
        result = command(*arguments, PYTHONIOENCODING="ascii")
        assert result.returncode == 0, result.stderr
        assert "\\u6a21\\u578b.weight" in result.stdout
    assert "\\xfcn\\xef" in command("inspect", tmp_path / "ünï", PYTHONIOENCODING="ascii").stderr


def test_json_has_no_numbers_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"general.architecture": "llama", "a": math.inf, "b": np.array([1, math.nan], np.float32)}
    write_gguf(tmp_path / "a.gguf", metadata, {"a": np.ones(4, np.float32)})
    out = run(capsys, "inspect", tmp_path / "a.gguf", "--json")[1]
    found = json.loads(out, parse_constant=pytest.fail)["metadata"]
    assert (found["a"], found["b"]) == (None, [1.0, None])


def test_environment_warnings_look_like_the_others(tmp_path: Path) -> None:
    quietly = ["--progress", "none"]
    result = command("convert", TINY, tmp_path / "a.gguf", "--to", "gguf.f32", *quietly, SUBBYTE_SIMD="warp")
    assert result.returncode == 0
    assert result.stderr.startswith("subbyte: warning: SUBBYTE_SIMD=warp: there is no such level")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("what", "key"), [("formats", "id"), ("codecs", "id"), ("levels", "level")])
def test_list(capsys: pytest.CaptureFixture[str], what: str, key: str) -> None:
    code, out, _ = run(capsys, "list", what)
    assert code == 0
    rows = json.loads(run(capsys, "list", what, "--json")[1])
    assert len(out.splitlines()) == len(rows) + 2
    assert {"formats": "gguf.q4_k_m", "codecs": "gguf.q4_k", "levels": "scalar"}[what] in {row[key] for row in rows}
    assert sum(row.get("used", False) for row in rows) == (what == "levels")


def test_the_installed_command_and_a_closed_pipe() -> None:
    command = [sys.executable, "-m", "subbyte.cli"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip() == f"subbyte {subbyte.__version__}"
    process = subprocess.Popen([*command, "list", "formats"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    with process:
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_no_colour_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, "inspect", "/nowhere.gguf")
    assert "\x1b" not in err


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("rich", [True, False])
def test_a_terminal_shows_progress_and_no_color_is_respected(tmp_path: Path, rich: bool) -> None:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    hide = "" if rich else "import sys; sys.modules['rich.console'] = sys.modules['rich.progress'] = None; "
    script = f"{hide}import sys; from subbyte.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["convert", str(TINY), str(tmp_path / "a.gguf"), "--to", "gguf.q8_0"]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    code = subprocess.run(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=child, env=environment, check=False
    ).returncode
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert code == 0
    assert "converting" in shown
    assert not re.search(r"\x1b\[[\d;]*m", shown)


@pytest.mark.parametrize("mode", ["bar", "log", "json"])
def test_progress_with_a_name_that_looks_like_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a bar needs a terminal
    metadata = {"general.architecture": "llama", "llama.block_count": 1}
    write_gguf(tmp_path / "a.gguf", metadata, {"[/bold]": np.ones((2, 32), np.float32)})
    code, _, err = run(capsys, "verify", tmp_path / "a.gguf", "--progress", mode)
    assert code == 0
    assert "[/bold]" in err


def test_the_listed_conversions_are_what_a_conversion_does(tmp_path: Path) -> None:
    listed = {(row["source"], row["target"]): row["class"] for row in subbyte.list_conversions()}
    assert all(row["lossy"] == (row["class"] == "requantized") for row in subbyte.list_conversions())
    names = [name for name in subbyte.codec_ids() if name in {target for _, target in listed}]
    source = GOLDEN / "convert" / "tiny-llama-bf16.gguf"
    for target in names:
        folder = tmp_path / target
        for origin, prefix in ((TINY, "hf"), (source, "gguf")):
            try:
                plan = subbyte.plan(origin, to="gguf.f32", tensor_type={"attn_q": target.removeprefix("gguf.")})
            except subbyte.ArgumentError:
                assert subbyte.get_codec(target).type.block > 64  # does not divide the rows of this model
                continue
            for row in plan.rows:
                assert row.kind == listed[f"{prefix}.{row.source_type.lower()}", f"gguf.{row.type.lower()}"], folder
    for name in ("f32", "bf16", "f16"):
        report = subbyte.convert(source, tmp_path / name, to=f"hf.{name}")
        for row in report.tensors:
            assert row.kind == listed[f"gguf.{row.source_type.lower()}", f"hf.{name}"]
        for row in subbyte.plan(GOLDEN / "convert" / "tiny-gptoss", to=f"hf.{name}").rows:
            assert row.kind == listed[f"hf.{row.source_type.lower()}", f"hf.{row.type.lower()}"]


def test_the_matrix_of_conversions(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "conversions")
    assert code == 0
    rows = json.loads(run(capsys, "list", "conversions", "--json")[1])
    sources = sorted({row["source"] for row in rows}, key=len, reverse=True)
    found = [(next((name for name in sources if line.startswith(f"{name} ")), ""), line) for line in out.splitlines()]
    matrix = {(name, line.removeprefix(name)) for name, line in found if name}
    letters = "".join(line for _, line in matrix)
    for class_, letter in CLASSES.items():
        assert letters.count(letter) == sum(row["class"] == class_ for row in rows)
    assert {row["source"] for row in rows} == {name for name, _ in matrix}
    assert max(map(len, out.splitlines())) <= 80
    assert [row["class"] for row in rows if (row["source"], row["target"]) == ("gguf.q4_k", "gguf.q4_0")] == [
        "requantized"
    ]


@pytest.mark.parametrize("what", ["plan", "convert"])
def test_a_source_behind_an_url(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    model = (GOLDEN / "convert" / "tiny-llama-bf16.gguf").read_bytes()
    with serve({"models/tiny.gguf": model}) as server:
        arguments = [f"{server.url}models/tiny.gguf", tmp_path / "a.gguf", "--to", "gguf.q4_k_m"]
        code, out, _ = run(capsys, "plan", *arguments)
        assert code == 0
        fetched = sum(int(range.split("-")[1]) + 1 - int(range[6:].split("-")[0]) for _, range in server.requests)
        planned = json.loads(run(capsys, "plan", *arguments, "--json")[1])
        assert run(capsys, "inspect", arguments[0], "blk.0.attn_q.weight")[1].startswith("blk.0.attn_q.weight: bf16")
        if what == "convert":
            assert run(capsys, "convert", *arguments)[0] == 0
    assert f"{planned['nbytes']:,} bytes, 22 tensors" in out.splitlines()[-1]
    local = subbyte.plan(GOLDEN / "convert" / "tiny-llama-bf16.gguf", to="gguf.q4_k_m")
    assert planned["nbytes"] == local.nbytes
    assert fetched < 2 * len(model)
    if what == "convert":
        assert (tmp_path / "a.gguf").stat().st_size == planned["nbytes"]
    else:
        assert not list(tmp_path.iterdir())


def test_json_of_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = str(tmp_path / "a.gguf")
    for line in (
        ["plan", TINY, dst, "--to", "gguf.q8_0"],
        ["convert", TINY, dst, "--to", "gguf.q8_0"],
        ["convert", TINY, dst, "--to", "gguf.q8_0"],  # does nothing
        ["convert", TINY, dst, "--to", "gguf.q8_0", "--dry-run"],
        ["inspect", dst],
        ["inspect", dst, "output.weight"],
        ["verify", dst, "--against", TINY],
        ["report", dst],
        *(["list", what] for what in ("formats", "codecs", "conversions", "levels")),
        ["env"],
    ):
        code, out, _ = run(capsys, *line, "--json")
        assert code == 0, line
        assert json.loads(out, parse_constant=pytest.fail), line


def test_ctrl_c_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subbyte, "plan", stopped)
    assert cli.main(["plan", str(SMALL_LLAMA), "--to", "gguf.q8_0"]) == 130
    assert "interrupted; nothing was left" in capsys.readouterr().err
