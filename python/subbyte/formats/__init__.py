"""Format ids: what a checkpoint says it stores.

A format id (``gptq``) takes its variant from parameters and may cover many codecs; a codec id (``gguf.q4_k``) names one
byte layout. Every codec id is a format id too, without parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from subbyte.arguments import text
from subbyte.arrays import Array
from subbyte.codec import Codec, Encoded, get_codec
from subbyte.errors import ArgumentError, FormatError, UnsupportedError

if TYPE_CHECKING:
    from subbyte.formats.base import Format, Layer
    from subbyte.forms import Form
    from subbyte.planes import Plane

#: Module of each format; it has a mapping FORMATS from id to format, and is loaded when an id of it is asked for.
_MODULES = {
    "any4": "table.any4",
    "aqlm": "vector.aqlm",
    "awq": "integer.awq",
    "bitnet": "ternary.bitnet",
    "bitnet.gpu_int2": "ternary.bitnet_gpu",
    "bitnet.i2_s": "ternary.bitnet_i2_s",
    "bitnet.tl1": "ternary.bitnet_tl",
    "bitnet.tl2": "ternary.bitnet_tl",
    "bitsandbytes": "table.bitsandbytes",
    "compact3d": "vector.compact3d",
    "compressed-tensors": "compressed_tensors",
    "exl3": "trellis.exl3",
    "fp8": "float.fp8",
    "gemma": "integer.gemma",
    "gptq": "integer.gptq",
    "gptvq": "vector.gptvq",
    "higgs": "vector.higgs",
    "hqq": "integer.hqq",
    "llm-fp4": "float.llm_fp4",
    "matquant": "integer.matquant",
    "matquant.codes": "integer.matquant",
    "mlx": "integer.mlx",
    "modelopt": "float.modelopt",
    "mxfp4": "float.mxfp4",
    "nunchaku": "integer.nunchaku",
    "nunchaku.bias": "integer.nunchaku",
    "nunchaku.lora_down": "integer.nunchaku",
    "nunchaku.lora_up": "integer.nunchaku",
    "nunchaku.smooth": "integer.nunchaku",
    "qmoe": "vector.qmoe",
    "qpalette": "vector.qpalette",
    "qqq": "integer.qqq",
    "qqq.int8": "integer.qqq",
    "qqq.s_channel": "integer.qqq",
    "qserve": "integer.qserve",
    "qserve.int8": "integer.qserve",
    "qtip": "trellis.qtip",
    "quanto": "integer.quanto",
    "quip": "vector.quip",
    "sinq": "integer.sinq",
    "spqr": "vector.spqr",
    "squeezellm": "vector.squeezellm",
    "subbyte": "envelope",
    "torchao": "integer.torchao",
    "vptq": "vector.vptq",
}

#: Every id that is spoken for.
_KNOWN = frozenset(
    """
    abq any4 aqlm awq billm bitnet bitnet.gpu_int2 bitnet.i2_s bitnet.tl1 bitnet.tl2 bitsandbytes bitstack compact3d
    compressed-tensors exl3 fp8 fsq gemma gptq gptvq higgs hqq ifairy kv.aquakv kv.kivi kv.kvquant kv.logquant
    kv.quantspec kv.rotatekv kv.xquant kv.zipcache littlebit llm-fp4 lq-lora matquant matquant.codes mlx modelopt mxfp4
    nunchaku nunchaku.bias nunchaku.lora_down nunchaku.lora_up nunchaku.smooth onebit qmoe qpalette qqq qqq.int8
    qqq.s_channel qserve qserve.int8 qtip quanto quip sageattention sinq spqr squeezellm subbyte tmac torchao vptq
    """.split()
)

#: Ids that have no implementation.
PLANNED = _KNOWN - set(_MODULES)

#: ggml types that existed once; files that hold them have to be made anew.
_REMOVED_GGML = frozenset("q4_2 q4_3 q4_0_4_4 q4_0_4_8 q4_0_8_8 iq4_nl_4_4 iq4_nl_4_8 iq4_nl_8_8".split())


class LayerFormat(Protocol):
    """What formats and codecs have in common."""

    def decode(self, planes: Mapping[str, Any], *, params: Mapping[str, Any], dtype: Any) -> Array:
        """The dense weight of one layer, see `subbyte.decode`."""

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        """The planes of one layer, see `subbyte.encode`."""

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        """The layer as a canonical form, see `Format.read`."""

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        """A form's codes and parameters as planes, see `Format.write`."""


class CodecFormat:
    """A codec as a format without parameters."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def decode(self, planes: Mapping[str, Any], *, params: Mapping[str, Any], dtype: Any) -> Array:
        """Decodes with the codec; ``params`` have no meaning for it."""
        return self.codec.decode(planes, dtype=dtype)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        """Encodes with the codec; ``params`` have no meaning for it."""
        return self.codec.encode(array, importance=importance)

    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        """The weight as a form; ``params`` hold its ``shape``.

        Raises:
            ArgumentError: a plane or the shape is missing.
            FormatError: the blocks are not those of a weight of this shape.
        """
        from subbyte.forms import Coded
        from subbyte.planes import plane

        shape = params.get("shape")
        if not isinstance(shape, list | tuple) or not shape:
            raise ArgumentError(f"params lacks 'shape', the shape of a weight of {self.codec.id}")
        return Coded.read(self.codec, {name: plane(value).array() for name, value in planes.items()}, tuple(shape))

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        """The planes of a form that the codec holds exactly (`subbyte.routes.blocks.fit` says which).

        Raises:
            UnsupportedError: it does not.
        """
        from subbyte.ggml import PLANE
        from subbyte.planes import Plane
        from subbyte.routes.blocks import assembled

        return {PLANE: Plane(assembled(form, self.codec.id).reshape(*form.shape[:-1], -1), "U8")}


def format_ids() -> list[str]:
    """The ids of the checkpoint formats, sorted."""
    return sorted(_MODULES)


def checkpoint_format(id: str) -> Format:
    """The checkpoint format with this id.

    Raises:
        UnsupportedError: it is planned, or no checkpoint format.
    """
    if id not in _MODULES:
        raise UnsupportedError(f"checkpoints of format '{id}' are not supported yet")
    found: Format = import_module(f"subbyte.formats.{_MODULES[id]}").FORMATS[id]
    return found


def get_format(id: str) -> LayerFormat:
    """The format with this id.

    Raises:
        ArgumentError: there is none.
        UnsupportedError: it is planned, or a ggml type that was removed or is not made of floats.
    """
    if text(id, "the format id") in PLANNED:
        raise UnsupportedError(f"format '{id}' is not supported yet: subbyte.list_formats() lists what is")
    if id in _MODULES:
        return checkpoint_format(id)
    family, _, variant = id.partition(".")
    if family == "gguf" and variant in _REMOVED_GGML:
        raise UnsupportedError(f"ggml has removed the type {variant.upper()}: make the file anew from its source")
    if family == "gguf" and variant in ("i8", "i16", "i32", "i64"):
        raise UnsupportedError(f"'{id}' holds integers, not weights: open the file and decode the tensor by name")
    return CodecFormat(get_codec(id))


def read_layer(id: str, layer: Layer, planes: Mapping[str, Plane]) -> Form:
    """The form of a layer of a checkpoint.

    Args:
        id: format of the checkpoint.
        layer: the layer.
        planes: its planes.

    Raises:
        FormatError: it is not of the shape that the checkpoint says, or as `Format.read`.
        ArgumentError, UnsupportedError: as `Format.read`.
    """
    form = get_format(layer.format or id).read(planes, layer.params)
    if form.shape != layer.own_shape:
        raise FormatError(f"the planes hold a weight {list(form.shape)}: expected {list(layer.own_shape)}")
    return form
