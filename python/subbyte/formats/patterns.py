"""Regular expressions from settings and options, which may be hostile: none of them can run for long."""

from __future__ import annotations

import re
from functools import lru_cache
from math import comb

from subbyte.errors import FormatError, LimitError

_MAX_LENGTH = 10_000
#: Ways in which the repetitions of a pattern may divide a name among them.
_MAX_STEPS = 10_000_000


def matches(pattern: str, name: str, *, anywhere: bool = False) -> bool:
    """Whether the pattern matches the beginning of ``name``, or any part of it.

    Raises:
        FormatError: it is no regular expression.
        LimitError: matching could take too long.
    """
    compiled, repetitions = _compiled(pattern)
    starts = len(name) + 1 if anywhere else 1
    if comb(len(name) + repetitions, repetitions) * starts > _MAX_STEPS:
        raise LimitError(f"the pattern {pattern!r:.80} is too costly for a name like {name!r:.80}")
    return (compiled.search(name) if anywhere else compiled.match(name)) is not None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[re.Pattern[str], int]:
    if len(pattern) > _MAX_LENGTH:
        raise LimitError(f"a pattern has {len(pattern)} characters: at most {_MAX_LENGTH} are read")
    repetitions = _repetitions(pattern)
    try:
        return re.compile(pattern), repetitions
    except (re.error, OverflowError, RecursionError) as e:
        raise FormatError(f"the pattern {pattern!r:.80} is no regular expression: {e}") from None


def _repetitions(pattern: str) -> int:
    """Repetitions that backtracking can combine; those of alternatives exclude each other.

    A repeated group that repeats or chooses inside takes exponential time, and is refused.
    """
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    if re.search(r"\\[1-9]|\(\?P=|\(\?\(", pattern):
        raise LimitError(f"the pattern {pattern!r:.80} refers back to its groups, which is not read")
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)
    bare = re.sub(r"\(\?(P<\w*>|<[=!]|[=!:]|[a-zA-Z]*:)?", "(", bare)
    open_groups = [[0, 0, 0]]  # most repetitions of an alternative, those of this alternative, choices
    for at, character in enumerate(bare):
        if character == "(":
            open_groups.append([0, 0, 0])
        elif character == "|":
            most, here, choices = open_groups[-1]
            open_groups[-1] = [max(most, here), 0, choices + 1]
        elif character in "*+?{":
            open_groups[-1][1] += 1
        elif character == ")" and len(open_groups) > 1:
            most, here, choices = open_groups.pop()
            inside = max(most, here)
            if (inside or choices) and bare[at + 1 : at + 2] in ("*", "+", "{"):
                raise LimitError(f"the pattern {pattern!r:.80} repeats a repetition, which is not read")
            open_groups[-1][1] += inside
    return max(open_groups[0][:2])
