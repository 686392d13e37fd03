"""Mutated checkpoints of every format: settings and tensors changed at random, opened and decoded.

Whatever happens is a matrix or an error of ours that says which file or tensor it is about, within seconds.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

import subbyte
from subbyte.io.safetensors import SafetensorsFile
from subbyte.planes import plane

GOLDEN = Path(__file__).parent.parent / "golden"
TOTAL = int(os.environ.get("SUBBYTE_TEST_MUTATIONS", "50000"))
LIMIT = 5.0

#: What a setting becomes: numbers at limits, other types, words of other formats, costly patterns.
VALUES = (
    None, -1, 0, 1, 2, 3, 5, 7, 8, 9, 31, 33, 64, 100, 128, 2**31, 2**63, 10**30, 1.5, float("nan"), "", "x", "4",
    "re:.*", "re:(", "re:(a+)+$", "(a|a)*", True, False, [], [4], [0, 0], ["Linear"], {}, {"a": 1}, "gptq", "gptq_v2",
    "marlin", "gemv", "gemv_fast", "float", "int", "group", "channel", "tensor", "block", "pack-quantized",
    "float-quantized", "nvfp4-pack-quantized", "sparse-bitmask", "nf4", "fp4", "e4m3", "ue8m0", "affine", "mxfp4",
    "torch.uint8",
)  # fmt: skip
TYPES = (np.uint8, np.int8, np.int16, np.int32, np.int64, np.float16, np.float32)


def opened(family):
    """File and checks of the cases of a family that open a checkpoint."""
    for case in json.loads((GOLDEN / family / "cases.json").read_text())["cases"]:
        checks = [check for check in case["checks"] if check["op"] == "open" and "tensors" in check]
        if checks:
            yield GOLDEN / family / case["file"], checks


FAMILIES = [
    name for name in sorted(manifest.parent.name for manifest in GOLDEN.glob("*/cases.json")) if any(opened(name))
]


def seeds(family):
    """Checkpoints of a family: config, other files, header strings, tensors."""
    for path, checks in opened(family):
        with SafetensorsFile(path) as file:
            held = {name: np.array(file.array(name)) for name in file}
        for check in checks:
            tensors = {name: held[stored] for name, stored in check["tensors"].items()}
            yield check.get("config") or {}, check.get("files", {}), check.get("metadata"), tensors


def settings(value, before=()):
    """Paths of all values in JSON data."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from settings(inner, (*before, key))


def mutate_settings(rng, holders):
    paths = [(holder, path) for holder in holders for path in settings(holder)]
    if not paths:
        return
    holder, path = rng.choice(paths)
    for step in path[:-1]:
        holder = holder[step]
    if rng.random() < 0.2:
        del holder[path[-1]]
    else:
        holder[path[-1]] = json.loads(json.dumps(rng.choice(VALUES)))


def mutate_tensors(rng, tensors):
    name = rng.choice(list(tensors))
    array = tensors[name]
    kind = rng.randrange(7)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name] = array[..., :-1].copy() if array.ndim and array.shape[-1] > 1 else array[..., None]
    elif kind == 2:
        tensors[name] = np.ascontiguousarray(array.T)
    elif kind == 3:
        tensors[name] = array.reshape(-1) if rng.random() < 0.5 else array[None]
    elif kind == 4:
        changed = np.array(array)
        raw = changed.reshape(-1).view(np.uint8)
        for _ in range(3 if raw.size else 0):
            raw[rng.randrange(raw.size)] ^= rng.randrange(1, 256)
        tensors[name] = changed
    elif kind == 5:
        tensors[name] = np.zeros(array.shape, rng.choice(TYPES))
    else:
        tensors[name] = array[:0] if array.ndim else array[None][:0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_mutated_checkpoints(tmp_path, family):
    found = list(seeds(family))
    rng = random.Random(f"{family} {sys.version_info.major}")
    outcomes = {"read": 0, "refused": 0}
    for round in range(max(TOTAL // len(FAMILIES), 20)):
        config, files, metadata, tensors = rng.choice(found)
        config, files, tensors = json.loads(json.dumps(config)), json.loads(json.dumps(files)), dict(tensors)
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.6:
                mutate_settings(rng, [config, *(file for file in files.values() if isinstance(file, dict | list))])
            elif tensors:
                mutate_tensors(rng, tensors)
        outcomes[attempt(tmp_path, config, files, metadata, tensors, f"round {round}")] += 1
    assert outcomes["refused"], outcomes


def write(path, tensors, metadata):
    """A safetensors file, not synchronised with the disk: there are many."""
    header, data = {"__metadata__": metadata or {}}, []
    at = 0
    for name, array in tensors.items():
        found = plane(array)
        data.append(np.ascontiguousarray(found.data).tobytes())
        header[name] = {
            "dtype": found.kind,
            "shape": list(found.shape),
            "data_offsets": [at, at + len(data[-1])],
        }
        at += len(data[-1])
    text = json.dumps(header).encode()
    path.unlink(missing_ok=True)  # writing over a file waits for the disk
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def attempt(folder, config, files, metadata, tensors, what):
    """Opens and decodes one checkpoint."""
    (folder / "config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, body in files.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(body if isinstance(body, str) else json.dumps(body))
    write(folder / "model.safetensors", tensors, metadata)
    start = time.monotonic()
    try:
        with subbyte.open(folder) as checkpoint:
            for weight in checkpoint.values():
                weight.decode()
        result = "read"
    except subbyte.Error as e:
        if not (e.file or e.tensor):
            pytest.fail(f"{what}: does not say what it is about: {e}")
        result = "refused"
    except Exception:
        pytest.fail(f"{what}: {traceback.format_exc(limit=-6)}\n{json.dumps(config)[:2000]}")
    assert time.monotonic() - start < LIMIT, f"{what} took too long: {json.dumps(config)[:2000]}"
    return result
