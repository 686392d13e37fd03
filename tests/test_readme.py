"""The commands and the Python code of the README run as they are written, also a second time."""

import re
import shlex
import shutil

from subbyte import cli


def test_readme_runs_twice(root, tmp_path, monkeypatch):
    text = (root / "README.md").read_text(encoding="utf-8")
    shell, python = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("sh", "python"))
    commands = [shlex.split(part) for part in shell[0].split("&&") if part.split()[0].endswith("/subbyte")]
    assert [command[1] for command in commands] == ["convert", "verify"]
    assert len(python) == 1
    shutil.copytree(root / "examples" / "small-llama", tmp_path / "examples" / "small-llama")
    monkeypatch.chdir(tmp_path)
    (tour,) = (block.splitlines() for block in shell if block.startswith("export PATH"))
    commands += [shlex.split(line) for line in tour[1:]]
    for _ in range(2):
        assert [cli.main(command[1:]) for command in commands] == [0] * len(commands)
        exec(compile(python[0], "README.md", "exec"), {})
