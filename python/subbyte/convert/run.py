"""Running a plan: units of rows from the source through the codec into the file, in bounded memory, resumably.

An executor (:mod:`subbyte.convert.executors`) reads, converts and hashes several units at the same time; one thread
writes them in file order and notes each in the journal, so at most one unit is written and not noted when a run dies.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from subbyte.convert.executors import Executor
from subbyte.convert.executors.threads import ahead, pool
from subbyte.convert.journal import Journal, differences, identify
from subbyte.convert.manifest import combined, digest
from subbyte.convert.output import Output, clear_partial
from subbyte.convert.report import Report, Row
from subbyte.convert.units import Unit, in_pieces, unit_rows, units
from subbyte.errors import CancelledError, Error, IoError
from subbyte.planning.output import Plan

_SYNC = 256 << 20
"""Bytes after which those written before are made durable, so that completing a large file does not take long."""

Progress = Callable[[int, int, str], None]
"""Called with (bytes written, bytes of all tensors, name of the tensor) after each unit."""

Cancel = Callable[[], bool]
"""Asked after each unit, and several times a second, whether to stop: ``threading.Event().is_set``."""

logger = logging.getLogger("subbyte.convert")


def run(
    plan: Plan,
    dst: Path,
    journal: Journal,
    executor: Executor,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Report:
    """Write the planned files, going on from what ``journal`` says an earlier run wrote.

    ``dst`` appears when it is complete. When the run is stopped or the system fails, what was written so far is kept
    for the next run, whichever executor makes the rest; when the source cannot be converted, nothing is left.

    Raises:
        ArgumentError: an unfinished file of another conversion is there, and ``fresh`` is not set.
        NonFiniteError: a value or a scale is not finite; names tensor, row and column of the source.
        CancelledError: ``cancel`` asked to stop.
        IoError: reading or writing failed.
        Error: there is too little space, or the source is damaged.
    """
    identity = identify(plan)
    resume = journal.goes_on(identity, fresh=fresh)
    clear_partial(plan, dst, journal, keep=resume)
    if not resume:
        journal.begin(identity, list(plan.sizes))
    output = Output(plan, dst, resume=resume)
    job = _Job(plan, dst, journal, executor, output, progress, cancel)
    journal.forget([unit.number for unit in job.units if unit.tensor in output.new and unit.number in journal.done])
    try:
        report = job.run()
        changed = differences(identity, identify(plan))
        if changed:
            raise Error(f"{', '.join(changed)}: changed while it was read; convert it again", file=plan.source.path)
        output.complete(identity, report.to_json())
        logger.info("%s: complete, %d bytes", dst, plan.nbytes)
    except BaseException as error:
        failed = isinstance(error, Error) and not isinstance(error, IoError | CancelledError)
        if failed or not journal.done:
            output.discard()
            journal.remove()
        else:
            output.abort()
            logger.info("%s: stopped after %d of %d units", dst, len(journal.done), job.count)
        if journal.done:
            rest = f"{100 * len(journal.done) // job.count} % is done; the same command goes on from there"
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(rest) from None
            if isinstance(error, IoError):
                error.message += f"; {rest}"
        raise
    journal.remove()
    return report


class _Job:
    """One run of a plan."""

    def __init__(
        self,
        plan: Plan,
        dst: Path,
        journal: Journal,
        executor: Executor,
        output: Output,
        progress: Progress | None,
        cancel: Cancel | None,
    ) -> None:
        self.plan, self.dst, self.journal, self.executor, self.output = plan, dst, journal, executor, output
        self.tensors = tuple(map(in_pieces, plan.tensors))
        self.progress, self.cancel = progress, cancel
        self.units = list(units(self.tensors))
        self.count = len(self.units)
        self.total = sum(tensor.nbytes for tensor in self.tensors)
        self.written = self.unsynced = self.resumed = 0
        self.seconds = [0.0] * len(self.tensors)

    def run(self) -> Report:
        """Write all units that are missing."""
        start = time.perf_counter()
        with pool() as threads:
            self._check_earlier(threads)
            todo = [unit for unit in self.units if unit.number not in self.journal.done]
            syncing: Future[None] | None = None
            with closing(self.executor.made(self.plan, todo, self._check)) as results:
                for unit, made in results:
                    self.output.write(unit.tensor, made.data, unit.offset)
                    self.journal.record(unit.number, made.sha256)
                    self.seconds[unit.tensor] += made.seconds
                    self._advance(unit)
                    self.unsynced += unit.nbytes
                    if self.unsynced >= _SYNC:
                        if syncing is not None:
                            syncing.result()
                        syncing, self.unsynced = threads.submit(self.output.sync), 0
            if syncing is not None:
                syncing.result()
            threads.submit(self.output.sync).result()  # in another thread: this one has to hear of Ctrl-C
        return self._report(time.perf_counter() - start)

    def _check_earlier(self, threads: ThreadPoolExecutor) -> None:
        """Compare what an earlier run wrote with its hashes, and have the rest written again."""
        noted = [unit for unit in self.units if unit.number in self.journal.done]
        damaged = [number for number in self.journal.done if number >= self.count]
        for unit, sha256 in ahead(threads, self._read_back, noted, self._check):
            if sha256 != self.journal.done[unit.number]:
                damaged.append(unit.number)
                continue
            self.output.mark(unit.tensor, unit.offset, unit.nbytes)
            self.resumed += unit.nbytes
            self._advance(unit)
        self.journal.forget(damaged)
        if noted:
            logger.info("%s: going on after %d of %d units", self.dst, len(self.journal.done), self.count)

    def _read_back(self, unit: Unit) -> str:
        return digest(self.output.read(unit.tensor, unit.offset, unit.nbytes))

    def _advance(self, unit: Unit) -> None:
        self.written += unit.nbytes
        if self.progress is not None:
            self.progress(self.written, self.total, self.tensors[unit.tensor].name)
        self._check()

    def _check(self) -> None:
        if self.cancel is not None and self.cancel():
            raise CancelledError("stopped on request; the same conversion goes on from there", file=self.dst)

    def _report(self, seconds: float) -> Report:
        hashes: list[list[str]] = [[] for _ in self.tensors]
        for unit in self.units:
            hashes[unit.tensor].append(self.journal.done[unit.number])
        rows = [
            Row.of(tensor, taken, combined(found), unit_rows(tensor), tensor.recipe.columns)
            for tensor, taken, found in zip(self.tensors, self.seconds, hashes, strict=True)
        ]
        source = self.plan.source
        return Report(source.path, self.dst, self.plan.to, tuple(rows), tuple(self.plan.warnings),
                      tuple(source.left_out), self.plan.nbytes, seconds, self.resumed,
                      files=self.plan.sizes, not_copied=tuple(source.not_copied))  # fmt: skip


@contextmanager
def made_folder(dst: Path) -> Iterator[None]:
    """The folder that ``dst`` is to be in; if the block fails, the folders that were made and are empty go again.

    Raises:
        IoError: it cannot be made.
    """
    new = [folder for folder in dst.parents if not os.path.lexists(folder)]
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(dst.parent)) from None
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something is in it: what the next run goes on from
            for folder in new:
                folder.rmdir()
        raise
