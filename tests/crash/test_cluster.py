"""A Ray cluster of two machines (on this one) converts to the same bytes, whatever of it is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying import contents

import subbyte
from checkpoints import SMALL_LLAMA, checkpoint, llama_tensors
from server import serve
from subbyte.convert.journal import journal_path

if sys.platform != "linux":
    pytest.skip("looks at processes through /proc", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ray", reason="needs subbyte[ray]")
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray leaves its processes' pipes to the garbage collector

DRIVER = """
import json, sys
import subbyte
from subbyte.convert import units
from subbyte.convert.executors import threads
units.CHUNK = int(sys.argv[4])
if sys.argv[5] == "ray":
    threads.make = None  # whatever is converted is converted elsewhere
try:
    report = subbyte.convert(
        *sys.argv[1:3], to=sys.argv[3], executor=sys.argv[5], progress=lambda *now: print(*now, flush=True)
    )
    print(json.dumps({"resumed": report.resumed}))
except subbyte.Error as error:
    print(json.dumps([type(error).__name__, vars(error)]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
        made.shutdown()


def start(
    src: Path | str, dst: Path, to: str, *, chunk: int = 1 << 14, executor: str = "ray", cluster: Any = None
) -> subprocess.Popen[str]:
    """A run of its own process, with an address or a relative path as source."""
    given, folder = (src, None) if isinstance(src, str) else (src.name, src.parent)
    environment = os.environ | ({"RAY_ADDRESS": cluster.address} if cluster else {})
    command = [sys.executable, "-c", DRIVER, given, os.fspath(dst), to, str(chunk), executor]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)


def finish(process: subprocess.Popen[str]) -> Any:
    """What the run said last."""
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out[-2000:]
    return json.loads(out.splitlines()[-1])


def after(process: subprocess.Popen[str], units: int) -> None:
    """Wait until so many more units are written."""
    assert process.stdout is not None
    for _ in range(units):
        assert process.stdout.readline(), "the run ended early"


def busy(cluster: Any) -> list[int]:
    """Processes of the cluster that convert something just now."""
    raylets = {info.process.pid for node in cluster.list_all_nodes() for info in node.all_processes["raylet"]}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::_convert"):
                found.append(int(folder.name))
    return found


def kill_one(cluster: Any) -> None:
    """Kill a process of the cluster in the middle of a task."""
    deadline = time.monotonic() + 20
    while not (found := busy(cluster)):
        assert time.monotonic() < deadline, "no process converts anything"
    os.kill(found[0], signal.SIGKILL)


@pytest.mark.parametrize(
    ("name", "to"), [("out.gguf", "gguf.q4_k_m"), ("out", "hf.f32"), ("out", "gptq"), ("out.gguf", "gguf.q8_0")]
)
def test_the_bytes_are_those_of_a_local_run(tmp_path: Path, cluster: Any, name: str, to: str) -> None:
    subbyte.convert(SMALL_LLAMA, tmp_path / "local" / name, to=to)
    finish(start(SMALL_LLAMA, tmp_path / name, to, chunk=1 << 21, cluster=cluster))
    assert contents(tmp_path / name) == contents(tmp_path / "local" / name)


def test_workers_read_quantized_layers_and_remote_sources(tmp_path: Path, cluster: Any) -> None:
    quantized = tmp_path / "quantized"
    subbyte.convert(SMALL_LLAMA, quantized, to="gptq")
    subbyte.convert(quantized, tmp_path / "local.gguf", to="gguf")
    finish(start(quantized, tmp_path / "out.gguf", "gguf", cluster=cluster))
    with serve({f"quantized/{path.name}": path.read_bytes() for path in quantized.iterdir()}) as server:
        finish(start(server.url + "quantized/", tmp_path / "remote.gguf", "gguf", cluster=cluster))
        asked = {where for where, _ in server.requests}
    assert "quantized/model.safetensors" in asked
    good = (tmp_path / "local.gguf").read_bytes()
    assert (tmp_path / "out.gguf").read_bytes() == good
    assert (tmp_path / "remote.gguf").read_bytes() == good


def test_units_of_killed_workers_are_done_again(tmp_path: Path, cluster: Any) -> None:
    good, dst = tmp_path / "good.gguf", tmp_path / "out.gguf"
    subbyte.convert(SMALL_LLAMA, good, to="gguf.iq3_s")
    process = start(SMALL_LLAMA, dst, "gguf.iq3_s", chunk=1 << 16, cluster=cluster)
    for units in (3, 5, 7):
        after(process, units)
        kill_one(cluster)
    finish(process)
    assert dst.read_bytes() == good.read_bytes()


@pytest.mark.parametrize("last", ["ray", "local"])
def test_a_killed_run_goes_on_with_either_executor(tmp_path: Path, cluster: Any, last: str) -> None:
    good, dst = tmp_path / "good.gguf", tmp_path / "out.gguf"
    subbyte.convert(SMALL_LLAMA, good, to="gguf.q4_k_m")
    for units in (5, 40):
        process = start(SMALL_LLAMA, dst, "gguf.q4_k_m", cluster=cluster)
        after(process, units)
        process.kill()
        process.communicate()
        assert not dst.exists()
        assert len(journal_path(dst).read_text().splitlines()) > units
    assert finish(start(SMALL_LLAMA, dst, "gguf.q4_k_m", executor=last, cluster=cluster))["resumed"] > 0
    assert dst.read_bytes() == good.read_bytes()


def test_an_error_is_the_one_of_a_local_run(tmp_path: Path, cluster: Any) -> None:
    tensors = llama_tensors()
    tensors["lm_head.weight"][30, 5] = np.nan
    source = checkpoint(tmp_path / "model", tensors)
    dst = tmp_path / "out.gguf"
    errors = [finish(start(source, dst, "gguf.q8_0", executor=name, cluster=cluster)) for name in ("local", "ray")]
    assert errors[0] == errors[1]
    assert errors[0][0] == "NonFiniteError"
    assert errors[0][1]["tensor"] == "lm_head.weight"
    assert (errors[0][1]["row"], errors[0][1]["column"]) == (30, 5)
    assert not dst.exists()
    assert not journal_path(dst).exists()


def test_ctrl_c_ends_at_once_and_says_how_to_go_on(tmp_path: Path, cluster: Any) -> None:
    dst = tmp_path / "out.gguf"
    command = [sys.executable, "-m", "subbyte.cli", "convert", os.fspath(SMALL_LLAMA), os.fspath(dst)]
    command += ["--to", "gguf.iq3_s", "--executor", "ray", "--progress", "log"]
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("converting")
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        words = process.stderr.read()
        assert process.wait(timeout=20) == 130
        took = time.monotonic() - begin
    assert "% is done; the same command goes on from there" in words
    assert took < 3, f"{took:.2f} s"  # one second, and more for a busy machine
    while busy(cluster):
        assert time.monotonic() < begin + 10, "tasks are worked on that nobody waits for"
    assert subbyte.convert(SMALL_LLAMA, dst, to="gguf.iq3_s").resumed


def test_a_machine_may_be_lost(tmp_path: Path, cluster: Any) -> None:
    good, dst = tmp_path / "good.gguf", tmp_path / "out.gguf"
    subbyte.convert(SMALL_LLAMA, good, to="gguf.iq3_s")
    process = start(SMALL_LLAMA, dst, "gguf.iq3_s", chunk=1 << 16, cluster=cluster)
    after(process, 5)
    cluster.remove_node(next(node for node in cluster.list_all_nodes() if not node.head), allow_graceful=False)
    try:
        finish(process)
    finally:
        cluster.add_node(num_cpus=1)
    assert dst.read_bytes() == good.read_bytes()
