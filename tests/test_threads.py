"""Threads, forks, SIMD levels and environment variables: they change the speed and nothing else."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import numpy as np
import pytest

import subbyte
from subbyte import _native

#: Prints a digest of what every codec makes of the same input: more rows than one parallel task takes.
DIGEST = """
import hashlib
import numpy as np
import subbyte
rng = np.random.default_rng(11)
w = rng.standard_normal((300, 512)).astype(np.float32)
w[::7] *= 30
imp = rng.random(512).astype(np.float32) + 0.5
for id in subbyte.codec_ids():
    small = w[:140] if id.startswith("gguf.iq") else w
    encoded = subbyte.encode(id, small, importance=imp)
    digest = hashlib.sha256(encoded["blocks"].tobytes())
    if id != "gguf.q8_1":
        for dtype in ("float32", "float16", "bfloat16"):
            digest.update(subbyte.decode(id, encoded, dtype=dtype).tobytes())
    print(id, digest.hexdigest())
"""


@pytest.fixture(scope="module")
def expected_digest():
    """From this process, with the level and the threads it chose."""
    lines = []
    exec(DIGEST, {"print": lambda *words: lines.append(" ".join(words))})
    return "\n".join(lines) + "\n"


def test_every_level_gives_the_same_bytes(level, run_python, expected_digest):
    assert run_python(DIGEST, SUBBYTE_SIMD=level, SUBBYTE_NUM_THREADS="2", timeout=600) == expected_digest


@pytest.mark.parametrize("threads", ["1", "3", "8"])
def test_any_number_of_threads_gives_the_same_bytes(threads, run_python, expected_digest):
    assert run_python(DIGEST, SUBBYTE_NUM_THREADS=threads, timeout=600) == expected_digest


def test_level_can_only_be_lowered(level, run_python):
    code = "from subbyte import _native; print(_native.level(), _native.num_threads())"
    assert run_python(code, SUBBYTE_SIMD=level, SUBBYTE_NUM_THREADS="5").split() == [level, "5"]


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("SUBBYTE_SIMD", "sse9", "no such level"),
        ("SUBBYTE_SIMD", next((n for n, runs in _native.levels() if not runs), ""), "cannot run"),
        *(("SUBBYTE_NUM_THREADS", value, "from 1 to 1024") for value in ("many", "0", "20000", "9" * 30)),
    ],
)
def test_variables_without_effect_are_warned_about_once(variable, value, why, run_python):
    code = """
import warnings, numpy as np, subbyte
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        subbyte.decode("gguf.q8_0", subbyte.encode("gguf.q8_0", np.zeros((1, 32), "f4")))
print(*(f"{w.category.__name__} {w.message}" for w in caught), sep="\\n")
"""
    printed = run_python(code, **{variable: value})
    assert printed.count("SubbyteWarning") == 1
    assert f"{variable}={value}" in printed
    assert why in printed
    assert run_python(code) == "\n"


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_other_threads_run_during_long_calls(direction):
    w = np.random.default_rng(0).standard_normal((2048, 2048)).astype(np.float32)
    encoded = subbyte.encode("gguf.q5_k", w)
    started, calls = threading.Event(), []

    def work():
        until = time.monotonic() + 1
        while time.monotonic() < until:
            started.set()
            calls.append(
                subbyte.encode("gguf.q5_k", w) if direction == "encode" else subbyte.decode("gguf.q5_k", encoded)
            )

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    turns = 0
    while worker.is_alive():
        time.sleep(0)  # offers the lock
        turns += 1
    # With the lock held during calls, this thread would get its turns between them only.
    assert turns > 20 * len(calls)


def test_calls_from_many_threads_at_once():
    w = np.random.default_rng(1).standard_normal((256, 1024)).astype(np.float32)
    expected = hashlib.sha256(subbyte.encode("gguf.q4_k", w)["blocks"].tobytes()).digest()
    results = []

    def work():
        for _ in range(5):
            encoded = subbyte.encode("gguf.q4_k", w)
            subbyte.decode("gguf.q4_k", encoded)
            results.append(hashlib.sha256(encoded["blocks"].tobytes()).digest())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    assert results == [expected] * 40


FORK = """
import hashlib, os, sys
import numpy as np
import subbyte
w = np.random.default_rng(2).standard_normal((512, 1024)).astype(np.float32)
digest = lambda: hashlib.sha256(subbyte.encode("gguf.q4_k", w)["blocks"].tobytes()).hexdigest()
expected = digest()                                   # starts the pool of the parent
for generation in range(2):                           # a child, and a child of the child
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status) or (digest() != expected))
    if digest() != expected:
        sys.exit(9)
print("same bytes in every generation", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_children_of_a_fork_encode(run_python):
    assert run_python(FORK, SUBBYTE_NUM_THREADS="4", timeout=60) == "same bytes in every generation\n"
