"""The journal of a conversion: how a run that was stopped or killed goes on where it was.

The journal of ``model.gguf`` is ``model.gguf.subbyte-journal``; the unfinished file is ``model.gguf.subbyte-part``
(for a folder likewise).
The journal's first line identifies the conversion, each further line is one unit (a range of rows) that was written,
with its hash. It is locked while a run goes on, so a second run on the same target is refused; the lock dies with its
process. Whatever the journal says is checked against the bytes before it is trusted: neither a kill nor a power cut
can make it lie. Both files are gone when the conversion is complete.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from subbyte import __version__, _native
from subbyte.convert.manifest import digest
from subbyte.convert.source import stamp
from subbyte.errors import ArgumentError, BusyError

if TYPE_CHECKING:
    from subbyte.planning.output import Plan

VERSION = 1
_MOST_BYTES = 1 << 30
_POLL = 0.2
_BEGIN = b'{"subbyte_journal":'


def journal_path(dst: Path) -> Path:
    """The name of the journal of ``dst``."""
    return dst.with_name(dst.name + ".subbyte-journal")


def partial_path(dst: Path) -> Path:
    """The name of ``dst`` while it is unfinished."""
    return dst.with_name(dst.name + ".subbyte-part")


def identify(plan: Plan) -> dict[str, Any]:
    """What has to be equal for a run to go on from another: JSON data, one item for each thing a user can change.

    The headers of the planned files hold their metadata and the names, types and shapes of their tensors.

    Raises:
        IoError: a file of the source cannot be looked at.
    """
    origins = [
        [tensor.name, tensor.recipe.type, *([Path(where.path).name, where.offset] for where in tensor.recipe.ranges)]
        for tensor in plan.tensors
    ]
    files = [stamp(path) for path in plan.source.files]
    return {
        "subbyte": __version__,
        "options": dict(plan.options),
        "source": {str(name): [size, modified] for name, size, modified in files} | plan.source.remote,
        "plan": digest(plan.header + json.dumps(origins).encode()),
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words; empty where they are equal."""
    found = []
    if old.get("subbyte") != new["subbyte"]:
        found.append(f"subbyte {old.get('subbyte')} (now {new['subbyte']})")
    for item, what in (("options", "option"), ("source", "source file")):
        before = old.get(item)
        before, after = before if isinstance(before, dict) else {}, new[item]
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                values = f" {before.get(name)} (now {after.get(name)})" if item == "options" else ""
                found.append(f"{what} {name}{values}")
    if old.get("plan") != new["plan"] and not found:
        found.append("the plan")
    return found


class Journal:
    """The open, locked journal of one target.

    Attributes:
        done: hashes of the units that are written, by number.
        earlier: whether an earlier run left notes here, if only torn ones.
        files: names in its unfinished folder, as far as it noted them.
    """

    def __init__(self, native: _native.Journal, dst: Path) -> None:
        self._native = native
        self._dst = dst
        self.done: dict[int, str] = {}
        self.earlier = False
        self.files: list[str] = []
        self._old: dict[str, Any] | None = None
        self._load()

    @classmethod
    def open(cls, dst: Path, *, wait: bool = False) -> Journal:
        """Lock the target; with ``wait``, as soon as the run that has it ends.

        Raises:
            BusyError: another run writes to the same target.
            ArgumentError: a file that is no journal has the journal's name.
            IoError: the journal cannot be created or read.
        """
        while True:
            native = _native.Journal.open(os.fspath(journal_path(dst)))
            if native is not None:
                return cls(native, dst)
            if not wait:
                raise BusyError(
                    "another conversion to this target is running; let it end, or wait for it with --wait (wait=True)",
                    file=dst,
                )
            time.sleep(_POLL)

    def _load(self) -> None:
        """What an earlier run noted, up to the first line that is not whole.

        Raises:
            ArgumentError: something else is under the journal's name.
        """
        text = self._native.read(_MOST_BYTES)
        self.earlier = bool(text)
        kept = 0
        for line in text.splitlines(keepends=True):
            entry = _parse(line)
            if self._old is None:
                identity = entry.get("identity")
                if entry.get("subbyte_journal") != VERSION or not isinstance(identity, dict):
                    break
                self._old = identity
                files = entry.get("files")
                self.files = [name for name in files if isinstance(name, str)] if isinstance(files, list) else []
            else:
                unit, sha256 = entry.get("unit"), entry.get("sha256")
                if not isinstance(unit, int) or not isinstance(sha256, str):
                    break
                self.done[unit] = sha256
            kept += len(line)
        rest = text.strip(b"\0\r\n ")
        if self._old is None and rest and not (rest.startswith(_BEGIN) or _BEGIN.startswith(rest)):
            self._native.close()
            raise ArgumentError(
                "is there, but is no journal of a conversion, and would be lost; rename it, or choose another target",
                file=journal_path(self._dst),
            )
        if 0 < kept < len(text):  # without a whole line it stays as the sign that a run was here
            self._native.truncate(kept)

    def goes_on(self, identity: dict[str, Any], *, fresh: bool) -> bool:
        """Whether units of an earlier run of the same conversion can be used; :meth:`begin` is to be called otherwise.

        Raises:
            ArgumentError: the earlier run was another conversion, and ``fresh`` is not set.
        """
        different = [] if self._old is None else differences(self._old, identity)
        if self.done and different and not fresh:
            raise ArgumentError(
                f"an unfinished conversion is here that differs in {', '.join(different)}; finish it with the command "
                "it was started with, or start over with --fresh (fresh=True)",
                file=self._dst,
            )
        return bool(self.done) and not different and not fresh

    def begin(self, identity: dict[str, Any], files: list[str]) -> None:
        """Start over, with nothing written yet; ``files`` are the names in the folder that is to be written."""
        self.done, self.earlier = {}, False
        self._native.truncate(0)
        self._append({"subbyte_journal": VERSION, "identity": identity, "files": files})

    def forget(self, units: list[int]) -> None:
        """Drop units whose bytes are not what the journal says; a later line about them counts again."""
        for unit in units:
            del self.done[unit]

    def record(self, unit: int, sha256: str) -> None:
        """Note that a unit is written."""
        self.done[unit] = sha256
        self._append({"unit": unit, "sha256": sha256})

    def _append(self, entry: dict[str, Any]) -> None:
        self._native.append(json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def remove(self) -> None:
        """Remove and unlock: the conversion is complete, or leaves nothing to go on from."""
        self.done = {}
        self._native.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock; a journal that nothing can be gone on from, and that tells of no unfinished file, goes."""
        if self.done or self.earlier:
            self._native.close()
        else:
            self._native.remove()


def _parse(line: bytes) -> dict[str, Any]:
    """The object on a whole line; empty for anything else."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
