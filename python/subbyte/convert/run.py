"""Running a plan: units of rows from the source through the codec into the file, in bounded memory, resumably.

Several units are read, converted and hashed at the same time; one thread writes them in file order and notes each in
the journal, so at most one unit is written and not noted when a run dies.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from subbyte import _native
from subbyte.convert.journal import Journal, differences, identify
from subbyte.convert.manifest import combined, digest
from subbyte.convert.output import Output
from subbyte.convert.report import Report, Row
from subbyte.convert.types import Raw
from subbyte.convert.values import encode, first_invalid_block
from subbyte.errors import CancelledError, Error, IoError, NonFiniteError
from subbyte.ggml import TYPES
from subbyte.planning.output import Plan, TensorPlan

CHUNK = 1 << 21
"""Elements of a unit, which is written, hashed and noted at once."""

PIECE = 1 << 19
"""Elements that are encoded at once: the slowest encoders take less than a second, so a run stops quickly."""

_SYNC = 256 << 20
"""Bytes after which those written before are made durable, so that completing a large file does not take long."""

Progress = Callable[[int, int, str], None]
"""Called with (bytes written, bytes of all tensors, name of the tensor) after each unit."""

Cancel = Callable[[], bool]
"""Asked after each unit whether to stop: ``threading.Event().is_set``."""

T = TypeVar("T")

logger = logging.getLogger("subbyte.convert")


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of rows of one tensor, and its bytes in the target's tensor."""

    number: int
    tensor: int
    first: int
    last: int
    offset: int
    nbytes: int


def worker_count() -> int:
    """Units that are worked on at the same time: one more than threads compute, so that reading overlaps."""
    return min(max(2, _native.num_threads() + 1), 8)


def unit_rows(tensor: TensorPlan) -> int:
    """Rows of a unit of the tensor."""
    return max(1, CHUNK // max(tensor.recipe.columns, 1))


def units(tensors: Sequence[TensorPlan]) -> Iterator[Unit]:
    """The units of all tensors, in file order."""
    number = 0
    for index, tensor in enumerate(tensors):
        rows = tensor.recipe.rows if tensor.nbytes else 0
        size, step = tensor.nbytes // max(rows, 1), unit_rows(tensor)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield Unit(number, index, first, last, first * size, (last - first) * size)
            number += 1


def run(
    plan: Plan,
    dst: Path,
    journal: Journal,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Report:
    """Write the planned files, going on from what ``journal`` says an earlier run wrote.

    ``dst`` appears when it is complete. When the run is stopped or the system fails, what was written so far is kept
    for the next run; when the source cannot be converted, nothing is left.

    Raises:
        ArgumentError: an unfinished file of another conversion is there, and ``fresh`` is not set.
        NonFiniteError: a value or a scale is not finite; names tensor, row and column of the source.
        CancelledError: ``cancel`` asked to stop.
        IoError: reading or writing failed.
        Error: there is too little space, or the source is damaged.
    """
    identity = identify(plan)
    resume = journal.begin(identity, fresh=fresh)
    output = Output(plan, dst, resume=resume)
    job = _Job(plan, dst, journal, output, progress, cancel)
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
        output: Output,
        progress: Progress | None,
        cancel: Cancel | None,
    ) -> None:
        self.plan, self.dst, self.journal, self.output = plan, dst, journal, output
        self.tensors = plan.tensors
        self.progress, self.cancel = progress, cancel
        self.units = list(units(self.tensors))
        self.count = len(self.units)
        self.total = sum(tensor.nbytes for tensor in self.tensors)
        self.written = self.unsynced = self.resumed = 0
        self.seconds = [0.0] * len(self.tensors)
        self.stop = threading.Event()

    def run(self) -> Report:
        """Write all units that are missing."""
        start = time.perf_counter()
        workers = worker_count()
        with _pool(workers, self.stop) as pool:
            self._check_earlier(pool, workers)
            todo = [unit for unit in self.units if unit.number not in self.journal.done]
            syncing: Future[None] | None = None
            for unit, (data, sha256, seconds) in _ahead(pool, self._produce, todo, workers + 1):
                self.output.write(unit.tensor, data, unit.offset)
                self.journal.record(unit.number, sha256)
                self.seconds[unit.tensor] += seconds
                self._advance(unit)
                self.unsynced += unit.nbytes
                if self.unsynced >= _SYNC:
                    if syncing is not None:
                        syncing.result()
                    syncing, self.unsynced = pool.submit(self.output.sync), 0
            if syncing is not None:
                syncing.result()
            pool.submit(self.output.sync).result()  # in another thread: this one has to hear of Ctrl-C
        return self._report(time.perf_counter() - start)

    def _check_earlier(self, pool: ThreadPoolExecutor, workers: int) -> None:
        """Compare what an earlier run wrote with its hashes, and have the rest written again."""
        noted = [unit for unit in self.units if unit.number in self.journal.done]
        damaged = [number for number in self.journal.done if number >= self.count]
        for unit, sha256 in _ahead(pool, self._read_back, noted, workers + 1):
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
        if self.cancel is not None and self.cancel():
            raise CancelledError("stopped on request; the same conversion goes on from there", file=self.dst)

    def _produce(self, unit: Unit) -> tuple[Raw, str, float]:
        """The bytes of a unit, their hash, and the time it took."""
        begin = time.perf_counter()
        data = _rows(self.tensors[unit.tensor], unit.first, unit.last, self.stop)
        sha256 = digest(np.ascontiguousarray(data))
        return data, sha256, time.perf_counter() - begin

    def _report(self, seconds: float) -> Report:
        hashes: list[list[str]] = [[] for _ in self.tensors]
        for unit in self.units:
            hashes[unit.tensor].append(self.journal.done[unit.number])
        rows = [
            Row.of(tensor, taken, combined(found), unit_rows(tensor))
            for tensor, taken, found in zip(self.tensors, self.seconds, hashes, strict=True)
        ]
        source = self.plan.source
        return Report(source.path, self.dst, self.plan.to, tuple(rows), tuple(self.plan.warnings),
                      tuple(source.left_out), self.plan.nbytes, seconds, self.resumed,
                      files=self.plan.sizes, not_copied=tuple(source.not_copied))  # fmt: skip


@contextmanager
def _pool(workers: int, stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Threads that are told to stop when the block is left by an exception."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="subbyte")
    try:
        yield pool
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor, call: Callable[[Unit], T], todo: Sequence[Unit], ahead: int
) -> Iterator[tuple[Unit, T]]:
    """Results of ``call`` in order, with at most ``ahead`` units under way."""
    waiting: deque[tuple[Unit, Future[T]]] = deque()
    for unit in todo:
        waiting.append((unit, pool.submit(call, unit)))
        if len(waiting) >= ahead:
            first, result = waiting.popleft()
            yield first, result.result()
    for unit, result in waiting:
        yield unit, result.result()


def _rows(tensor: TensorPlan, first: int, last: int, stop: threading.Event) -> Raw:
    recipe = tensor.recipe
    begin = first
    try:
        if recipe.type == tensor.type:
            data = recipe.read(first, last)
            bad = first_invalid_block(tensor.type, data)
            if bad is not None:
                _refuse(tensor, bad)
            return data
        data = np.empty((last - first, tensor.nbytes // recipe.rows), np.uint8)
        step = max(1, PIECE // max(recipe.columns, 1))
        for begin in range(first, last, step):
            if stop.is_set():
                raise CancelledError("stopped")
            end = min(begin + step, last)
            raw = recipe.read(begin, end)
            data[begin - first : end - first] = (
                encode(recipe.type, raw, recipe.columns, tensor.type)
                if tensor.importance is None
                else tensor.importance.encode(recipe.type, raw, recipe.columns, tensor.type, begin)
            )
        return data
    except Error as error:
        recipe.locate(error, begin)
        raise


def _refuse(tensor: TensorPlan, block: int) -> None:
    columns, size = tensor.recipe.columns, TYPES[tensor.type].block
    row, column = divmod(block * size, columns)
    what = "a value" if size == 1 else "the scale of a block"
    raise NonFiniteError(f"{what} is NaN or infinite", tensor=tensor.name, row=row, column=column)


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
