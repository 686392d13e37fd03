"""Warnings and log records of the library, and how the command shows them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import subbyte
from checkpoints import GOLDEN, checkpoint, llama_tensors
from subbyte import cli

TINY = GOLDEN / "convert" / "tiny-llama"
EXPECTED = [
    "tensor 'output_norm.weight' is missing from the checkpoint",
    "no tokenizer.model or tokenizer.json: the file gets no vocabulary",
]


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    """A checkpoint that lacks a tensor and the tokenizer."""
    tensors = llama_tensors()
    del tensors["model.norm.weight"]
    return checkpoint(tmp_path / "lacking", tensors)


def test_conversion_plan_and_verification_warn(lacking: Path, tmp_path: Path) -> None:
    dst = tmp_path / "a.gguf"
    for call in (
        lambda: subbyte.plan(lacking, to="gguf.q8_0"),
        lambda: subbyte.convert(lacking, dst, to="gguf.q8_0"),
        lambda: subbyte.verify(dst, lacking),
    ):
        with pytest.warns(subbyte.SubbyteWarning) as caught:
            result = call()
        assert [str(entry.message) for entry in caught] == EXPECTED
        assert caught[0].filename == __file__  # where the user called
        assert list(getattr(result, "warnings", EXPECTED)) == EXPECTED


def test_a_warning_can_be_made_an_error_before_anything_is_written(lacking: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", subbyte.SubbyteWarning)
        with pytest.raises(subbyte.SubbyteWarning, match="output_norm"):
            subbyte.convert(lacking, tmp_path / "out" / "a.gguf", to="gguf.q8_0")
    assert not (tmp_path / "out").exists()


def test_nothing_is_printed_without_handlers(lacking: Path, tmp_path: Path) -> None:
    script = """
import sys, warnings, subbyte
warnings.simplefilter("ignore")
report = subbyte.convert(sys.argv[1], sys.argv[2], to="gguf.q8_0")
subbyte.verify(sys.argv[2], sys.argv[1])
subbyte.report(sys.argv[2], sys.argv[1]).to_html()
assert report.warnings
"""
    arguments = [sys.executable, "-c", script, str(lacking), str(tmp_path / "a.gguf")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_details_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("subbyte").handlers)
    with caplog.at_level(logging.DEBUG, "subbyte"):
        subbyte.convert(TINY, tmp_path / "a.gguf", to="gguf.q8_0")
    details = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert len(details) == 22
    assert any(line.endswith("'output.weight' BF16 to Q8_0, quantized") for line in details)
    assert [record.name for record in caplog.records if record.levelno == logging.INFO] == ["subbyte.convert"]


def test_the_command_shows_each_warning_once(lacking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(lacking), str(tmp_path / "a.gguf"), "--to", "gguf.q8_0", "--progress", "none"]
    for line in (["convert", *arguments], ["report", arguments[1], "--against", arguments[0], "--progress", "none"]):
        assert cli.main(line) == 0
        assert capsys.readouterr().err == "".join(f"subbyte: warning: {text}\n" for text in EXPECTED)


def test_with_json_every_line_of_standard_error_is_an_object(
    lacking: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(lacking), str(tmp_path / "a.gguf"), "--to", "gguf.q8_0", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["warnings"] == EXPECTED
    events = [json.loads(line) for line in captured.err.splitlines()]
    assert events[:2] == [{"event": "warning", "kind": "", "message": text} for text in EXPECTED]
    assert {event["event"] for event in events[2:]} == {"converting"}
    assert cli.main(["inspect", "/nowhere.gguf", "--json"]) == 2
    (event,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (event["event"], event["kind"]) == ("error", "NotFoundError")
    assert "/nowhere.gguf" in event["message"]
