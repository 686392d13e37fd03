"""`subbyte.load_state_dict`: plain arrays of every format, with NumPy alone."""

from __future__ import annotations

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest

import subbyte
from checkpoints import SMALL_LLAMA, TESTS
from subbyte.io.gguf import write_gguf
from subbyte.io.safetensors import SafetensorsFile, write_safetensors

FAMILIES = sorted(path.parent.name for path in (TESTS / "golden").glob("*/cases.json"))


def opened(family, folder):
    """The folders of the golden checkpoints of a family, made in ``folder``."""
    golden = TESTS / "golden" / family
    for case in json.loads((golden / "cases.json").read_text())["cases"]:
        for number, check in enumerate(case["checks"]):
            if check["op"] != "open" or "tensors" not in check:
                continue
            made = folder / f"{case['name']}-{number}"
            made.mkdir()
            stored = SafetensorsFile(golden / case["file"])
            write_safetensors(
                made / "model.safetensors",
                {name: stored.array(key) for name, key in check["tensors"].items()},
                metadata=check.get("metadata"),
            )
            for name, value in {"config.json": check.get("config"), **check.get("files", {})}.items():
                if value is not None:
                    (made / name).write_text(json.dumps(value))
            yield made


CODE = """
import hashlib, json, sys
sys.modules["ml_dtypes"] = sys.modules["torch"] = None
import subbyte
for path in json.loads(sys.argv[1]):
    found = subbyte.load_state_dict(path)
    print(json.dumps([path, {k: [v.dtype.name, *v.shape, hashlib.sha256(v).hexdigest()] for k, v in found.items()}]))
"""


def test_every_format_with_numpy_alone(tmp_path, run_python):
    folders = []
    for family in FAMILIES:
        (tmp_path / family).mkdir()
        folders += opened(family, tmp_path / family)
    assert len({folder.parent.name for folder in folders}) > 12
    lines = run_python(CODE, json.dumps([str(folder) for folder in folders])).splitlines()
    assert len(lines) == len(folders)
    for line in lines:
        path, found = json.loads(line)
        checkpoint = subbyte.open(path)
        assert list(found) == list(checkpoint)
        for name, weight in checkpoint.items():
            values = weight.elements() if weight.whole else weight.decode()
            digest = hashlib.sha256(np.ascontiguousarray(values)).hexdigest()
            assert found[name] == [values.dtype.name, *weight.shape, digest], (path, name)


def test_types(tmp_path):
    path = tmp_path / "m.safetensors"
    floats = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
    write_safetensors(path, {"w": floats, "position": np.arange(4), "mask": np.array([True, False])})
    found = subbyte.load_state_dict(path, dtype="bfloat16")
    assert isinstance(found, dict)
    assert found["w"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(found["w"], floats.astype(ml_dtypes.bfloat16))
    assert found["position"].dtype == np.int64
    assert found["position"].tolist() == [0, 1, 2, 3]
    assert found["mask"].tolist() == [True, False]
    with pytest.raises(subbyte.ArgumentError, match="int8"):
        subbyte.load_state_dict(path, dtype="int8")
    with pytest.raises(subbyte.UnsupportedError, match="only integers"):
        subbyte.open(path)["w"].elements()


def test_a_gguf_file(tmp_path):
    values = np.random.default_rng(2).standard_normal((4, 256)).astype(np.float32)
    packed = subbyte.encode("gguf.q4_k", values)["blocks"]
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "demo"}, {"q": ("Q4_K", packed), "n": np.arange(3)})
    found = subbyte.load_state_dict(tmp_path / "m.gguf")
    assert np.array_equal(found["q"], subbyte.decode("gguf.q4_k", {"blocks": packed}))
    assert found["n"].tolist() == [0, 1, 2]
    assert found["n"].dtype == np.int64


def test_lazy():
    everything = subbyte.load_state_dict(SMALL_LLAMA, dtype="float16")
    one_by_one = subbyte.load_state_dict(SMALL_LLAMA, dtype="float16", lazy=True)
    assert not isinstance(one_by_one, dict)
    assert list(one_by_one) == list(everything)
    assert len(one_by_one) == len(everything)
    for name, values in one_by_one.items():
        assert values.dtype == np.float16
        assert np.array_equal(values, everything[name])
