"""subbyte's own checkpoints as targets (`subbyte.formats.envelope`).

``subbyte`` keeps the planes of every quantized layer as they are. ``subbyte.gguf.q4_k`` and the like store blocks of a
ggml type, ``subbyte.gptq`` and the like what the target of that name stores, all in one layout.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from subbyte.formats.envelope import ID, VERSION
from subbyte.forms import Form, Microscaled
from subbyte.ggml import TYPES
from subbyte.planes import Plane
from subbyte.routes import blocks
from subbyte.routes.fit import Companion, Fit, MisfitError, Option, Settings, Stored, Target

BLOCK_TYPES = tuple(
    name
    for name, facts in TYPES.items()
    if facts.block > 1 and facts.decodes and facts.encodes and facts.importance != "required" and name != "Q8_K"
)
"""ggml types that floats can become without importance data."""


class Kept(Target):
    """``subbyte``: every layer keeps its format, its parameters and its planes."""

    id = ID
    options: ClassVar[Mapping[str, Option]] = {}
    keeps: ClassVar[bool] = True

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        raise MisfitError(f"'{ID}' keeps codes as they are stored: name the format that they shall have")

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        raise MisfitError(f"'{ID}' keeps codes as they are stored: name the format that floats shall have")

    def companion(self, name: str, value: Plane, params: Mapping[str, Any] | None) -> Companion:
        return Companion(name, value)

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        return _settings(layers, dense)


class Enveloped(Target):
    """``subbyte.<target>``: what another target stores."""

    id = ID

    def __init__(self, inner: Target) -> None:
        self.inner = inner
        self.options, self.whole = inner.options, inner.whole  # type: ignore[misc]

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        found = self.inner.fit(form, options)
        return found.with_params(**self._params(found.params))

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        return self._params(self.inner.params(options, shape))

    def _params(self, own: Mapping[str, Any]) -> dict[str, Any]:
        return {"format": self.inner.id, "params": dict(own)}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        return _settings(layers, dense)


class Blocks(Target):
    """Blocks of a ggml type, in an envelope: ``gguf.q4_k``."""

    options: ClassVar[Mapping[str, Option]] = {}

    def __init__(self, type: str) -> None:
        self.id = f"gguf.{type.lower()}"  # type: ignore[misc]
        self.type = type

    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        found = blocks.fit(form, self.type)
        if isinstance(found.form, Microscaled) and found.form.multiplier not in (None, 1):
            raise MisfitError(f"{self.type} has no room for the scale of the whole tensor")
        return found

    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        return {}

    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        raise MisfitError(f"checkpoints of {self.type} are GGUF files, or envelopes")


def _settings(layers: Mapping[str, Stored], dense: Sequence[str]) -> Settings:
    """``quantization_config``: the scheme that most layers have is the default."""
    schemes = {name: _scheme(layer) for name, layer in layers.items()}
    keys = {name: json.dumps(scheme, sort_keys=True) for name, scheme in schemes.items()}
    common = Counter(keys.values()).most_common(1)[0][0]
    entries = {}
    for name, layer in layers.items():
        entry: dict[str, Any] = {"shape": list(layer.shape)}
        if layer.transposed:
            *leading, rows, columns = layer.shape
            entry |= {"shape": [*leading, columns, rows], "transposed": True}
        entries[name] = entry if keys[name] == common else entry | schemes[name]
    config = {"quant_method": ID, "version": VERSION, "default": json.loads(common), "layers": entries}
    return Settings({"quantization_config": config | ({"dense": list(dense)} if dense else {})})


def _scheme(layer: Stored) -> dict[str, Any]:
    scheme = {"format": layer.params["format"], "planes": list(layer.planes)}
    return scheme | ({"params": dict(layer.params["params"])} if layer.params["params"] else {})
