"""subbyte's own checkpoints (``quant_method`` ``subbyte``): the codes of any format or codec, in one layout.

Every quantized weight is stored as the planes of its format, the arrays that `subbyte.encode` returns for the format's
id. The tensor of a plane is called ``<module>.<plane>``, where ``<module>`` is the name of the dense weight without
``.weight`` at its end. ``quantization_config`` in config.json says which weights these are:

    {
      "quant_method": "subbyte",
      "version": 1,
      "default": {"format": "gguf.q4_k", "planes": ["blocks"]},
      "layers": {
        "model.layers.0.self_attn.q_proj.weight": {"shape": [2048, 2048]},
        "model.layers.0.mlp.down_proj.weight": {
          "shape": [2048, 8192],
          "format": "gptq",
          "params": {"quantization_config": {"bits": 4, "group_size": 128, "sym": true, "desc_act": false}},
          "planes": ["qweight", "qzeros", "scales", "g_idx"]
        }
      },
      "dense": ["lm_head.weight", "model.embed_tokens.weight"]
    }

* ``version``: 1. A reader refuses any other. What a version means never changes.
* ``default``: the scheme of the layers that name none; may be missing.
* ``layers``: every quantized weight by the name of the dense weight: its scheme, and beside it ``shape``, its dense
  shape, of one dimension or more, none of them zero; and ``transposed``, true where the last two axes of the dense
  weight are exchanged against what its format decodes to (experts of gpt-oss), false if missing.
* ``dense``: names of matrices that are stored as they are. For people and for planners; not needed for reading.

A scheme is ``format``, a format id or codec id of `subbyte.list_formats` and `subbyte.codec_ids`; ``planes``, the names
of its planes that are stored; and ``params``, the parameters that `subbyte.decode` takes for the format, none if
missing. A layer that names a ``format`` has a scheme of its own, and nothing of the default; one that names none has
the default's, and neither ``planes`` nor ``params``. ``subbyte`` itself is no format here.

A tensor that is no plane of a layer is a dense tensor. Element types and shapes of the planes are those of the format,
with nothing added: a ggml type has the plane ``blocks``, U8 ``[..., rows, bytes of a row]``. A layer whose planes are
all missing while its dense weight is there is read as dense, and reported. A reader ignores keys that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from subbyte.arrays import Array
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.formats.base import Folder, Format, Layer, encoded, setting_bool, setting_int, setting_names, setting_text
from subbyte.forms import Form
from subbyte.planes import Plane, plane

if TYPE_CHECKING:
    from subbyte.formats import LayerFormat

ID = "subbyte"
VERSION = 1

_SIDE = 1 << 48
"""What no side of a weight reaches."""


class Envelope(Format):
    """The format ``subbyte``.

    Of a layer, ``params`` are ``format``, its id, and ``params``, what that format takes.
    """

    id = ID

    def decode(self, planes: Mapping[str, Any], *, params: Mapping[str, Any], dtype: Any) -> Array:
        id, own = _inner(params)
        return _format(id).decode(dict(planes), params=own, dtype=dtype)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        id, own = _inner(params)
        found = _format(id).encode(array, params=own, importance=importance)
        return encoded(self.id, {name: plane(found[name]) for name in found}, found.shape, params)

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        id, own = _inner(params)
        return _format(id).read(planes, own)

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        id, own = _inner(params)
        return _format(id).write(form, own)

    def layers(self, folder: Folder) -> Sequence[Layer]:
        found, stale = [], 0
        for layer in listed(folder.settings):
            name = layer.name
            absent = [tensor for tensor in layer.planes.values() if tensor not in folder.source]
            if not absent:
                found.append(layer)
            elif len(absent) == len(layer.planes) and name in folder.source:
                stale += 1
            else:
                raise FormatError(f"tensor '{absent[0]}', which belongs to it, is missing", tensor=name)
        if stale:
            folder.notes.append(f"{stale} weights are listed as quantized but stored dense")
        return found


def listed(config: Mapping[str, Any]) -> list[Layer]:
    """The layers that ``quantization_config`` lists, whether or not they are there.

    Raises:
        FormatError: the settings contradict themselves, or are not what they have to be.
        UnsupportedError: another version of the layout, or a format that is not known.
    """
    version = setting_int(config, "version")
    if version != VERSION:
        raise UnsupportedError(f"layout {version} of subbyte's checkpoints: this version of subbyte reads {VERSION}")
    default = config.get("default")
    if default is not None:
        default = _Scheme(_object(default, "default"), "default")
    entries = _object(config.get("layers"), "layers")
    dense = entries.keys() & set(setting_names(config, "dense"))
    if dense:
        raise FormatError(f"'{min(dense)}' is among the layers and among the dense weights: which one counts?")
    return [_layer(name, _object(entry, f"layers['{name}']"), default) for name, entry in entries.items()]


class _Scheme:
    """How a layer is stored: format, parameters, planes."""

    def __init__(self, entry: Mapping[str, Any], where: str) -> None:
        self.format = setting_text(entry, "format")
        self.params = _object(entry.get("params", {}), f"params of {where}")
        self.planes = setting_names(entry, "planes")
        if not self.planes or len(set(self.planes)) < len(self.planes) or "" in self.planes:
            raise FormatError(
                f"planes of {where} are {self.planes!r:.60}: expected one name or more, none of them twice"
            )
        try:
            _format(self.format)
        except ArgumentError as error:
            raise UnsupportedError(f"{where}: {error.message}") from error


def _layer(name: str, entry: Mapping[str, Any], default: _Scheme | None) -> Layer:
    if "format" in entry:
        scheme = _Scheme(entry, f"layers['{name}']")
    elif default is None or "planes" in entry or "params" in entry:
        raise FormatError(f"layers['{name}'] names no format" + (", and there is no default" if not default else ""))
    else:
        scheme = default
    shape = _shape(name, entry.get("shape"))
    module = name.removesuffix(".weight")
    planes = {plane: f"{module}.{plane}" for plane in scheme.planes}
    transposed = setting_bool(entry, "transposed", False)
    if transposed and len(shape) < 2:
        raise FormatError(f"layers['{name}'] is transposed and has shape {list(shape)}: expected a matrix")
    layer = Layer(name, shape, planes, scheme.params, transposed, scheme.format)
    return replace(layer, params={**scheme.params, "shape": layer.own_shape}) if _is_codec(scheme.format) else layer


def _shape(name: str, found: Any) -> tuple[int, ...]:
    sides = found if isinstance(found, list) else []
    if not sides or any(isinstance(s, bool) or not isinstance(s, int) or not 0 < s < _SIDE for s in sides):
        raise FormatError(f"shape of layers['{name}'] is {found!r:.60}: expected a list of positive integers")
    return tuple(sides)


def _object(found: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise FormatError(f"{where} is {found!r:.60}: expected a JSON object")
    return found


def _inner(params: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Format id and parameters of what is in the envelope."""
    if "format" not in params:
        raise ArgumentError("params lacks 'format', the id of what is in the envelope")
    return setting_text(params, "format"), _object(params.get("params", {}), "params")


def _format(id: str) -> LayerFormat:
    """The format with this id.

    Raises:
        ArgumentError: there is none.
        UnsupportedError: it is planned, or the envelope itself.
    """
    from subbyte.formats import get_format

    if id == ID:
        raise UnsupportedError(f"'{ID}' inside of '{ID}': expected the format of the weights")
    return get_format(id)


def _is_codec(id: str) -> bool:
    from subbyte.formats import CodecFormat

    return isinstance(_format(id), CodecFormat)


FORMATS = {ID: Envelope()}
