"""Executors, as far as they can be tested without a cluster; tests/crash/test_cluster.py has one."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import subbyte
from checkpoints import GOLDEN, SMALL_LLAMA, checkpoint, llama_tensors
from subbyte.convert.executors import EXECUTORS, cluster, threads
from subbyte.convert.journal import identify
from subbyte.convert.units import Made, units
from subbyte.errors import Error, IoError
from subbyte.planning.output import Plan

TINY = GOLDEN / "convert" / "tiny-llama"


def planned(src: Path, to: str) -> Plan:
    """The plan, as a worker makes it."""
    return subbyte.plan(src, to=to).plan


def job(src: Path, to: str, **identity: Any) -> bytes:
    """What a task is given."""
    return pickle.dumps((partial(planned, src, to), identify(planned(src, to)) | identity, os.getcwd(), 1))


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBBYTE_NUM_THREADS", "1")  # tasks set it; put back afterwards
    cluster._tensors.cache_clear()


def test_a_task_makes_what_the_threads_make() -> None:
    plan = planned(TINY, "gguf.q8_0")
    todo = list(units(plan.tensors))
    local = list(threads.Threads().made(plan, todo, lambda: None))
    assert [unit for unit, _ in local] == todo
    there = pickle.loads(pickle.dumps(cluster._convert(job(TINY, "gguf.q8_0"), todo)))
    for unit, here, made in zip(todo, (made for _, made in local), there, strict=True):
        assert isinstance(made, Made)
        assert cluster._checked(made, unit).sha256 == here.sha256
        assert made.data.tobytes() == here.data.tobytes()


def test_damaged_bytes_of_a_worker_are_not_written() -> None:
    unit = next(units(planned(TINY, "gguf.q8_0").tensors))
    (made,) = cluster._convert(job(TINY, "gguf.q8_0"), [unit])
    assert isinstance(made, Made)
    data = made.data.copy()
    data[0, 0] ^= 1
    for wrong in (data, made.data[:-1]):
        with pytest.raises(IoError, match="came damaged from a worker"):
            cluster._checked(Made(wrong, made.sha256, 0.0), unit)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"subbyte": "0.0.1"}, rf"subbyte 0\.0\.1 \(now {subbyte.__version__}\)"),
        ({"source": {}}, r"source file model.*\.safetensors"),
        ({"options": {"to": "gguf.q4_0"}}, "option to"),
        ({"plan": "0"}, "the plan"),
    ],
)
def test_a_machine_with_another_plan_converts_nothing(change: dict[str, Any], says: str) -> None:
    made = cluster._convert(job(TINY, "gguf.q8_0", **change), list(units(planned(TINY, "gguf.q8_0").tensors)))
    assert len(made) == 1
    with pytest.raises(IoError, match=rf"plans another conversion, which differs in .*{says}.*the same source"):
        raise made[0]  # type: ignore[misc]


def test_errors_arrive_as_they_were_raised(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["lm_head.weight"][30, 5] = np.inf
    source = checkpoint(tmp_path / "model", tensors)
    plan = planned(source, "gguf.q8_0")
    made = cluster._convert(job(source, "gguf.q8_0"), list(units(plan.tensors)))
    error = pickle.loads(pickle.dumps(made[-1]))
    assert all(isinstance(result, Made) for result in made[:-1])
    with pytest.raises(subbyte.NonFiniteError) as local:
        list(threads.Threads().made(plan, list(units(plan.tensors)), lambda: None))
    assert type(error) is type(local.value)
    assert str(error) == str(local.value)
    assert vars(error) == vars(local.value)


def test_a_source_that_a_machine_lacks_is_an_error_of_ours(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "model")
    given, todo = job(source, "gguf.q8_0"), list(units(planned(source, "gguf.q8_0").tensors))
    source.rename(tmp_path / "elsewhere")
    (error,) = cluster._convert(given, todo)
    assert isinstance(error, Error)
    assert error.file == os.fspath(source)


def test_units_of_a_layer_that_is_made_whole_go_together() -> None:
    plan = planned(SMALL_LLAMA, "gptq")
    todo = list(units(plan.tensors))
    groups = list(cluster.together(plan.tensors, todo, cluster.MOST_TOGETHER))
    assert [unit for group in groups for unit in group] == todo
    names = [sorted({plan.tensors[unit.tensor].name for unit in group}) for group in groups]
    layer = next(group for group in names if any("q_proj" in name for name in group))
    module = layer[0].rpartition(".")[0]
    assert layer == [f"{module}.{plane}" for plane in ("g_idx", "qweight", "qzeros", "scales")]
    dense = planned(SMALL_LLAMA, "gguf.q8_0")
    alone = cluster.together(dense.tensors, list(units(dense.tensors)), cluster.MOST_TOGETHER)
    assert all(len(group) == 1 for group in alone)


def test_large_layers_are_divided() -> None:
    plan = planned(SMALL_LLAMA, "gptq")
    todo = list(units(plan.tensors))
    groups = list(cluster.together(plan.tensors, todo, 5000))
    assert [unit for group in groups for unit in group] == todo
    assert all(len(group) == 1 or sum(unit.nbytes for unit in group) <= 5000 for group in groups)
    assert any(len(group) > 1 for group in groups)


def test_cancel_is_asked_while_a_unit_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def endless(tensor: Any, unit: Any, stop: threading.Event) -> Made:
        begun.set()
        assert stop.wait(30)
        raise subbyte.CancelledError("stopped")

    monkeypatch.setattr(threads, "make", endless)
    begin = time.monotonic()
    with pytest.raises(subbyte.CancelledError, match="stopped on request"):
        subbyte.convert(TINY, tmp_path / "out.gguf", to="gguf.q8_0", cancel=begun.is_set)
    assert time.monotonic() - begin < 10
    assert list(tmp_path.iterdir()) == []


def test_other_executors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(subbyte.ArgumentError, match="executor: expected 'local' or 'ray', found 'spark'"):
        subbyte.convert(TINY, tmp_path / "out.gguf", to="gguf.q8_0", executor="spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(subbyte.UnsupportedError, match=r"subbyte\[ray\]"):
        subbyte.convert(TINY, tmp_path / "out.gguf", to="gguf.q8_0", executor="ray")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://[::1]:1", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer_is_refused_at_once(address: str) -> None:
    with pytest.raises(IoError, match=r"no Ray cluster answers at RAY_ADDRESS=.*:(1|99999): \w+Error"):
        cluster._check_address(address)
    for other in ("", "auto", "local"):
        cluster._check_address(other)


def test_the_command_has_the_same_executors() -> None:
    from subbyte.cli import parser

    for name in EXECUTORS:
        assert parser().parse_args(["convert", "a", "b", "--executor", name]).executor == name
