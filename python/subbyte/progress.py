"""How the command shows that it is working: a bar on a terminal, lines in a log, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]

MODES = ("auto", "bar", "log", "json", "none")


@contextmanager
def shown(what: str, mode: str = "auto") -> Iterator[Progress | None]:
    """A progress callback that writes to standard error.

    Args:
        what: what is being done: ``converting``.
        mode: ``bar``; ``log``: a line for each tensor; ``json``: an object on a line for each call; ``none``; ``auto``:
            a bar on a terminal, else nothing.
    """
    if mode == "auto":
        mode = "bar" if sys.stderr.isatty() else "none"
    if mode == "json":
        yield _json_lines(what)
    elif mode == "log":
        yield _lines(what)
    elif mode == "bar":
        with _bar(what) as bar:
            yield bar
    else:
        yield None


def _json_lines(what: str) -> Progress:
    start = time.monotonic()

    def line(done: int, total: int, name: str) -> None:
        entry = {"event": what, "done": done, "total": total, "tensor": name, "seconds": time.monotonic() - start}
        print(json.dumps(entry), file=sys.stderr, flush=True)

    return line


def _lines(what: str) -> Progress:
    """A line when a tensor is done: when the next one begins, or at the end."""
    last: tuple[int, str] | None = None

    def line(done: int, total: int, name: str) -> None:
        nonlocal last
        if last is not None and last[1] != name:
            _say(what, last[0], total, last[1])
        last = (done, name)
        if done >= total:
            _say(what, done, total, name)

    return line


def _say(what: str, done: int, total: int, name: str) -> None:
    shown = name if name.isprintable() else repr(name)
    print(f"{what} {100 * done // max(total, 1):3d} % {shown}", file=sys.stderr, flush=True)


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """rich's bar if it is installed, else a percentage."""
    try:
        from rich.console import Console
        from rich.progress import Progress as RichProgress
    except ImportError:
        with _percentage(what) as percent:
            yield percent
        return
    with RichProgress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=f"{what} {name}")


@contextmanager
def _percentage(what: str) -> Iterator[Progress]:
    before = -1

    def percent(done: int, total: int, name: str) -> None:
        nonlocal before
        now = 100 * done // max(total, 1)
        if now != before:
            before = now
            print(f"\r{what} {now:3d} %", end="", file=sys.stderr, flush=True)

    try:
        yield percent
    finally:
        print("\r" + " " * (len(what) + 6) + "\r", end="", file=sys.stderr, flush=True)
