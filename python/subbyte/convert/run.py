"""Running a plan: chunks of rows from the source through the codec into the file, in bounded memory."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from subbyte.convert.plan import Plan, TensorPlan
from subbyte.convert.recipe import Raw
from subbyte.convert.report import Report, Row
from subbyte.convert.values import encode, first_invalid_block
from subbyte.errors import Error, IoError, NonFiniteError
from subbyte.ggml import TYPES
from subbyte.io.gguf import GgufWriter

CHUNK = 1 << 21
"""Elements that are converted at once: small enough to stop quickly, large enough for every core."""

Progress = Callable[[int, int, str], None]
"""Called with (bytes written, bytes of all tensors, name of the tensor) after each chunk."""


def run(plan: Plan, dst: Path, progress: Progress | None = None) -> Report:
    """Write the planned file. ``dst`` appears when it is complete; on any error or interrupt nothing is left.

    Raises:
        NonFiniteError: a value or a scale is not finite; names tensor, row and column.
        IoError: reading or writing failed.
        Error: there is too little space, or the source is damaged.
    """
    tensors = [(tensor.name, tensor.type, tensor.shape) for tensor in plan.tensors]
    _prepare(dst, plan.nbytes)
    rows: list[Row] = []
    total, done = sum(tensor.nbytes for tensor in plan.tensors), 0
    start = time.perf_counter()
    with GgufWriter(dst, plan.metadata, tensors=tensors) as writer:
        for tensor in plan.tensors:
            begin = time.perf_counter()
            step = max(1, CHUNK // max(tensor.recipe.columns, 1))
            written = 0
            for first in range(0, tensor.recipe.rows if tensor.nbytes else 0, step):
                data = _rows(tensor, first, min(first + step, tensor.recipe.rows))
                writer.write(tensor.name, data, offset=written)
                written += data.nbytes
                if progress is not None:
                    progress(done + written, total, tensor.name)
            done += written
            rows.append(Row.of(tensor, time.perf_counter() - begin))
    size = dst.stat().st_size
    if size != plan.nbytes:
        raise Error(f"{size:,} bytes were written, {plan.nbytes:,} were planned", file=dst)
    return Report(plan.source.path, dst, plan.to, tuple(rows), tuple(plan.warnings), tuple(plan.source.left_out), size,
                  time.perf_counter() - start)  # fmt: skip


def _rows(tensor: TensorPlan, first: int, last: int) -> Raw:
    recipe = tensor.recipe
    try:
        raw = recipe.read(first, last)
        if tensor.importance is None:
            data = encode(recipe.type, raw, recipe.columns, tensor.type)
        else:
            data = tensor.importance.encode(recipe.type, raw, recipe.columns, tensor.type, first)
        if recipe.type == tensor.type:
            bad = first_invalid_block(tensor.type, data)
            if bad is not None:
                _refuse(tensor, bad)
        return data
    except Error as error:
        error.tensor = error.tensor or recipe.name
        error.file = error.file or str(recipe.ranges[0].path if recipe.ranges else "")
        if error.row is not None:
            error.row += first
        raise


def _refuse(tensor: TensorPlan, block: int) -> None:
    columns, size = tensor.recipe.columns, TYPES[tensor.type].block
    row, column = divmod(block * size, columns)
    what = "a value" if size == 1 else "the scale of a block"
    raise NonFiniteError(f"{what} is NaN or infinite", tensor=tensor.name, row=row, column=column)


def _prepare(dst: Path, needed: int) -> None:
    """Make the target's folder and see that the file will fit."""
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(dst.parent).free
    except OSError as error:
        raise IoError.from_errno(error.errno, os.strerror(error.errno or 0), os.fspath(dst.parent)) from None
    if free < needed:
        raise Error(f"{needed:,} bytes are needed in {dst.parent}, {free:,} are free", file=dst)
