"""Renders the records of benches/record: ``python benches/python/report.py [--check]``.

They become docs/benchmarks.md, and the figures at the end of docs/quantizers.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import goals
from common import RECORD

PAGE = RECORD.parent.parent / "docs" / "benchmarks.md"
QUANTIZERS = PAGE.with_name("quantizers.md")
FIGURES = "\n## Figures\n"
MARK = {"aim": "✓✓", "must": "✓", "below": "✗", None: ""}
INTRODUCTION = """\
# Benchmarks

Rendered by `python benches/python/report.py` from the records in `benches/record/`; `benches/README.md` says how they
are made and where the peers come from.

One thread, by CPU time. Ours and every peer took turns in the same run, after giving the same bits. Rates are millions
of weights per second, the best of several; `3.20×` is our rate over the peer's. Processors, clouds and neighbours
differ: read ratios, not rates.

* **decode** goes to f32. *64 MB* is a destination beyond the caches, and *limit* the share of what streaming stores
  alone reach there. *16 KB* is one buffer that stays in the first-level cache.
* **encode** writes the same bytes as the peers, with importance weights where the type uses them.
* *ggml native* is ggml's base library built with `-march=native`, *ggml stock* the same with its default flags.
  Encoders are compared with the stock build: compilers fuse multiplications with additions in the native one, which
  changes the bytes.
* ✓✓ what we aim for, ✓ what we hold ourselves to, ✗ less; no mark where no peer has the type. The figures are in
  `benches/python/goals.py`.
"""

CONVERTERS = ("subbyte", "gguf-py", "llama-quantize", "cp + sync")


def main() -> int:
    """Writes the page, or says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date; write nothing")
    options = parser.parse_args()
    records = [json.loads(path.read_text()) for path in sorted(RECORD.glob("*.json"))]
    text = "\n".join([INTRODUCTION, *(line for record in records for line in _processor(record))]).rstrip() + "\n"
    prose, _, _ = QUANTIZERS.read_text().partition(FIGURES)
    figures = "\n".join(line for record in records for line in _quantizers(record)).rstrip()
    pages = {PAGE: text, QUANTIZERS: f"{prose}{FIGURES}\n{figures}\n"}
    for page, wanted in pages.items():
        if not options.check:
            page.parent.mkdir(exist_ok=True)
            page.write_text(wanted)
        elif not page.exists() or page.read_text() != wanted:
            print(f"{page.name} is out of date: run benches/python/report.py", file=sys.stderr)
            return 1
    return 0


def _processor(record: dict[str, Any]) -> Iterator[str]:
    yield f"## {record['processor']}\n"
    for level, data in record.get("block", {}).items():
        rows = {(kind, what): row for kind, whats in data["rows"].items() for what, row in whats.items()}
        versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items() if name != "subbyte")
        dates = sorted({row["date"] for row in rows.values()})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        counts = [sum(row["verdict"] == verdict for row in rows.values()) for verdict in ("aim", "must", "below")]
        yield f"### Level {level}\n"
        yield f"{when}; {versions}. Of the rows with a goal: ✓✓ {counts[0]}, ✓ {counts[1]}, ✗ {counts[2]}.\n"
        yield from _decode(rows)
        yield from _encode(rows)
    for entries, whats in record.get("header", {}).items():
        yield f"### GGUF header with {entries}\n"
        yield from _table(
            ["", "subbyte", "gguf-py", "ratio"],
            (
                [what, f"{row['ms']['subbyte']:.2f} ms", f"{row['ms']['gguf-py']:.0f} ms", f"{row['ratio']:.0f}×"]
                for what, row in whats.items()
            ),
        )
    for level, rows in record.get("checkpoints", {}).items():
        yield f"### Layers of quantized checkpoints, level {level}\n"
        yield "4096 × 4096 codes of 4 bits; the peer is what the format's library does on the CPU.\n"
        yield from _table(
            ["decode", "Mw/s", "limit", "peer", "ratio", ""],
            (
                [
                    what,
                    _rate(row),
                    f"{row['limit_share']:.0%}",
                    row["peer"],
                    f"{row['ratio']:.1f}×",
                    MARK[row["verdict"]],
                ]
                for what, row in rows.items()
            ),
        )
    for threads, rows in record.get("repack", {}).items():
        yield f"### Moving codes to another format, {threads}\n"
        yield "Wall time, hashes and waiting for the disk included; CPU time and peak memory in brackets.\n"
        yield from _table(
            ["", "subbyte", "cp + sync", "ratio", ""],
            (
                [what, _job(row["subbyte"]), _job(row["cp + sync"]), f"{row['ratio']:.2f}×", MARK[row["verdict"]]]
                for what, row in rows.items()
            ),
        )
    for job, targets in record.get("convert", {}).items():
        yield f"### Converting {job}\n"
        yield "Wall time; CPU time of all threads and peak memory, mapped files included, in brackets.\n"
        yield from _table(
            ["", *CONVERTERS],
            ([target, *(_job(runs.get(name)) for name in CONVERTERS)] for target, runs in targets.items()),
        )


def _quantizers(record: dict[str, Any]) -> Iterator[str]:
    for model, found in record.get("quantizers", {}).items():
        yield f"### {model}\n"
        made_of = f"{found['weights']:,} weights of {found['matrices']} matrices (every so many rows), {found['date']}"
        yield f"{made_of}: relative error, SQNR in dB in brackets.\n"
        for integer in (True, False):
            rows = {key: row for key, row in found["rows"].items() if key[0].isdigit() == integer}
            methods = list(dict.fromkeys(method for row in rows.values() for method in row))
            yield from _table(
                ["", *methods], ([key, *(_error(row.get(method)) for method in methods)] for key, row in rows.items())
            )
        rows = found["rows"]
        spent: dict[str, list[float]] = {}
        for key, row in rows.items():
            for method, one in row.items() if key[0].isdigit() else ():
                spent.setdefault(method, []).append(one["ns"])
        listed = ", ".join(f"{method} {min(each):.0f} to {max(each):.0f}" for method, each in spent.items())
        yield f"Nanoseconds of one thread for a weight with integer codes: {listed}.\n"


def _error(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['error']:.4f} ({found['sqnr']:.1f})"


def _job(run: dict[str, Any] | None) -> str:
    return "" if run is None else f"{run['wall_s']:.2f} s ({run['cpu_s']:.2f} s, {run['peak_mb']:.0f} MB)"


def _decode(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    peers = ["ggml-native", "libgguf", "gguf-py"]
    table = []
    for (kind, what), row in rows.items():
        if what != "decode 64MB":
            continue
        small = rows.get((kind, "decode 16KB"))
        table.append([
            kind, f"{row['mw_s']['subbyte']['best']:.0f}", f"{row['limit_share']:.0%}", *_ratios(row, peers),
            MARK[row["verdict"]], *([f"{small['mw_s']['subbyte']['best']:.0f}", *_ratios(small, peers[:2])] if small
                                    else [""] * 3),
        ])  # fmt: skip
    names = [peer.replace("-", " ", 1) if peer.startswith("ggml") else peer for peer in peers]
    header = ["decode", "64 MB", "limit", *names, "", "16 KB", *names[:2]]
    yield from _table(header, table)


def _encode(rows: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    peers = ["libgguf", "ggml-stock", "gguf-py"]
    table = []
    for (kind, what), row in rows.items():
        if not what.startswith("encode"):
            continue
        wanted = goals.encode_goals(kind, importance="+" in what)
        goal = f"{wanted[0].must:g}× / {wanted[0].aim:g}×" if wanted and row["verdict"] else ""
        name = kind + (" + importance" if "+" in what else "")
        table.append([name, _rate(row), *_ratios(row, peers), goal, MARK[row["verdict"]]])
    yield from _table(["encode", "Mw/s", "libgguf", "ggml stock", "gguf-py", "must / aim", ""], table)


def _rate(row: dict[str, Any]) -> str:
    best = row["mw_s"]["subbyte"]["best"]
    return f"{best:.0f}" if best >= 100 else f"{best:.1f}"


def _ratios(row: dict[str, Any], peers: list[str]) -> list[str]:
    ratios = [row["ratio"].get(peer) for peer in peers]
    return ["" if r is None else f"{r:.2f}×" if r < 10 else f"{r:.0f}×" for r in ratios]


def _table(header: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|---|" + "---:|" * (len(header) - 1)
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


if __name__ == "__main__":
    sys.exit(main())
