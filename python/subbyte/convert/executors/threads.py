"""The threads of this process as executor."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from subbyte import _native
from subbyte.convert.units import Made, Unit, make, together
from subbyte.planning.output import Plan

POLL = 0.2
"""Seconds between two looks at whether to stop."""

MOST_TOGETHER = 8 << 20
"""Bytes of the units that one thread makes after each other: those of a layer, whose planes are made together."""

T = TypeVar("T")
U = TypeVar("U")


def worker_count() -> int:
    """Units that are worked on at the same time: one more than threads compute, so that reading overlaps."""
    return min(max(2, _native.num_threads() + 1), 8)


class Threads:
    """Several units at a time, each encoded by as many threads as there are (``SUBBYTE_NUM_THREADS``)."""

    def made(
        self, plan: Plan, todo: Sequence[Unit], check: Callable[[], None]
    ) -> Generator[tuple[Unit, Made], None, None]:
        """As `subbyte.convert.executors.Executor`."""
        tensors, stop = plan.tensors, threading.Event()
        groups = together(tensors, todo, MOST_TOGETHER)
        with pool() as threads:
            try:
                for group, made in ahead(
                    threads, lambda group: [make(tensors[unit.tensor], unit, stop) for unit in group], groups, check
                ):
                    yield from zip(group, made, strict=True)
            finally:
                stop.set()


@contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for `worker_count` units; what has not begun when the block is left is not done."""
    threads = ThreadPoolExecutor(worker_count(), thread_name_prefix="subbyte")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def ahead(
    threads: ThreadPoolExecutor, call: Callable[[U], T], todo: Iterable[U], check: Callable[[], None]
) -> Iterator[tuple[U, T]]:
    """Results of ``call`` in order, with few more units under way than there are threads."""
    waiting: deque[tuple[U, Future[T]]] = deque()
    most = worker_count() + 1
    for unit in todo:
        waiting.append((unit, threads.submit(call, unit)))
        if len(waiting) >= most:
            yield _first(waiting, check)
    while waiting:
        yield _first(waiting, check)


def _first(waiting: deque[tuple[U, Future[T]]], check: Callable[[], None]) -> tuple[U, T]:
    unit, result = waiting.popleft()
    while not wait([result], POLL).done:
        check()
    return unit, result.result()
