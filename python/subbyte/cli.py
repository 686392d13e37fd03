"""The command ``subbyte``: each subcommand is the Python function of the same name."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import subbyte
from subbyte import completion
from subbyte.progress import MODES, shown

OK, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: done; a check failed; wrong usage or a refusal; stopped by Ctrl-C."""

_EXAMPLES = """\
examples:
  subbyte plan examples/small-llama small-llama.gguf --to gguf.q4_k_m
  subbyte convert examples/small-llama small-llama.gguf --to gguf.q4_k_m
  subbyte convert examples/small-llama fitting.gguf --target-size 4MiB
  subbyte convert small-llama.gguf smaller.gguf --to gguf.q2_k --lossy
  subbyte inspect small-llama.gguf --tensors
  subbyte verify small-llama.gguf --against examples/small-llama
  subbyte report small-llama.gguf --against examples/small-llama --html report.html
  subbyte list levels
  subbyte env
"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="subbyte",
        description="Quantized tensor formats: convert, inspect and verify checkpoints.",
        epilog=_EXAMPLES,
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
    _add_progress(convert)
    convert.add_argument("--json", action="store_true", help="print the report as JSON")
    convert.set_defaults(run=_convert)

    plan = commands.add_parser("plan", parents=[planned], help="say what convert would do: types, bytes, memory, time")
    plan.add_argument("src", metavar="SRC", help="checkpoint folder, safetensors file, or GGUF file")
    plan.add_argument("dst", metavar="DST", nargs="?", help="GGUF file that convert would write")
    plan.add_argument("--json", action="store_true", help="print a plan file, for convert --plan")
    plan.set_defaults(run=_plan)

    inspect = commands.add_parser("inspect", help="show what the headers of a checkpoint say")
    inspect.add_argument("path", metavar="PATH", help="checkpoint folder, safetensors file, or GGUF file")
    inspect.add_argument("--tensors", action="store_true", help="list every tensor")
    inspect.add_argument("--json", action="store_true", help="print everything as JSON")
    inspect.set_defaults(run=_inspect)

    verify = commands.add_parser("verify", help="check a GGUF file, and its values against its source")
    verify.add_argument("path", metavar="DST", help="GGUF file")
    verify.add_argument("--against", metavar="SRC", help="checkpoint or GGUF file that it was made from")
    _add_progress(verify)
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    verify.set_defaults(run=_verify)

    report = commands.add_parser("report", help="report on a GGUF file: sizes, and errors against its source")
    report.add_argument("path", metavar="DST", help="GGUF file")
    report.add_argument("--against", metavar="SRC", help="measure errors against this checkpoint or GGUF file")
    report.add_argument("--html", metavar="FILE", help="write a page with plots that opens offline")
    report.add_argument("--csv", metavar="FILE", help="write one line for each tensor")
    report.add_argument("--json", action="store_true", help="print everything as JSON")
    _add_progress(report)
    report.set_defaults(run=_report)

    listing = commands.add_parser("list", help="show what is possible here")
    listing.add_argument("what", choices=("formats", "codecs", "levels"))
    listing.add_argument("--json", action="store_true", help="print as JSON")
    listing.set_defaults(run=_list)

    environment = commands.add_parser("env", help="show versions, processor and settings, for a bug report")
    environment.add_argument("--json", action="store_true", help="print as JSON")
    environment.set_defaults(run=_env)

    complete = commands.add_parser("completion", help='print a completion script: eval "$(subbyte completion bash)"')
    complete.add_argument("shell", choices=completion.SHELLS)
    complete.set_defaults(run=_completion)
    return top


def _planning_options() -> argparse.ArgumentParser:
    """The options that say what a conversion is to do."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--to", metavar="TARGET", help="gguf.q4_k_m, gguf.bf16, hf.bf16 …: see subbyte list formats")
    options.add_argument("--target-size", metavar="SIZE", help="choose types for a file of at most SIZE: 4.0GiB, 3.5GB")
    options.add_argument("--target-bpw", type=float, metavar="BITS", help="choose types for so many bits per weight")
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
    options.add_argument("--strict", action="store_true", help="refuse where there would be warnings")
    return options


_PLANNING = (
    "to", "target_size", "target_bpw", "plan", "lossy", "pure", "output_tensor_type", "token_embedding_type",
    "tensor_type", "imatrix", "pre", "strict",
)  # fmt: skip


def _add_progress(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--progress",
        choices=MODES,
        default="auto",
        help="bar, a line per tensor, JSON lines, none; auto: bar on a terminal",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. Refusals are one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal's encoding lacks
    try:
        options = parser().parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _warn([str(message)])
            code: int = options.run(options)
        sys.stdout.flush()
        return code
    except subbyte.Error as error:
        kind = "" if type(error) is subbyte.Error else f"{type(error).__name__}: "
        return _complain(kind + " ".join(str(error).split()))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left: so may we
        return OK
    except OSError as error:
        return _complain(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
    except KeyboardInterrupt as stopped:
        _complain(f"interrupted; {stopped or 'nothing was left'}")
        return INTERRUPTED


def _complain(message: str) -> int:
    print(f"subbyte: {_painted('error', '31')}: {message}", file=sys.stderr)
    return REFUSED


def _warn(messages: Sequence[str]) -> None:
    for message in messages:
        print(f"subbyte: {_painted('warning', '33')}: {message}", file=sys.stderr)


def _painted(text: str, colour: str) -> str:
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{colour}m{text}\x1b[0m"


def _plan(options: argparse.Namespace) -> int:
    forecast = subbyte.plan(options.src, options.dst, **{name: getattr(options, name) for name in _PLANNING})
    if options.json:
        _print_json(forecast.to_json())
        return OK
    print(forecast.table())
    for name, reason in forecast.plan.source.left_out:
        print(f"left out: {name}: {reason}")
    _warn(forecast.plan.warnings)
    print(forecast.summary())
    return OK


def _convert(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _plan(options)
    with shown("converting", options.progress) as progress:
        report = subbyte.convert(
            options.src,
            options.dst,
            **{name: getattr(options, name) for name in _PLANNING},
            overwrite=options.overwrite,
            fresh=options.fresh,
            wait=options.wait,
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
    _warn(report.warnings)
    print(report.summary())
    return OK


def _inspect(options: argparse.Namespace) -> int:
    found = subbyte.inspect(options.path)
    if options.json:
        _print_json(found.to_json())
    else:
        print(found.text(tensors=options.tensors))
    return OK


def _verify(options: argparse.Namespace) -> int:
    with shown("verifying", options.progress) as progress:
        result = subbyte.verify(options.path, options.against, progress=progress)
    if options.json:
        _print_json(result.to_json())
    else:
        print(result.table())
        _warn(result.warnings)
        for failure in result.failures:
            print(f"FAILED: {failure}")
        print(result.summary())
    return OK if result.ok else FAILED


def _report(options: argparse.Namespace) -> int:
    with shown("verifying", options.progress) as progress:
        found = subbyte.report(options.path, options.against, progress=progress)
    for name, make in (("html", found.to_html), ("csv", found.to_csv)):
        file = getattr(options, name)
        if file is not None:
            with open(file, "w", encoding="utf-8", newline="") as out:
                out.write(make())
            print(f"{file}: written", file=sys.stderr)
    if options.json:
        _print_json(found.to_json())
        return OK if not found.failures else FAILED
    from subbyte.convert.report import table

    rows = [(role, f"{n:,}", f"{size:,}", f"{bits:.2f}") for role, (n, size, bits) in found.by_role().items()]
    print(table(("role", "tensors", "bytes", "bits/weight"), rows, right={1, 2, 3}))
    worst = [(entry.name, entry.type, f"{entry.relative_error:.3g}") for entry in found.worst()]
    if worst:
        print("\n" + table(("largest errors", "type", "relative"), worst, right={2}))
    _warn(found.warnings)
    for failure in found.failures:
        print(f"FAILED: {failure}")
    print(found.summary())
    return OK if not found.failures else FAILED


def _env(options: argparse.Namespace) -> int:
    from subbyte.environment import facts

    found = facts()
    if options.json:
        _print_json(found)
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    return OK


def _completion(options: argparse.Namespace) -> int:
    print(completion.script(parser(), options.shell), end="")
    return OK


def _list(options: argparse.Namespace) -> int:
    rows = {"formats": subbyte.list_formats, "codecs": subbyte.list_codecs, "levels": subbyte.list_levels}[
        options.what
    ]()
    if options.json:
        _print_json(rows)
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
