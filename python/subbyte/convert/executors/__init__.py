"""Who converts the units of a plan: the threads of this process, or the machines of a Ray cluster.

An executor only makes bytes. It gives back each unit with its bytes and their hash, in file order, and the run, in one
process and one thread, writes and notes them (:mod:`subbyte.convert.run`). So whatever executes, there is one writer,
one lock and one journal; at most one unit is written and not noted when a run dies; an unfinished conversion goes on
with any executor; and workers need to read the source, but never to write where the target is. What this costs is that
the target's bytes pass through one machine, which low-bit targets make few: encoding is what takes the time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from subbyte.convert.executors.threads import Threads
from subbyte.convert.units import Made, Unit
from subbyte.errors import ArgumentError
from subbyte.planning.output import Plan

__all__ = ["EXECUTORS", "Executor", "find_executor"]

EXECUTORS = ("local", "ray")
"""The names of the executors."""


class Executor(Protocol):
    """What makes the bytes of units."""

    def made(
        self, plan: Plan, todo: Sequence[Unit], check: Callable[[], None]
    ) -> Generator[tuple[Unit, Made], None, None]:
        """The units ``todo`` of the plan with what became of them, in their order; closing it stops the work.

        Args:
            plan: what is to be written.
            todo: units of it, in file order.
            check: called several times a second while nothing else happens; raises to stop.

        Raises:
            Error: a unit cannot be made: the error of the first one in file order.
        """
        ...


def find_executor(name: str, replan: Callable[[], Plan]) -> Executor:
    """The executor of this name.

    Args:
        name: one of `EXECUTORS`.
        replan: makes the plan once more, in another process; can be pickled.

    Raises:
        ArgumentError: there is none of this name.
    """
    if name == "local":
        return Threads()
    if name == "ray":
        from subbyte.convert.executors.cluster import Cluster

        return Cluster(replan)
    raise ArgumentError(f"executor: expected {' or '.join(map(repr, EXECUTORS))}, found {name!r:.80}")
