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
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
rect, circle { fill: var(--bar); } line { stroke: var(--line); } details { margin-top: 2rem; }
summary { cursor: pointer; }
"""

_BAR, _PLOT = 36, 220
"""Heights of a bar with its words and of a plot in pixels. Widths are percentages: text keeps its size on a phone."""

_LEFT = 13.0
"""Where the plots begin, in percent; numbers stand before it."""


BEGIN = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="subbyte report">"""
"""What every page begins with."""


def page(found: Summary) -> str:
    """The page of a report."""
    name = _text(found.path.absolute().name)
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
    body += ["<h2>Size by role</h2>", _bars("Size by role", sizes)]
    from subbyte.convert.summary import histogram

    bars = histogram([(entry.bits_per_weight, entry.elements) for entry in found.tensors])
    body += ["<h2>Parameters by bits per weight</h2>",
             _bars("Parameters by bits per weight", [(f"{label} bits", n, f"{n:,}") for label, n in bars])]  # fmt: skip
    measured = [entry for entry in found.tensors if entry.relative_error is not None]
    if measured:
        body += ["<h2>Relative error by layer</h2>", _by_layer(measured), "<p>–: outside the layers</p>"]
        body += ["<h2>Relative error by bits per weight</h2>", _by_bits(measured)]
        worst = found.worst()
        if worst:
            body += ["<h2>Largest relative errors</h2>", _table(worst)]
    else:
        body.append("<h2>Errors</h2><p>Not measured: run subbyte report with --against SRC.</p>")
    body += [f"<details><summary>All {len(found.tensors)} tensors</summary>{_table(found.tensors)}</details>"]
    return (
        f"{BEGIN}<title>{name}</title>"
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _bars(title: str, rows: Sequence[tuple[str, int, str]]) -> str:
    """Horizontal bars under their words: a label, the length, a text at the right."""
    largest = max((size for _, size, _ in rows), default=0) or 1
    parts = []
    for index, (label, size, words) in enumerate(rows):
        top = index * _BAR
        parts.append(
            f'<text x="0" y="{top + 14}">{_text(label)}</text>'
            f'<text x="100%" y="{top + 14}" text-anchor="end">{_text(words)}</text>'
            f'<rect x="0" y="{top + 19}" width="{max(0.2, 100 * size / largest):.2f}%" height="9" rx="2"/>'
        )
    return _svg(title, len(rows) * _BAR, parts)


def _by_layer(entries: Sequence[Entry]) -> str:
    layers = max(entry.layer for entry in entries) + 1
    ticks = [((layer + 1.5) / (layers + 1), str(layer)) for layer in range(0, layers, max(1, layers // 12))]
    ticks.append((0.5 / (layers + 1), "–"))  # outside the layers
    return _dots("Relative error by layer", entries, lambda entry: (entry.layer + 1.5) / (layers + 1), ticks)


def _by_bits(entries: Sequence[Entry]) -> str:
    most = max(entry.bits_per_weight for entry in entries) or 1.0
    step = next(step for step in (1, 2, 4, 8, 16, 32) if most <= 8 * step or step == 32)
    ticks = [(bits / most, str(bits)) for bits in range(0, int(most) + 1, step)]
    return _dots("Relative error by bits per weight", entries, lambda entry: entry.bits_per_weight / most, ticks)


def _dots(
    title: str, entries: Sequence[Entry], across: Callable[[Entry], float], ticks: Sequence[tuple[float, str]]
) -> str:
    """The relative error of each tensor; ``across`` and ``ticks`` give places from 0 to 1 and what to write there."""
    largest = max(entry.relative_error or 0.0 for entry in entries) or 1.0

    def x(part: float) -> str:
        return f"{_LEFT + (98 - _LEFT) * part:.2f}%"

    def y(error: float) -> float:
        return 10 + (_PLOT - 40) * (1 - error / largest)

    parts = []
    for error in (0.0, largest / 2, largest):
        parts.append(
            f'<line x1="{_LEFT}%" y1="{y(error):.1f}" x2="100%" y2="{y(error):.1f}"/>'
            f'<text x="{_LEFT - 1}%" y="{y(error) + 4:.1f}" text-anchor="end">{error:.2g}</text>'
        )
    parts += [f'<text x="{x(part)}" y="{_PLOT - 10}" text-anchor="middle">{label}</text>' for part, label in ticks]
    for entry in entries:
        error = entry.relative_error or 0.0
        parts.append(
            f'<circle cx="{x(across(entry))}" cy="{y(error):.1f}" r="3.5" fill-opacity=".6">'
            f"<title>{_text(entry.name)}: {error:.3g} at {entry.bits_per_weight:.2f} bits</title></circle>"
        )
    return _svg(title, _PLOT, parts)


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return f'<svg height="{max(height, 1)}" role="img" aria-label="{title}">{"".join(parts)}</svg>'


_COLUMNS: Sequence[tuple[str, bool, Callable[[Entry], str]]] = (
    ("tensor", False, lambda entry: entry.name),
    ("type", False, lambda entry: entry.type),
    ("bits", True, lambda entry: f"{entry.bits_per_weight:.2f}"),
    ("relative", True, lambda entry: _number(entry.relative_error)),
    ("SQNR dB", True, lambda entry: "" if entry.sqnr is None else f"{entry.sqnr:.1f}"),
    ("clipped", True, lambda entry: "" if entry.clipped is None else f"{entry.clipped:.3%}"),
    ("cosine", True, lambda entry: "" if entry.cosine is None else f"{entry.cosine:.6f}"),
    ("max", True, lambda entry: _number(entry.max_error)),
    ("bytes", True, lambda entry: f"{entry.nbytes:,}"),
    ("values", False, lambda entry: entry.kind or ""),
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
