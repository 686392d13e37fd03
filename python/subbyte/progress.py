"""How the command shows that it is working: a bar on a terminal, lines in a log, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]

MODES = ("auto", "bar", "log", "json", "none")

_WINDOW = 16
"""Units whose speed an estimate is made from."""

_FEWEST = 3
"""Units after which there is an estimate."""


@contextmanager
def shown(what: str, counted: str, mode: str = "auto", *, programs: bool = False) -> Iterator[Progress | None]:
    """A progress callback that writes to standard error.

    Args:
        what: what is being done: ``converting``.
        counted: what the callback counts: ``bytes``.
        mode: ``bar``; ``log``: a line for each unit of work; ``json``: an object on a line for each; ``none``;
            ``auto``: a bar on a terminal, else ``log``, or ``json`` for programs.
        programs: whether the output of the command is for programs.
    """
    if mode == "auto":
        mode = "json" if programs else "bar" if sys.stderr.isatty() else "log"
    if mode == "json":
        yield _json_lines(what)
    elif mode == "log":
        yield _lines(what, counted)
    elif mode == "bar":
        with _bar(what) as bar:
            yield bar
    else:
        yield None


class _Pace:
    """The time that is left, from the speed of the last units: large and small tensors differ too much for a mean."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.marks: deque[tuple[float, int]] = deque(maxlen=_WINDOW)

    def left(self, done: int, total: int) -> float | None:
        """Seconds that are left, after another unit; ``None`` while that cannot be told."""
        self.marks.append((time.monotonic(), done))
        (since, before), (now, _) = self.marks[0], self.marks[-1]
        if len(self.marks) < _FEWEST or done <= before:
            return None
        return (total - done) * (now - since) / (done - before)


def _json_lines(what: str) -> Progress:
    pace = _Pace()

    def line(done: int, total: int, name: str) -> None:
        left = pace.left(done, total)
        entry = {
            "event": what, "done": done, "total": total, "tensor": name, "seconds": time.monotonic() - pace.start,
            "seconds_left": left,
        }  # fmt: skip
        print(json.dumps(entry), file=sys.stderr, flush=True)

    return line


def _lines(what: str, counted: str) -> Progress:
    from subbyte.convert.report import printable  # needs NumPy, which --help does not wait for

    pace = _Pace()

    def line(done: int, total: int, name: str) -> None:
        left = pace.left(done, total)
        rest = "" if left is None or done >= total else f", {left:.0f} s left"
        place = f"{done:,} of {total:,} {counted}{rest}"
        print(f"{what} {100 * done // max(total, 1):3d} % {printable(name)} ({place})", file=sys.stderr, flush=True)

    return line


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    """rich's bar if it is installed, else a percentage."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress as RichProgress
    except ImportError:
        with _percentage(what) as percent:
            yield percent
        return
    from subbyte.convert.report import printable

    with RichProgress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def show(done: int, total: int, name: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{what} {escape(printable(name))}")

        yield show


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
