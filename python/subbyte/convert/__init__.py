"""Conversion of checkpoints, and the looks and checks around it; each is a command of the same name too."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from subbyte import arguments, environment
from subbyte.convert.executors import find_executor
from subbyte.convert.journal import Journal, differences, identify
from subbyte.convert.manifest import Manifest, find_manifest, pending_path
from subbyte.convert.output import check_replaceable, check_target, clear_partial
from subbyte.convert.report import Report, Row
from subbyte.convert.run import Cancel, Progress, made_folder, run
from subbyte.convert.verification import Comparison, Verification, verify
from subbyte.errors import ArgumentError, warn
from subbyte.io.remote import Place, place
from subbyte.paths import checked_path, target_path
from subbyte.planning.checkpoint import plan_checkpoint
from subbyte.planning.dense import DENSE_TARGETS, plan_dense
from subbyte.planning.forecast import Forecast, forecast, read_plan
from subbyte.planning.output import Plan, TensorPlan
from subbyte.planning.plan import make_plan
from subbyte.routes import checked_settings, find_target, target_ids

logger = logging.getLogger("subbyte.convert")

__all__ = [
    "Comparison",
    "Forecast",
    "Plan",
    "Report",
    "Row",
    "TensorPlan",
    "Verification",
    "convert",
    "plan",
    "verify",
]


def convert(
    src: str | PathLike[str],
    dst: str | PathLike[str],
    *,
    to: str | None = None,
    lossy: bool = False,
    pure: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    tensor_type: Sequence[str] | Mapping[str, str] = (),
    imatrix: str | PathLike[str] | None = None,
    pre: str | None = None,
    strict: bool = False,
    target_size: str | int | None = None,
    target_bpw: float | None = None,
    plan: str | PathLike[str] | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    wait: bool = False,
    executor: str = "local",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    **settings: Any,
) -> Report:
    """Convert a checkpoint to GGUF, or back, in one pass and in memory that does not grow with the model.

    A run that was stopped or killed goes on where it was when it is started again with the same arguments, and gives
    the bytes of an uninterrupted one; after success it does nothing. What was done is kept in a manifest beside the
    file (:mod:`subbyte.convert.manifest`).

    A target that is a file type of llama.cpp stands for that mix of tensor types: ``gguf.q4_k_m`` (also ``gguf.q4_k``),
    ``gguf.iq4_xs``, ``gguf.tq1_0`` …; a Hugging Face checkpoint gives the bytes that the original converter and
    quantizer give in two steps, where the file between holds the checkpoint's own values exactly. ``gguf.f32``,
    ``gguf.f16``, ``gguf.bf16`` and ``gguf.q8_0`` are what the converter writes by itself. ``gguf`` alone keeps the
    checkpoint's own codes and float types. ``hf.bf16``, ``hf.f16`` and ``hf.f32`` make a checkpoint folder of that
    float type (``hf``: of the source's own): of a GGUF file with config.json and tokenizer as far as the file describes
    them, of a checkpoint folder with copies of the files beside its weights. What is not copied is listed.

    Args:
        src: checkpoint folder, safetensors file with its config.json, or GGUF file (the first shard of a split one);
            also the address of a remote one: ``org/name@revision`` on the Hub, http(s), s3, gs, az.
        dst: the GGUF file, or the folder, to write; it appears when it is complete.
        to: the target.
        lossy: allow tensors that are quantized already to be quantized again.
        pure: one type for every tensor that may be quantized, where its rows allow it.
        output_tensor_type: ggml type of ``output.weight``.
        token_embedding_type: ggml type of ``token_embd.weight``.
        tensor_type: rules ``REGEX=TYPE`` (or a mapping): the first expression found in a tensor's name decides.
        imatrix: importance data, a file of either kind (`subbyte.imatrix`): types that use weights get those of its
            entries, and some mixes choose otherwise.
        pre: value of ``tokenizer.ggml.pre``; derived from the structure of tokenizer.json unless given.
        strict: refuse where there would be warnings.
        target_size: choose the types so that the file is at most this large (``"4.0GiB"``, or bytes) and the predicted
            loss smallest: :mod:`subbyte.planning.allocate`.
        target_bpw: the same for bits per weight of the tensors that are quantized.
        plan: a plan file (:meth:`Forecast.to_json`), whose types are used instead of those of a target.
        overwrite: replace ``dst`` if it exists; a folder only if it holds nothing but what a conversion wrote.
        fresh: start over, whatever an earlier run has done.
        wait: wait for another run on the same target to end.
        executor: ``local``: the threads of this process; ``ray``: the machines of a Ray cluster
            (:mod:`subbyte.convert.executors.cluster`). The bytes are the same, and a run goes on with either.
        progress: called with (bytes written, bytes of all tensors, name of the tensor).
        cancel: called after each unit, and several times a second; true stops the conversion.
        settings: of a target that is a checkpoint format: ``bits``, ``group_size`` … (``subbyte list targets``).

    Returns:
        What became of each tensor, totals and warnings.

    Raises:
        ArgumentError: options that contradict each other or the model; a target type that needs importance data.
        UnsupportedError: an architecture, source format or target that cannot be converted (yet); a package that is
            missing.
        FormatError, CorruptError: the source is damaged.
        NonFiniteError: a value or a scale is not finite; names tensor, row and column of the source.
        BusyError: another run writes to ``dst``.
        CancelledError: ``cancel`` asked to stop.
        IoError: reading or writing failed.
    """
    environment.check()
    for value, what in ((overwrite, "overwrite"), (fresh, "fresh"), (wait, "wait")):
        arguments.flag(value, what)
    for call, what in ((progress, "progress"), (cancel, "cancel")):
        arguments.callback(call, what)
    origin, target = place(src, "src"), target_path(dst)
    planned = partial(
        _plan, to=to, file=plan, lossy=lossy, pure=pure, output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type, tensor_type=tensor_type, imatrix=imatrix, pre=pre, strict=strict,
        target_size=target_size, target_bpw=target_bpw, settings=settings,
    )  # fmt: skip
    chosen = find_executor(executor, partial(planned, origin if isinstance(origin, Path) else src))
    made_plan = planned(origin)
    check_target(made_plan, target, _files(plan))
    warn(made_plan.warnings)
    for tensor in made_plan.tensors:
        logger.debug("%s: '%s' %s to %s, %s", target, tensor.name, tensor.recipe.type, tensor.type, tensor.kind)
    with made_folder(target), Journal.open(target, wait=wait) as journal:
        made, identity = find_manifest(target), identify(made_plan)
        same = made is not None and made.identity == identity and _intact(made, target)
        if made is not None and same and not fresh:
            if pending_path(target).exists() or not made.describes(target):
                made.refreshed(target).settle(target)
            if journal.earlier:
                clear_partial(made_plan, target, journal)
            journal.remove()
            return Report.from_json(made.report, src=origin, dst=target, unchanged=True)
        changed = [] if made is None else differences(made.identity, identity)
        check_replaceable(target, allowed=overwrite or same, changed=changed)
        return run(made_plan, target, journal, chosen, fresh=fresh, progress=progress, cancel=cancel)


def plan(
    src: str | PathLike[str],
    dst: str | PathLike[str] | None = None,
    *,
    to: str | None = None,
    lossy: bool = False,
    pure: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    tensor_type: Sequence[str] | Mapping[str, str] = (),
    imatrix: str | PathLike[str] | None = None,
    pre: str | None = None,
    strict: bool = False,
    target_size: str | int | None = None,
    target_bpw: float | None = None,
    plan: str | PathLike[str] | None = None,
    **settings: Any,
) -> Forecast:
    """What :func:`convert` would do with the same arguments: each tensor's type and class, and the exact size.

    Only headers are read, except with ``target_size`` or ``target_bpw``, which try sampled rows. Nothing is written.

    Raises:
        As :func:`convert`, as far as headers tell.
    """
    origin = place(src, "src")
    made = _plan(
        origin, to, plan, lossy=lossy, pure=pure, output_tensor_type=output_tensor_type,
        token_embedding_type=token_embedding_type, tensor_type=tensor_type, imatrix=imatrix, pre=pre, strict=strict,
        target_size=target_size, target_bpw=target_bpw, settings=settings,
    )  # fmt: skip
    target = None if dst is None else target_path(dst)
    if target is not None:
        check_target(made, target, _files(plan))
    warn(made.warnings)
    return forecast(made, origin, target)


def _files(plan: str | PathLike[str] | None) -> list[Path]:
    return [] if plan is None else [checked_path(plan, "plan")]


def _intact(made: Manifest, dst: Path) -> bool:
    """Whether ``dst`` is what its manifest says: by size and time, else (it was copied, or touched) by its hashes."""
    return made.describes(dst) or (made.fits(dst) and verify(dst).ok)


def _plan(src: str | PathLike[str] | Place, to: str | None, file: str | PathLike[str] | None, **options: Any) -> Plan:
    """The plan of these arguments: of a target, a budget, or a plan file."""
    src = place(src, "src")
    for option in ("lossy", "pure", "strict"):
        arguments.flag(options[option], option)
    for option, value in (("to", to), ("pre", options["pre"])):
        if value is not None and not isinstance(value, str):
            raise ArgumentError(f"{option}: expected a string, found {value!r}")
    if options["pre"] is not None and not options["pre"].isprintable():
        raise ArgumentError(f"pre: expected the name of a pre-tokenizer, found {options['pre']!r:.80}")
    types = None
    planned: dict[str, Any] = {}
    if file is not None:
        found_plan = read_plan(checked_path(file, "plan"))
        found_plan.check(to, options["imatrix"])
        to, types = found_plan.to, found_plan.types
        options["pre"] = options["pre"] or found_plan.pre
        planned = {"edited": found_plan.edited, "mixed": found_plan.mixed}
    if to is None and (options["target_size"] is not None or options["target_bpw"] is not None):
        to = "gguf"
    if isinstance(to, str) and to.partition(".")[0] != "hf" and find_target(to) is None:
        lower = to.lower()
        if lower != to and lower in {"hf", *DENSE_TARGETS, *target_ids()}:
            raise ArgumentError(f"unknown target '{to}': did you mean {lower}?")
    if isinstance(to, str) and to.partition(".")[0] == "hf":
        given = [name for name, value in options.items() if value and name not in ("lossy", "strict", "settings")]
        if given:
            listed = ", ".join(given)
            raise ArgumentError(f"'{to}' is a checkpoint folder of floats: {listed} are options for GGUF files")
        if options["settings"]:
            raise ArgumentError(
                f"'{to}' is a checkpoint folder of floats and has no setting '{next(iter(options['settings']))}'; "
                "subbyte list targets shows those that have"
            )
        return plan_dense(src, to, strict=options["strict"], types=types)
    settings = options.pop("settings")
    if isinstance(to, str) and (found := find_target(to)) is not None:
        given = [name for name, value in options.items() if value and name not in ("lossy", "strict")]
        if given or types is not None:
            listed = ", ".join(given) or "plan"
            raise ArgumentError(f"'{to}' is a checkpoint folder: {listed} are options for GGUF files")
        chosen = {**found[1], **checked_settings(found[0], settings)}
        return plan_checkpoint(src, to, found[0], chosen, lossy=options["lossy"], strict=options["strict"])
    if settings:
        raise ArgumentError(f"'{to}' has no setting '{next(iter(settings))}'")
    if to is None:
        raise ArgumentError("a target is missing: to='gguf.q4_k_m', target_size, target_bpw or a plan")
    return make_plan(src, to, types=types, **planned, **options)
