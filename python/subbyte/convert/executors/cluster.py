"""A Ray cluster as executor.

Each process of the cluster makes the plan once, from the same arguments, and converts nothing unless it is the plan of
the run: same version, options, source files, header. A task is a few units; Ray starts it where processors are free,
and once more elsewhere when its process or its machine dies. What comes back is checked against the hash that the
worker computed, so that a unit is what was made of the source or the run ends.

One task has one processor and encodes with one thread; with ``SUBBYTE_NUM_THREADS=n`` it has n of both, which makes
fewer processes that hold a plan and layers in memory.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from subbyte import __version__, _native
from subbyte.convert.executors.threads import POLL
from subbyte.convert.journal import differences, identify
from subbyte.convert.manifest import digest
from subbyte.convert.units import Made, Unit, make, together
from subbyte.errors import Error, IoError, UnsupportedError, one_line
from subbyte.planning.output import Plan, TensorPlan

RETRIES = 3
"""How often a task is done again whose process or machine died: what kills every process is in the source."""

TIMEOUT = 10.0
"""Seconds in which the cluster has to answer; Ray itself would try for minutes."""

MOST_TOGETHER = 256 << 20
"""Bytes of the units of one task."""

logger = logging.getLogger("subbyte.convert")


class Cluster:
    """The cluster that this process is connected to, that ``RAY_ADDRESS`` names, or that runs on this machine; where
    there is none, Ray starts one on this machine until the run ends.
    """

    def __init__(self, replan: Callable[[], Plan]) -> None:
        """``replan`` makes the plan in another process; can be pickled.

        Raises:
            UnsupportedError: Ray is not installed.
        """
        try:
            import ray
        except ImportError:
            raise UnsupportedError("the executor 'ray' needs the package ray: pip install 'subbyte[ray]'") from None
        self._ray: Any = ray
        self._replan = replan

    def made(
        self, plan: Plan, todo: Sequence[Unit], check: Callable[[], None]
    ) -> Generator[tuple[Unit, Made], None, None]:
        """As `subbyte.convert.executors.Executor`.

        Raises:
            IoError: the cluster cannot be reached, has lost too many workers, or has another version or source.
        """
        if not todo:
            return
        ray = self._ray
        with _connected(ray):
            threads = _threads(ray)
            job = ray.put(pickle.dumps((self._replan, identify(plan), os.getcwd(), threads)))
            task = ray.remote(num_cpus=threads, max_retries=RETRIES)(_convert)
            batches = together(plan.tensors, todo, MOST_TOGETHER)
            waiting: deque[tuple[list[Unit], Any]] = deque()
            logger.info("%s processors in the cluster, %d for a task", ray.cluster_resources().get("CPU", 0), threads)
            try:
                while True:
                    # Twice as many as are worked on: none waits for this process, and a cluster that grows is used.
                    most = max(2, 2 * int(ray.cluster_resources().get("CPU", 0)) // threads)
                    while len(waiting) < most and (batch := next(batches, None)) is not None:
                        waiting.append((batch, task.remote(job, batch)))
                    if not waiting:
                        return
                    batch, result = waiting[0]
                    for unit, made in zip(batch, _fetched(ray, result, check), strict=False):
                        yield unit, _checked(made, unit)
                    waiting.popleft()
            finally:
                for _, result in waiting:
                    with suppress(Exception):  # the cluster may be gone; the run ends with what it knows
                        ray.cancel(result, force=True)


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connected to a cluster; disconnected afterwards unless this process was connected before."""
    if ray.is_initialized():
        yield
        return
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    before = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # of many classes, its own and builtin ones
            raise IoError(f"Ray: no connection to a cluster: {one_line(error)}") from error
        yield
    finally:
        ray.shutdown()
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray sets its own


def _check_address(address: str) -> None:
    """Raises `IoError` where nothing answers; an address without a port (``auto``) is left to Ray."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise IoError(f"no Ray cluster answers at RAY_ADDRESS={address}: {one_line(error)}") from None


def _threads(ray: Any) -> int:
    """Processors of a task: as many as the user says, one by default, no more than the largest machine has."""
    asked = _native.num_threads() if os.environ.get("SUBBYTE_NUM_THREADS", "").strip() else 1
    machines = (int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    return max(1, min(asked, max(machines, default=1)))


def _fetched(ray: Any, result: Any, check: Callable[[], None]) -> list[Made | Error]:
    while not ray.wait([result], timeout=POLL)[0]:
        check()
    try:
        found: list[Made | Error] = ray.get(result)
        return found
    except ray.exceptions.RayTaskError as error:
        # What is not an error of ours comes from the worker's surroundings: subbyte is missing, memory ran out.
        raise IoError(
            f"a worker failed: {one_line(error.cause)}; every machine needs subbyte {__version__} and memory for a "
            "few layers"
        ) from error
    except ray.exceptions.RayError as error:
        raise IoError(f"Ray: {one_line(error)}") from error


def _checked(made: Made | Error, unit: Unit) -> Made:
    if isinstance(made, Error):
        raise made
    if made.data.nbytes != unit.nbytes or digest(made.data) != made.sha256:
        raise IoError(f"{made.data.nbytes} bytes came damaged from a worker, {unit.nbytes} were expected")
    return made


def _convert(job: bytes, units: Sequence[Unit]) -> list[Made | Error]:
    """The task: what became of the units, up to the first that fails. Runs in a process of the cluster."""
    made: list[Made | Error] = []
    never = threading.Event()  # a task that is not wanted any more is killed
    try:
        tensors = _tensors(job)
        for unit in units:
            made.append(make(tensors[unit.tensor], unit, never))
    except Error as error:
        made.append(error)
    return made


@lru_cache(maxsize=1)
def _tensors(job: bytes) -> tuple[TensorPlan, ...]:
    """The tensors of the run's plan, made in this process.

    Raises:
        IoError: this machine makes another plan of the same arguments.
    """
    replan, identity, folder, threads = pickle.loads(job)
    os.environ["SUBBYTE_NUM_THREADS"] = str(threads)
    with suppress(OSError):  # only relative paths need it
        os.chdir(folder)
    plan: Plan = replan()
    if different := differences(identity, identify(plan)):
        raise IoError(
            f"the machine {socket.gethostname()} plans another conversion, which differs in {', '.join(different)}; "
            "every machine needs the same subbyte and the same source"
        )
    return plan.tensors
