"""The command ``subbyte``: each subcommand is the Python function of the same name."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import subbyte
from subbyte import completion
from subbyte.progress import MODES, shown

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; a check failed; wrong usage or a refusal; stopped by Ctrl-C."""

_EXAMPLES = {
    "convert": """\
  subbyte convert examples/small-llama small-llama.gguf --to gguf.q4_k_m
  subbyte convert examples/small-llama fitting.gguf --target-size 4MiB
  subbyte convert examples/small-llama mixed.gguf --to gguf.q4_0 --tensor-type 'attn_v=q6_k'
  subbyte convert small-llama.gguf smaller.gguf --to gguf.q2_k --lossy
  subbyte convert small-llama.gguf small-llama-floats --to hf.bf16
  subbyte convert examples/small-llama small-llama-gptq --to gptq --set group_size=64 --set sym=false
  subbyte convert small-llama-gptq small-llama-mlx --to mlx""",
    "plan": """\
  subbyte plan examples/small-llama small-llama.gguf --to gguf.q4_k_m
  subbyte plan examples/small-llama --target-bpw 4.25 --json
  subbyte plan small-llama-gptq --to gguf
  subbyte plan examples/small-llama --to awq --set group_size=64""",
    "inspect": """\
  subbyte inspect small-llama.gguf --tensors
  subbyte inspect small-llama.gguf blk.0.attn_q.weight
  subbyte inspect small-llama-gptq
  subbyte inspect small-llama-gptq model.layers.0.mlp.up_proj.weight""",
    "verify": """\
  subbyte verify small-llama.gguf --against examples/small-llama
  subbyte verify small-llama-gptq --against examples/small-llama
  subbyte verify small-llama-mlx --against small-llama-gptq""",
    "report": """\
  subbyte report small-llama.gguf
  subbyte report small-llama.gguf --against examples/small-llama --html report.html --csv report.csv""",
    "list": """\
  subbyte list levels
  subbyte list targets
  subbyte list conversions""",
    "env": """\
  subbyte env""",
    "completion": """\
  subbyte completion bash""",
}
"""Of each command; they run as written, in this order, where the project's folder ``examples`` is."""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="subbyte",
        description="Quantized tensor formats: convert, inspect and verify checkpoints.",
        epilog="examples:\n" + "\n".join(lines.splitlines()[0] for lines in _EXAMPLES.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"subbyte {subbyte.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    planned = _planning_options()
    convert = commands.add_parser("convert", parents=[planned], help="convert a checkpoint to GGUF, or back")
    convert.add_argument("src", metavar="SRC", help="checkpoint folder, safetensors file, or GGUF file")
    convert.add_argument("dst", metavar="DST", help="GGUF file, or checkpoint folder, to write")
    convert.add_argument("--dry-run", action="store_true", help="only say what would be done, as subbyte plan does")
    convert.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    convert.add_argument("--fresh", action="store_true", help="start over, whatever an earlier run has done")
    convert.add_argument("--wait", action="store_true", help="wait for another run on DST to end")
    convert.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="who converts: this machine, or a Ray cluster"
    )
    _add_progress(convert)
    convert.add_argument("--json", action="store_true", help="print the report as JSON")
    convert.set_defaults(run=_convert)

    plan = commands.add_parser("plan", parents=[planned], help="say what convert would do: types, bytes, memory, time")
    plan.add_argument("src", metavar="SRC", help="checkpoint folder, safetensors file, or GGUF file")
    plan.add_argument("dst", metavar="DST", nargs="?", help="what convert would write")
    plan.add_argument("--json", action="store_true", help="print a plan file, for convert --plan")
    plan.set_defaults(run=_plan)

    inspect = commands.add_parser("inspect", help="show what the headers of a checkpoint say, or what is in a tensor")
    inspect.add_argument("path", metavar="PATH", help="checkpoint folder, safetensors file, or GGUF file")
    inspect.add_argument("tensor", metavar="TENSOR", nargs="?", help="read this tensor: values, scales, histogram")
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.add_argument("--json", action="store_true", help="print everything as JSON")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="check a file or folder, and its values against its source")
    verify.add_argument("path", metavar="DST", help="GGUF file or checkpoint folder")
    verify.add_argument("--against", metavar="SRC", help="checkpoint or GGUF file that it was made from")
    _add_progress(verify)
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    verify.set_defaults(run=_verify)

    report = commands.add_parser("report", help="report on a model: sizes, and errors against its source")
    report.add_argument("path", metavar="DST", help="GGUF file or checkpoint folder")
    report.add_argument("--against", metavar="SRC", help="measure errors against this checkpoint or GGUF file")
    report.add_argument("--html", metavar="FILE", help="write a page with plots that opens offline")
    report.add_argument("--csv", metavar="FILE", help="write one line for each tensor")
    report.add_argument("--json", action="store_true", help="print everything as JSON")
    _add_progress(report)
    report.set_defaults(run=_report)

    listing = commands.add_parser("list", help="show what is possible here")
    listing.add_argument("what", choices=tuple(_LISTS))
    listing.add_argument("--json", action="store_true", help="print as JSON")
    listing.set_defaults(run=_list)

    environment = commands.add_parser("env", help="show versions, processor and settings, for a bug report")
    environment.add_argument("--json", action="store_true", help="print as JSON")
    environment.set_defaults(run=_env)

    complete = commands.add_parser("completion", help='print a completion script: eval "$(subbyte completion bash)"')
    complete.add_argument("shell", choices=completion.SHELLS)
    complete.set_defaults(run=_completion)
    for name, command in commands.choices.items():
        command.epilog = f"examples:\n{_EXAMPLES[name]}"
        command.formatter_class = argparse.RawDescriptionHelpFormatter
    return top


def _planning_options() -> argparse.ArgumentParser:
    """The options that say what a conversion is to do."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--to", metavar="TARGET", help="gguf.q4_k_m, gguf.bf16, hf.bf16, gptq …: see subbyte list targets"
    )
    options.add_argument("--target-size", metavar="SIZE", help="choose types for a file of at most SIZE: 4.0GiB, 3.5GB")
    options.add_argument(
        "--target-bpw",
        type=float,
        metavar="BITS",
        help="choose types for so many bits per weight of the tensors that are quantized; totals count all tensors",
    )
    options.add_argument("--plan", metavar="FILE", help="use the types of a plan file (subbyte plan --json, edited)")
    options.add_argument("--lossy", action="store_true", help="allow quantizing tensors that are quantized already")
    options.add_argument("--pure", action="store_true", help="one type for every tensor where it fits, no mix")
    options.add_argument("--output-tensor-type", metavar="TYPE", help="type of output.weight")
    options.add_argument("--token-embedding-type", metavar="TYPE", help="type of token_embd.weight")
    options.add_argument(
        "--tensor-type",
        action="append",
        default=[],
        metavar="REGEX=TYPE",
        help="type of the tensors REGEX finds; may repeat",
    )
    options.add_argument("--imatrix", metavar="FILE", help="importance data, .gguf or .dat")
    options.add_argument("--pre", metavar="NAME", help="tokenizer.ggml.pre, where it cannot be derived")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the target: bits, group_size … (subbyte list targets); may repeat",
    )
    options.add_argument("--strict", action="store_true", help="refuse where there would be warnings")
    return options


_LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "formats": lambda: subbyte.list_formats(),
    "codecs": lambda: subbyte.list_codecs(),
    "conversions": lambda: subbyte.list_conversions(),
    "targets": lambda: subbyte.list_targets(),
    "levels": lambda: subbyte.list_levels(),
}

_PLANNING = (
    "to", "target_size", "target_bpw", "plan", "lossy", "pure", "output_tensor_type", "token_embedding_type",
    "tensor_type", "imatrix", "pre", "strict",
)  # fmt: skip


def _planning(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments that say what a conversion is to do, settings of the target included."""
    found = {name: getattr(options, name) for name in _PLANNING}
    for setting in options.set:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            raise subbyte.ArgumentError(f"--set {setting}: expected KEY=VALUE, such as group_size=64")
        if key in found or key in ("src", "dst", "overwrite", "fresh", "wait", "progress", "cancel"):
            raise subbyte.ArgumentError(f"--set {setting}: no setting of a target: subbyte list targets shows them")
        found[key] = value
    return found


def _add_progress(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--progress",
        choices=MODES,
        default="auto",
        help="a bar, a line for each unit, JSON lines, nothing; auto: bar on a terminal, else log, or json with --json",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Refusals are one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal's encoding lacks
    options = parser().parse_args(arguments)
    notices = _Notices(getattr(options, "json", False))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", subbyte.SubbyteWarning)
            warnings.showwarning = lambda message, *_, **__: notices.warn(str(message))
            code: int = options.run(options, notices)
        sys.stdout.flush()
        return code
    except subbyte.Error as error:
        kind = "" if type(error) is subbyte.Error else type(error).__name__
        return notices.complain(" ".join(str(error).split()), kind)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left: so may we
        return OK
    except OSError as error:
        return notices.complain(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except KeyboardInterrupt as stopped:
        notices.complain(f"interrupted; {str(stopped) or 'nothing was left'}")
        return INTERRUPTED


class _Notices:
    """Warnings and errors on standard error: lines of text, or with ``--json`` JSON objects on a line each."""

    def __init__(self, json: bool) -> None:
        self.json = json
        self.said: set[str] = set()

    def complain(self, message: str, kind: str = "") -> int:
        """Say what went wrong; returns the exit code."""
        self._say("error", "31", message, kind)
        return REFUSED

    def warn(self, message: str) -> None:
        """Say what is doubtful, once."""
        if message not in self.said:
            self.said.add(message)
            self._say("warning", "33", message)

    def _say(self, event: str, colour: str, message: str, kind: str = "") -> None:
        if self.json:
            print(json.dumps({"event": event, "kind": kind, "message": message}), file=sys.stderr)
            return
        plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        painted = event if plain else f"\x1b[{colour}m{event}\x1b[0m"
        print(f"subbyte: {painted}: {kind and kind + ': '}{message}", file=sys.stderr)


def _plan(options: argparse.Namespace, notices: _Notices) -> int:
    forecast = subbyte.plan(options.src, options.dst, **_planning(options))
    if options.json:
        _print_json(forecast.to_json())
        return OK
    print(forecast.table())
    for name, reason in forecast.plan.source.left_out:
        print(f"left out: {name}: {reason}")
    for name, reason in forecast.plan.source.not_copied:
        print(f"not copied: {name}: {reason}")
    print(forecast.summary())
    return OK


def _convert(options: argparse.Namespace, notices: _Notices) -> int:
    if options.dry_run:
        return _plan(options, notices)
    with shown("converting", "bytes", options.progress, programs=options.json) as progress:
        report = subbyte.convert(
            options.src,
            options.dst,
            **_planning(options),
            overwrite=options.overwrite,
            fresh=options.fresh,
            wait=options.wait,
            executor=options.executor,
            progress=progress,
        )
    if options.json:
        _print_json(report.to_json())
        return OK
    if report.unchanged:
        print(report.summary())
        return OK
    print(report.table())
    for name, reason in report.left_out:
        print(f"left out: {name}: {reason}")
    for name, reason in report.not_copied:
        print(f"not copied: {name}: {reason}")
    print(report.summary())
    return OK


def _inspect(options: argparse.Namespace, notices: _Notices) -> int:
    from subbyte.inspection import Inspection, TensorInspection

    found: Inspection | TensorInspection = subbyte.inspect(options.path, options.tensor)
    if options.json:
        _print_json(found.to_json())
    elif isinstance(found, Inspection):
        print(found.text(tensors=options.tensors))
    else:
        print(found.text())
    return OK


def _verify(options: argparse.Namespace, notices: _Notices) -> int:
    with shown("verifying", "elements", options.progress, programs=options.json) as progress:
        result = subbyte.verify(options.path, options.against, progress=progress)
    if options.json:
        _print_json(result.to_json())
    else:
        print(result.table())
        for failure in result.failures:
            print(f"FAILED: {failure}")
        print(result.summary())
    return OK if result.ok else FAILED


def _report(options: argparse.Namespace, notices: _Notices) -> int:
    from subbyte.convert.report import table
    from subbyte.convert.summary import check_outputs
    from subbyte.paths import write_bytes

    wanted = {name: file for name in ("html", "csv") if (file := getattr(options, name)) is not None}
    if wanted:
        check_outputs(wanted, options.path, options.against)
    with shown("verifying", "elements", options.progress, programs=options.json) as progress:
        found = subbyte.report(options.path, options.against, progress=progress)
    for name, file in wanted.items():
        write_bytes(file, (found.to_html() if name == "html" else found.to_csv()).encode())
        print(f"{file}: written", file=sys.stderr)
    if options.json:
        _print_json(found.to_json())
        return OK if not found.failures else FAILED
    rows = [(role, f"{n:,}", f"{size:,}", f"{bits:.2f}") for role, (n, size, bits) in found.by_role().items()]
    print(table(("role", "tensors", "bytes", "bits/weight"), rows, right={1, 2, 3}))
    worst = [(entry.name, entry.type, f"{entry.relative_error:.3g}") for entry in found.worst()]
    if worst:
        print("\n" + table(("largest errors", "type", "relative"), worst, right={2}))
    for warning in found.warnings:
        notices.warn(warning)
    for failure in found.failures:
        print(f"FAILED: {failure}")
    print(found.summary())
    return OK if not found.failures else FAILED


def _env(options: argparse.Namespace, notices: _Notices) -> int:
    from subbyte.environment import facts

    found = facts()
    if options.json:
        _print_json(found)
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    return OK


def _completion(options: argparse.Namespace, notices: _Notices) -> int:
    print(completion.script(parser(), options.shell), end="")
    return OK


def _list(options: argparse.Namespace, notices: _Notices) -> int:
    rows = _LISTS[options.what]()
    if options.json:
        _print_json(rows)
        return OK
    if options.what == "conversions":
        from subbyte.convert.catalogue import conversion_matrix

        print(conversion_matrix(rows))
        return OK
    from subbyte.convert.report import table

    head = list(rows[0])
    print(table(head, [[_cell(row.get(key)) for key in head] for row in rows]))
    return OK


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1, ensure_ascii=True, allow_nan=False)
    print()


if __name__ == "__main__":
    sys.exit(main())
