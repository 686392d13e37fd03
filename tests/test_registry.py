"""The registry: plug-ins, and what every built-in codec has to bring along."""

from __future__ import annotations

import json
import warnings
from types import MappingProxyType

import numpy as np
import pytest

import subbyte
from subbyte import codec as registry
from subbyte import formats

BUILT_IN = [id for id in subbyte.codec_ids() if id.startswith("gguf.")]


class Doubled:
    """A codec of another package: stores twice the value, as it is."""

    def __init__(self, id="demo.doubled"):
        self.id = id

    def encode(self, array, *, importance=None, out=None):
        array = np.asarray(array)
        return subbyte.Encoded({"values": array * 2}, config=self.config(), shape=array.shape)

    def decode(self, encoded, *, out=None, rows=slice(None), dtype="float32"):
        return (encoded["values"] / 2)[rows].astype(dtype)

    def nbytes(self, shape):
        return int(np.prod(shape)) * 4

    def bits_per_weight(self, shape):
        return 32.0

    def config(self):
        return {"id": self.id}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Each test starts with the built-in codecs only."""
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution with entry points and the module that they name."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(distribution, entries, source=""):
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        lines = [f"{id} = {module}:{attribute}" for id, attribute in entries.items()]
        (info / "entry_points.txt").write_text("[subbyte.codecs]\n" + "\n".join(lines) + "\n")

    return run


def test_register():
    subbyte.register_codec(Doubled())
    w = np.ones((2, 3), np.float32)
    encoded = subbyte.encode("demo.doubled", w)
    assert (subbyte.decode("demo.doubled", encoded) == w).all()
    assert "demo.doubled" in subbyte.codec_ids()
    with pytest.raises(subbyte.ArgumentError, match="taken"):
        subbyte.register_codec(Doubled())
    with pytest.raises(subbyte.ArgumentError, match="taken"):
        subbyte.register_codec(Doubled("gguf.q8_0"))
    with pytest.raises(subbyte.ArgumentError, match="no codec"):
        subbyte.register_codec(object())


def test_unknown_id_suggests_near_ones():
    with pytest.raises(subbyte.ArgumentError, match=r"gguf\.q4_k"):
        subbyte.get_codec("gguf.q4k")
    with pytest.raises(subbyte.ArgumentError, match="codec_ids"):
        subbyte.get_codec("zzz")


def source(*lines):
    imports = f"import sys\nDoubled = sys.modules[{__name__!r}].Doubled\n"
    return imports + "\n".join(lines) + "\n"


def test_plugin_is_loaded_when_its_id_is_asked_for(install):
    install(
        "demo-good",
        {"demo.a": "instance", "demo.b": "make"},
        source("instance = Doubled('demo.a')", "make = lambda: Doubled('demo.b')"),
    )
    install("demo-unused", {"demo.unused": "x"}, "raise RuntimeError('imported without need')")
    assert {"demo.a", "demo.b", "demo.unused"} <= set(subbyte.codec_ids())
    for id in ("demo.a", "demo.b"):
        assert subbyte.get_codec(id).id == id
        assert subbyte.get_codec(id) is subbyte.get_codec(id)


def test_broken_plugin_is_an_error_for_its_id_only(install):
    install("demo-broken", {"demo.broken": "x"}, "raise RuntimeError('no licence key')")
    install("demo-shape", {"demo.shape": "x"}, "x = dict")
    install("demo-name", {"demo.name": "x"}, source("x = Doubled('demo.else')"))
    install("demo-whole", {"demo.good": "x"}, source("x = Doubled('demo.good')"))
    for id, why in [
        ("demo.broken", "demo-broken 1.5 .*RuntimeError: no licence key"),
        ("demo.shape", "demo-shape 1.5 .*lacks a method"),
        ("demo.name", "demo-name 1.5 .*demo.else"),
    ]:
        with pytest.raises(subbyte.PluginError, match=why):
            subbyte.get_codec(id)
        with pytest.raises(subbyte.PluginError, match=why):
            subbyte.encode(id, np.zeros(2))
    assert subbyte.get_codec("demo.good").id == "demo.good"
    assert subbyte.encode("gguf.q8_0", np.zeros(32, np.float32)).nbytes == 34


def test_two_plugins_with_one_id(install):
    for name in ("demo-one", "demo-two"):
        install(name, {"demo.same": "x"}, source("x = Doubled('demo.same')"))
    with pytest.raises(subbyte.PluginError, match=r"demo-one 1\.5.*demo-two 1\.5|demo-two 1\.5.*demo-one 1\.5"):
        subbyte.get_codec("demo.same")


def test_plugin_cannot_replace_a_built_in_codec(install):
    install("demo-thief", {"gguf.q8_0": "x"}, "raise RuntimeError('imported')")
    built_in = subbyte.get_codec("gguf.q8_0")
    with pytest.warns(subbyte.SubbyteWarning, match=r"demo-thief 1\.5 offers codec 'gguf\.q8_0', which is built in"):
        assert "gguf.q8_0" in subbyte.codec_ids()
    assert subbyte.get_codec("gguf.q8_0") is built_in


def test_format_ids():
    with pytest.raises(subbyte.UnsupportedError, match=r"'kv\.kivi' is not supported yet"):
        subbyte.decode("kv.kivi", {})
    for id in ("gguf.q4_2", "gguf.q4_0_4_4", "gguf.i32"):
        with pytest.raises(subbyte.UnsupportedError):
            subbyte.encode(id, np.zeros(32))
    with pytest.raises(subbyte.ArgumentError, match="did you mean"):
        subbyte.decode("gguf.q9_0", {})
    assert not formats.PLANNED & set(BUILT_IN)
    blocks = subbyte.encode("gguf.q8_0", np.zeros(32), params=MappingProxyType({"a": 1}))
    assert subbyte.decode("gguf.q8_0", blocks, params={"b": 2}).shape == (32,)


def lacking(present):
    return [id for id in BUILT_IN if not present(id)]


def test_every_codec_has_a_golden_fixture(golden):
    checks = [
        check for case in json.loads((golden / "quant" / "cases.json").read_text())["cases"] for check in case["checks"]
    ]
    encoded = {check["format"] for check in checks if check["op"] == "encode"}
    decoded = {check["format"] for check in checks if check["op"] == "decode"}
    # F32 and F64 are the array's own bytes; the container fixtures hold both.
    own_bytes = {"gguf.f32", "gguf.f64"}
    assert not lacking(lambda id: id in encoded | own_bytes), "no fixture of an encoding"
    assert not lacking(lambda id: id in decoded | own_bytes | {"gguf.q8_1"}), "no fixture of a decoding"


def test_every_codec_has_a_bench(root):
    records = [json.loads(path.read_text()) for path in (root / "benches" / "record").glob("*.json")]
    benched = {f"gguf.{name.lower()}" for r in records for level in r["block"].values() for name in level["rows"]}
    # Copies of the array's own bytes, and activations that no file holds: nothing to compare with.
    benched |= {"gguf.f32", "gguf.f64", "gguf.q8_1"}
    assert not lacking(lambda id: id in benched), "no row in benches/record"


def test_every_codec_is_documented(root):
    page = (root / "docs" / "formats" / "gguf.md").read_text()
    assert not lacking(lambda id: f"`{id}`" in page), "not in docs/formats/gguf.md"


def test_listing_needs_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert subbyte.codec_ids() == sorted(subbyte.codec_ids())
