"""Mutated layers of the vector formats: planes and parameters changed at random, and decoded.

Whatever happens is an array or an error of ours, within seconds.
"""

from __future__ import annotations

import json
import os
import random
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

import subbyte
from hostile.test_checkpoint_mutations import VALUES, mutate_tensors
from subbyte.io.safetensors import SafetensorsFile

GOLDEN = Path(__file__).parent.parent / "golden"
TOTAL = int(os.environ.get("SUBBYTE_TEST_MUTATIONS", "90000"))
LIMIT = 5.0
FAMILIES = (
    "aqlm",
    "compact3d",
    "exl3",
    "gptvq",
    "higgs_flute",
    "qmoe",
    "qpalette",
    "qtip",
    "quip",
    "spqr",
    "squeezellm",
    "vptq",
)


def decoded(value):
    try:
        return json.loads(value)
    except ValueError:
        return value


def layers(family):
    """Format, planes and parameters of the layers that a family decodes."""
    for case in json.loads((GOLDEN / family / "cases.json").read_text())["cases"]:
        checks = [check for check in case["checks"] if check["op"] == "decode"]
        with SafetensorsFile(GOLDEN / family / case["file"]) as file:
            held = {name: np.array(file.array(name)) for name in file}
            metadata = {name: decoded(value) for name, value in file.metadata.items() if name != "producer"}
        for check in checks:
            planes = {name: held[stored] for name, stored in check["planes"].items()}
            yield check["format"], planes, metadata | check.get("params", {})


def mutate_parameters(rng, params):
    name = rng.choice(list(params) or ["shape"])
    held = params.get(name)
    if rng.random() < 0.2:
        params.pop(name, None)
    elif isinstance(held, list | dict) and held and rng.random() < 0.6:
        held[rng.choice(list(held) if isinstance(held, dict) else range(len(held)))] = rng.choice(VALUES)
    elif isinstance(held, int) and rng.random() < 0.5:
        params[name] = held + rng.choice((-1, 1, held, -held))
    else:
        params[name] = rng.choice(VALUES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_mutated_layers(family):
    found = list(layers(family))
    rng = random.Random(family)
    outcomes = {"read": 0, "refused": 0}
    for round in range(max(TOTAL // len(FAMILIES), 20)):
        id, planes, params = rng.choice(found)
        planes, params = dict(planes), json.loads(json.dumps(params))
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.5:
                mutate_parameters(rng, params)
            elif planes:
                mutate_tensors(rng, planes)
        start = time.monotonic()
        try:
            subbyte.decode(id, planes, params=params)
            outcomes["read"] += 1
        except subbyte.Error:
            outcomes["refused"] += 1
        except Exception:
            shapes = {name: (one.dtype, one.shape) for name, one in planes.items()}
            pytest.fail(f"round {round}: {traceback.format_exc(limit=-6)}\n{shapes}\n{json.dumps(params)[:2000]}")
        assert time.monotonic() - start < LIMIT, f"round {round} took too long: {json.dumps(params)[:2000]}"
    assert all(outcomes.values()), outcomes
