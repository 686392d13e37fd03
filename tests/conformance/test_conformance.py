"""The conformance manifests beside the golden files, with the public API, on every SIMD level."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest

RUNNER = Path(__file__).parent / "run.py"


def results(run_python, tmp_path, golden, family, *options, **env):
    report = tmp_path / "report.json"
    arguments = (family, "--golden", str(golden.parent), "--json", str(report), *options)
    # The runner exits with 1 where anything is missing; the caller knows what may be.
    run_python(RUNNER, *arguments, exits=(0, 1), timeout=900, **env)
    rows = json.loads(report.read_text())
    assert rows
    return rows


def explain(rows):
    counts = collections.Counter((r["family"], r["op"], r["result"]) for r in rows)
    first = "\n".join(
        f"{r['family']}/{r['case']} #{r['check']} {r['op']}: {r['result']}: {r['why'][:200]}" for r in rows[:20]
    )
    return f"{dict(counts)}\n{first}"


FAMILIES = sorted(manifest.parent.name for manifest in (RUNNER.parent.parent / "golden").glob("*/cases.json"))


@pytest.mark.parametrize("family", ["gguf", *FAMILIES])
def test_everything(run_python, tmp_path, golden, family):
    failed = [r for r in results(run_python, tmp_path, golden, family) if r["result"] != "pass"]
    assert not failed, explain(failed)


def test_codecs_on_every_level(level, run_python, tmp_path, golden):
    rows = results(run_python, tmp_path, golden, "gguf", "--op", "decode", "--op", "encode", SUBBYTE_SIMD=level)
    failed = [r for r in rows if r["result"] != "pass"]
    assert not failed, explain(failed)
