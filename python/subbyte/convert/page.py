"""The report as one HTML page: inline SVG, no script, no request; readable on a phone and in dark mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from subbyte.convert.report import printable

if TYPE_CHECKING:
    from subbyte.convert.summary import Entry, Summary

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --page: #ffffff; --bar: #2f6fb5;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #30363d; --page: #0d1117;
  --bar: #6cb0f5; --bad: #ff8f87; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, dd { color: var(--soft); overflow-wrap: anywhere; } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1rem 0; }
dt { font-size: .8rem; color: var(--soft); } dd { margin: 0; color: var(--ink); font-size: 1.15rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
rect, circle { fill: var(--bar); } line { stroke: var(--line); } summary { cursor: pointer; }
"""

_WIDTH, _BAR = 640, 22


def page(found: Summary) -> str:
    """The page of a report."""
    name = _text(found.path.name)
    facts = [
        ("tensors", f"{len(found.tensors):,}"), ("bytes of tensors", f"{found.nbytes:,}"),
        ("parameters", f"{found.elements:,}"), ("bits per weight", f"{found.bits_per_weight:.2f}"),
    ]  # fmt: skip
    if found.made:
        facts += [("made as", _text(found.made["to"])), ("time", f"{found.made['seconds']:.1f} s")]
    body = [f"<h1>{name}</h1>", f"<p>Checked: {_text(found.checked)}</p>"]
    if found.made:
        body.append(f"<p>Made from {_text(found.made['src'])} by subbyte {_text(found.made['subbyte'])}.</p>")
    body.append("<dl>" + "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in facts) + "</dl>")
    body += [f'<p class="bad">{_text(failure)}</p>' for failure in found.failures]
    body += [f"<p>Warning: {_text(warning)}</p>" for warning in found.warnings]
    roles = found.by_role()
    sizes = [(role, size, f"{size:,} B, {bits:.2f} bits") for role, (_, size, bits) in roles.items()]
    body += ["<h2>Size by role</h2>", _bars(sizes)]
    from subbyte.convert.summary import histogram

    bars = histogram([(entry.bits_per_weight, entry.elements) for entry in found.tensors])
    body += ["<h2>Parameters by bits per weight</h2>",
             _bars([(f"{label} bits", count, f"{count:,}") for label, count in bars])]  # fmt: skip
    measured = [entry for entry in found.tensors if entry.relative_error is not None]
    if measured:
        body += ["<h2>Relative error by layer</h2>", _dots(measured)]
        worst = found.worst()
        if worst:
            body += ["<h2>Largest relative errors</h2>", _table(worst)]
    else:
        body.append("<h2>Errors</h2><p>Not measured: run subbyte report with --against SRC.</p>")
    body += [f"<details><summary>All {len(found.tensors)} tensors</summary>{_table(found.tensors)}</details>"]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _bars(rows: Sequence[tuple[str, int, str]]) -> str:
    """Horizontal bars: label, length, words at the end."""
    largest = max((size for _, size, _ in rows), default=0) or 1
    left, room = 150, _WIDTH - 150 - 190
    parts = []
    for index, (label, size, words) in enumerate(rows):
        top, width = index * _BAR, max(1.0, room * size / largest)
        parts.append(
            f'<text x="{left - 8}" y="{top + 15}" text-anchor="end">{_text(label)}</text>'
            f'<rect x="{left}" y="{top + 4}" width="{width:.1f}" height="{_BAR - 8}" rx="2"/>'
            f'<text x="{left + width + 6:.1f}" y="{top + 15}">{_text(words)}</text>'
        )
    return _svg(len(rows) * _BAR, parts)


def _dots(entries: Sequence[Entry]) -> str:
    """Relative error of each tensor over its layer, with a line of the mean squares."""
    layers = max(entry.layer for entry in entries) + 2
    largest = max(entry.relative_error or 0.0 for entry in entries) or 1.0
    left, height = 56, 220

    def x(layer: int) -> float:
        return left + (layer + 1.5) * (_WIDTH - left - 8) / layers

    def y(error: float) -> float:
        return 10 + (height - 40) * (1 - error / largest)

    parts = [
        f'<line x1="{left}" y1="{y(part * largest):.1f}" x2="{_WIDTH}" y2="{y(part * largest):.1f}"/>'
        f'<text x="{left - 6}" y="{y(part * largest) + 4:.1f}" text-anchor="end">{part * largest:.2g}</text>'
        for part in (0.0, 0.5, 1.0)
    ]
    step = max(1, layers // 12)
    for layer in range(-1, layers - 1, step):
        label = "other" if layer < 0 else str(layer)
        parts.append(f'<text x="{x(layer):.1f}" y="{height - 12}" text-anchor="middle">{label}</text>')
    for entry in entries:
        error = entry.relative_error or 0.0
        parts.append(
            f'<circle cx="{x(entry.layer):.1f}" cy="{y(error):.1f}" r="3" fill-opacity=".6">'
            f"<title>{_text(entry.name)}: {error:.3g}</title></circle>"
        )
    return _svg(height, parts)


def _svg(height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {max(height, 1)}" role="img">{"".join(parts)}</svg>'


_COLUMNS: Sequence[tuple[str, bool, Callable[[Entry], str]]] = (
    ("tensor", False, lambda entry: entry.name),
    ("type", False, lambda entry: entry.type),
    ("bits", True, lambda entry: f"{entry.bits_per_weight:.2f}"),
    ("bytes", True, lambda entry: f"{entry.nbytes:,}"),
    ("values", False, lambda entry: entry.kind or ""),
    ("relative", True, lambda entry: _number(entry.relative_error)),
    ("max", True, lambda entry: _number(entry.max_error)),
    ("SQNR dB", True, lambda entry: "" if entry.sqnr is None else f"{entry.sqnr:.1f}"),
    ("cosine", True, lambda entry: "" if entry.cosine is None else f"{entry.cosine:.6f}"),
    ("clipped", True, lambda entry: "" if entry.clipped is None else f"{entry.clipped:.3%}"),
)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _table(entries: Sequence[Entry]) -> str:
    def cell(tag: str, number: bool, text: str) -> str:
        return f"<{tag}{' class=n' if number else ''}>{_text(text)}</{tag}>"

    head = "".join(cell("th", number, title) for title, number, _ in _COLUMNS)
    rows = "".join(
        "<tr>" + "".join(cell("td", number, show(entry)) for _, number, show in _COLUMNS) + "</tr>" for entry in entries
    )
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
