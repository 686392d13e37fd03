"""Scripts that let a shell complete the command's words; made from the grammar, so they never lag behind it."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a shell, to be evaluated by it."""
    commands = _commands(parser)
    return _fish(parser.prog, commands) if shell == "fish" else _bash(parser.prog, commands, zsh=shell == "zsh")


def _commands(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """Subcommands and the words that may follow: options, and choices of arguments."""
    found: dict[str, list[str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                words = [option for entry in sub._actions for option in entry.option_strings if option.startswith("--")]
                for entry in sub._actions:
                    if not entry.option_strings and entry.choices is not None:
                        words += [str(choice) for choice in entry.choices]
                found[name] = words
    return found


def _bash(prog: str, commands: dict[str, list[str]], *, zsh: bool) -> str:
    cases = "\n".join(f"    {name}) words='{' '.join(words)}' ;;" for name, words in commands.items())
    first = "autoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return f"""{first}_{prog}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  [ "$COMP_CWORD" -eq 1 ] && words='{" ".join(commands)}'
  COMPREPLY=( $(compgen -W "$words" -- "$word") )
}}
complete -o default -F _{prog} {prog}
"""


def _fish(prog: str, commands: dict[str, list[str]]) -> str:
    lines = [f"complete -c {prog} -n __fish_use_subcommand -f -a '{' '.join(commands)}'"]
    for name, words in commands.items():
        for word in words:
            kind = f"-l {word[2:]}" if word.startswith("--") else f"-f -a {word}"
            lines.append(f"complete -c {prog} -n '__fish_seen_subcommand_from {name}' {kind}")
    return "\n".join(lines) + "\n"
