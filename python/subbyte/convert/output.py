"""Where a run writes: one file, or a folder of files, under an unfinished name until everything is there.

``model.gguf`` is ``model.gguf.subbyte-part`` until it is complete, the folder ``model`` is the folder
``model.subbyte-part``. Both get their names in one step, after everything in them is durable and the manifest written.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from subbyte import _native
from subbyte.convert.journal import Journal, journal_path, partial_path
from subbyte.convert.manifest import FileFacts, Manifest, find_manifest, manifest_path, pending_path
from subbyte.errors import ArgumentError, Error, IoError
from subbyte.io import same_file
from subbyte.planning.output import Plan, TensorFile


class Output:
    """The files of a plan while they are filled in.

    Attributes:
        new: numbers of the tensors whose file was begun anew, although an earlier run was to be gone on from.
    """

    def __init__(self, plan: Plan, dst: Path, *, resume: bool) -> None:
        """Reserves the space of all files.

        Raises:
            IoError: the system refused.
            Error: there is too little space.
        """
        self._plan, self._dst, self._partial = plan, dst, partial_path(dst)
        self._writers: list[_native.FileWriter] = []
        self._of: list[tuple[_native.FileWriter, str]] = []  # by number of the tensor
        self.new: set[int] = set()
        try:
            self._check_space()
            if plan.folder:
                self._partial.mkdir(exist_ok=True)
        except OSError as error:
            raise _named(error, self._partial) from None
        try:
            for file in plan.files:
                self._begin(file, resume)
        except BaseException:
            if resume:
                self.abort()
            else:
                self.discard()
            raise

    def _check_space(self) -> None:
        """See that the files will fit, what an earlier run wrote counted."""
        free = shutil.disk_usage(self._dst.parent).free
        paths = [self._partial, *self._partial.rglob("*")] if self._partial.is_dir() else [self._partial]
        there = sum(path.lstat().st_blocks * 512 for path in paths if path.exists())
        if free + there < self._plan.nbytes:
            needed = f"{self._plan.nbytes - there:,} bytes are needed in {self._dst.parent}, {free:,} are free"
            raise Error(f"{needed}; make room and run it again", file=self._dst)

    def _begin(self, file: TensorFile, resume: bool) -> None:
        # In a folder that is unfinished as a whole, files have their names from the start.
        path, partial = (self._partial / file.name,) * 2 if self._plan.folder else (self._dst, self._partial)
        writer, resumed = file.layout.create_partial(os.fspath(path), os.fspath(partial), resume)
        if not resumed:
            self.new.update(range(len(self._of), len(self._of) + len(file.tensors)))
        self._writers.append(writer)
        self._of += [(writer, tensor.name) for tensor in file.tensors]

    def write(self, tensor: int, data: object, offset: int) -> None:
        """Write bytes of a tensor."""
        writer, name = self._of[tensor]
        writer.write(name, data, offset)

    def mark(self, tensor: int, offset: int, count: int) -> None:
        """Count bytes of a tensor as written: an earlier run did."""
        writer, name = self._of[tensor]
        writer.mark(name, offset, count)

    def read(self, tensor: int, offset: int, count: int) -> bytes:
        """Read bytes of a tensor back."""
        writer, name = self._of[tensor]
        return writer.read(name, offset, count)

    def sync(self) -> None:
        """Make what was written so far durable."""
        for writer in self._writers:
            writer.sync()

    def complete(self, identity: dict[str, object], report: dict[str, object]) -> None:
        """Write the small files and the manifest, then give everything its name: what has its name is proved.

        Raises:
            IoError: the system refused.
            Error: a file has not the planned size.
        """
        if not self._plan.folder:
            (file,), (writer,) = self._plan.files, self._writers
            manifest = Manifest(identity, {"": self._facts(file, self._partial)}, report)
            pending = pending_path(self._dst)
            manifest.write(pending)
            writer.commit()
            try:
                pending.replace(manifest_path(self._dst))
            except OSError as error:
                raise _named(error, pending) from None
            return
        facts = {}
        for file, writer in zip(self._plan.files, self._writers, strict=True):
            facts[file.name] = self._facts(file, self._partial / file.name)
            writer.commit()
        try:
            for small in self._plan.small:
                path = self._partial / small.name
                path.parent.mkdir(parents=True, exist_ok=True)
                _native.write_file(os.fspath(path), small.data)
                facts[small.name] = FileFacts.of(path, small.data)
            Manifest(identity, facts, report).write(manifest_path(self._partial))
            _native.place_folder(os.fspath(self._partial), os.fspath(self._dst))
            if self._partial.exists():  # what had the name before
                made = find_manifest(self._partial)
                _remove(self._partial, [*(made.paths(self._partial) if made else ()), manifest_path(self._partial)])
        except OSError as error:
            if isinstance(error, Error):
                raise
            raise _named(error, self._partial) from None

    def _facts(self, file: TensorFile, path: Path) -> FileFacts:
        found = FileFacts.of(path, file.layout.header())
        if found.nbytes != file.layout.nbytes:
            raise Error(f"{found.nbytes:,} bytes were written, {file.layout.nbytes:,} were planned", file=path)
        return found

    def abort(self) -> None:
        """Let go of the files; what is written stays for a later run."""
        for writer in self._writers:
            writer.abort()

    def discard(self) -> None:
        """Remove everything that was written."""
        for writer in self._writers:
            writer.discard()
        _native.remove_file(os.fspath(pending_path(self._dst)))
        if self._plan.folder and not self._partial.is_symlink():
            with suppress(OSError):
                _remove(self._partial, _files_of(self._partial, self._plan.sizes))


def _named(error: OSError, path: Path) -> IoError:
    return IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(error.filename or path))


def clear_partial(plan: Plan, dst: Path, journal: Journal, *, keep: bool = False) -> None:
    """Remove what earlier runs left under the unfinished name of ``dst``; with ``keep``, but for tensors of the plan.

    That may also be the folder which had the target's name before, when a run died right after exchanging them. What
    neither a plan nor a manifest knows is somebody's own, and a folder without a journal beside it is so as a whole.

    Raises:
        ArgumentError: something is there that no conversion wrote.
        IoError: the system refused.
    """
    partial = partial_path(dst)
    folder = partial.is_dir() and not partial.is_symlink()
    if not os.path.lexists(partial) or (not folder and not plan.folder and (keep or not journal.earlier)):
        return
    there = [path for path in partial.rglob("*") if path.is_symlink() or not path.is_dir()] if folder else [partial]
    made = find_manifest(partial) if folder else None
    known = {partial, *_files_of(partial, (*plan.sizes, *journal.files)), *(made.paths(partial) if made else ())}
    others = [path for path in there if path not in known and not path.name.endswith(_TEMPORARY)]
    if not journal.earlier:
        others = there
    if others:
        raise ArgumentError(
            f"'{others[0]}', which no conversion wrote, is where an unfinished one is kept, and would be lost; move "
            "it, or choose another name",
            file=dst,
        )
    kept = {partial / file.name for file in plan.files} if keep else set()
    try:
        _remove(partial, [path for path in there if path not in kept])
    except OSError as error:
        raise _named(error, partial) from None


_TEMPORARY = ".subbyte-tmp"
"""What the names of small files end in until they are complete."""


def _files_of(folder: Path, names: Iterable[str]) -> list[Path]:
    """Files of a folder by their names, and its manifest, without which nobody could tell whose they are, last."""
    return [*(folder / name for name in names), manifest_path(folder)]


def _remove(partial: Path, files: Iterable[Path]) -> None:
    """Remove these files, and the folders that are empty then; of a folder the manifest last."""
    manifest = manifest_path(partial)
    for path in sorted(files, key=lambda path: path == manifest):
        path.unlink(missing_ok=True)
    if partial.is_dir():
        for folder in [*sorted((path for path in partial.rglob("*") if path.is_dir()), reverse=True), partial]:
            if not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()


def check_target(plan: Plan, dst: Path, also: Iterable[Path] = ()) -> None:
    """Refuse a target that would destroy its source, or that is of another kind than what is to be written.

    The files that a run has beside its target count as well.

    Args:
        plan: what is to be written.
        dst: the target.
        also: further files that are read.

    Raises:
        ArgumentError: it does.
    """
    above = next((folder for folder in dst.parents if os.path.lexists(folder)), None)
    if above is not None and not os.path.isdir(above):
        raise ArgumentError(f"cannot be written: '{above}' is not a folder", file=dst)
    if not plan.folder and dst.is_dir():
        raise ArgumentError("a folder; expected the name of a GGUF file to write", file=dst)
    read = [*plan.source.files, *also]
    beside = [partial_path(dst), journal_path(dst), *([] if plan.folder else [manifest_path(dst), pending_path(dst)])]
    for path in beside:
        if any(same_file(found, source) for found in _inside(path) for source in read):
            raise ArgumentError(
                f"'{path}', which a conversion to this target writes, is or holds a file of the source; the source is "
                "never written, choose another name",
                file=dst,
            )
    if not os.path.lexists(dst):
        return
    wanted = stat.S_ISDIR if plan.folder else stat.S_ISREG
    if not wanted(dst.lstat().st_mode):
        kind = "a symbolic link" if dst.is_symlink() else "not a folder" if plan.folder else "not a regular file"
        raise ArgumentError(f"is {kind}, which would be lost; choose another name", file=dst)
    if any(same_file(path, source) for path in _inside(dst) for source in read):
        what = "holds" if plan.folder else "is"
        raise ArgumentError(f"{what} a file of the source; the source is never written, choose another name", file=dst)


def check_replaceable(dst: Path, *, allowed: bool, changed: Sequence[str] = ()) -> None:
    """Refuse to replace what is there without leave, and a folder that holds more than a conversion wrote in any case.

    Args:
        dst: the target.
        allowed: whether it may be replaced.
        changed: what differs from the conversion that made it, in words.

    Raises:
        ArgumentError: it may not be replaced.
    """
    there = _inside(dst)
    if there and not allowed:
        other = f", made with another {', '.join(changed)}" if changed else ""
        raise ArgumentError(
            f"exists already{other}; choose another name or allow it to be replaced with overwrite", file=dst
        )
    if dst.is_dir():
        made = find_manifest(dst)
        known = {manifest_path(dst), *(made.paths(dst) if made else ())}
        others = [path for path in there if path not in known]
        if others:
            raise ArgumentError(
                f"holds '{others[0].relative_to(dst)}', which no conversion wrote and which would be lost; choose "
                "another name, or remove the folder",
                file=dst,
            )


def _inside(dst: Path) -> list[Path]:
    """The files of the target that are there."""
    return [path for path in dst.rglob("*") if not path.is_dir()] if dst.is_dir() else [dst] * dst.exists()
