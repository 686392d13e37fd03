"""A quantizer for transformers that reads subbyte's own checkpoints (``quant_method`` ``subbyte``).

Importing this module registers it, by transformers' decorators; then ``AutoModel….from_pretrained(folder)`` loads such
a checkpoint. It runs on any device, decoding on the host.

There are two ways to load. By default every weight is decoded once, in the dtype of the model, and the model is an
ordinary one, which is saved as floats. With ``dequantize`` false, linear layers keep their planes and decode them
whenever they run: less memory, more time; ``save_pretrained`` writes the same planes again, and ``model.dequantize()``
decodes them. The setting is one of ``quantization_config``, in config.json or changed on the way::

    config = AutoConfig.from_pretrained(folder)
    config.quantization_config["dequantize"] = False
    model = AutoModelForCausalLM.from_pretrained(folder, config=config)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from subbyte.errors import FormatError, UnsupportedError
from subbyte.formats import read_layer
from subbyte.formats.base import Layer
from subbyte.formats.envelope import ID, VERSION, listed
from subbyte.integrations.tensors import decoded, empty_plane, plane_of
from subbyte.io.safetensors import SafetensorsFile

_OLDEST = (5, 0)


@register_quantization_config(ID)
class SubbyteConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """``quantization_config`` of a checkpoint in subbyte's layout, see `subbyte.formats.envelope`.

    Args:
        version: of the layout.
        default: the scheme of layers that name none.
        layers: every quantized weight by its name.
        dense: names of matrices that are stored as they are.
        dequantize: decode all weights while loading.
        others: keys that this version does not know; they are kept.
    """

    def __init__(
        self,
        version: int = VERSION,
        default: Mapping[str, Any] | None = None,
        layers: Mapping[str, Any] | None = None,
        dense: Sequence[str] = (),
        dequantize: bool = True,
        **others: Any,
    ) -> None:
        self.__dict__.update(others)
        self.quant_method = ID
        self.version, self.layers, self.dequantize = version, dict(layers or {}), dequantize
        if default is not None:
            self.default = dict(default)
        if dense:
            self.dense = list(dense)


@register_quantizer(ID)
class SubbyteQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads, runs and saves checkpoints in subbyte's layout."""

    requires_calibration = False

    def __init__(self, quantization_config: SubbyteConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.layers: dict[str, Layer] = {}
        self.packed: dict[str, PackedLinear] = {}

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what cannot work before anything is loaded.

        Raises:
            ImportError: transformers is too old.
            UnsupportedError: the model is not quantized yet, or is to be left on the disk.
            FormatError: the settings contradict themselves.
        """
        if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            raise ImportError(f"subbyte needs transformers {oldest}: found {transformers.__version__}")
        if not self.pre_quantized:
            raise UnsupportedError(
                "transformers quantizes no model with subbyte: make a checkpoint with subbyte convert --to subbyte.TYPE"
            )
        device_map = kwargs.get("device_map")
        if isinstance(device_map, Mapping) and "disk" in device_map.values():
            raise UnsupportedError(
                "weights in subbyte's layout cannot be left on the disk: decode them first (hf.bf16)"
            )
        self.layers = {layer.name: layer for layer in listed(self.quantization_config.to_dict())}

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str | PathLike[str]] = (), **kwargs: Any
    ) -> nn.Module:
        sources = [SafetensorsFile(Path(file)) for file in checkpoint_files]
        stored = {name: tensor for source in sources for name, tensor in source.items()}
        planes = {tensor for layer in self.layers.values() for tensor in layer.planes.values()}
        self._beside = [name for name in stored if name not in planes]
        self.layers = {name: layer for name, layer in self.layers.items() if set(layer.planes.values()) <= set(stored)}
        if self.quantization_config.dequantize:
            return model
        for name, module in list(model.named_modules()):
            layer = self.layer(f"{name}.weight", model.base_model_prefix)
            if layer is None or not _can_be_packed(layer, module):
                continue
            kinds = {plane: (stored[tensor].dtype, stored[tensor].shape) for plane, tensor in layer.planes.items()}
            packed = PackedLinear(layer, kinds, module)
            model.set_submodule(name, packed)
            self.packed[layer.name] = packed
        return model

    def layer(self, weight: str, prefix: str) -> Layer | None:
        """The layer of a weight of the model, whose name may lack or have the prefix of the base model."""
        names = (weight, f"{prefix}.{weight}", weight.removeprefix(f"{prefix}."))
        return next((self.layers[name] for name in names if name in self.layers), None)

    def update_weight_conversions(self, weight_conversions: list[Any], model: nn.Module) -> list[Any]:
        """The model's conversions, and before them those that decode.

        Raises:
            UnsupportedError: the model puts quantized weights together while it is loaded.
        """
        decoding = [layer for layer in self.layers.values() if layer.name not in self.packed]
        for converter in weight_conversions:
            if isinstance(converter, WeightConverter):
                merged = next((la.name for la in decoding if converter.rename_source_key(la.name)[1] is not None), None)
                if merged is not None:
                    raise UnsupportedError(
                        "the model puts this weight together with others while it is loaded: decode it first (hf.bf16)",
                        tensor=merged,
                    )
        operation = Decode(self)
        named = [layer for layer in decoding if not layer.name.endswith(".weight")]
        plain = [layer for layer in decoding if layer.name.endswith(".weight")]
        suffixes = {plane for layer in plain for plane in layer.planes}
        if any(name.endswith(f".{plane}") for plane in suffixes - {"weight"} for name in self._beside):
            named, plain, suffixes = decoding, [], set()
        found = [
            WeightConverter([f"^{re.escape(tensor)}$" for tensor in layer.planes.values()], [layer.name], [operation])
            for layer in named
        ]
        if plain:
            # Dense tensors may end like a plane does, with ".weight": the operation passes them on.
            patterns = [rf"\.{re.escape(plane)}$" for plane in sorted(suffixes)]
            found.append(WeightConverter(patterns, [".weight"], [operation]))
        for converter in found:
            converter.force_cpu = True
        return [*found, *weight_conversions]

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Planes keep their type; what the operation passes on, it converts itself."""
        if any(isinstance(operation, Decode) for operation in _operations(converter)):
            return None
        found: torch.dtype | None = super().get_new_dtype(converter, param, dtype)
        return found

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        used = getattr(model, "_weight_conversions", None)
        if used is not None:
            model._weight_conversions = [c for c in used if not any(isinstance(o, Decode) for o in _operations(c))]
        if not self.quantization_config.dequantize:
            config = self.quantization_config
            config.layers = {name: entry for name, entry in config.layers.items() if name in self.packed}
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        for name, module in list(model.named_modules()):
            if isinstance(module, PackedLinear):
                model.set_submodule(name, module.dense(dtype or torch.get_default_dtype()))
        self.packed = {}
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Packed layers are saved as they were read."""
        return True

    @property
    def is_trainable(self) -> bool:
        return False


class Decode(ConversionOps):  # type: ignore[misc]
    """Planes of a layer → its dense weight."""

    def __init__(self, quantizer: SubbyteQuantizer) -> None:
        self._quantizer = quantizer

    def __deepcopy__(self, memo: Any) -> Decode:
        return self  # transformers copies it for every tensor

    def convert(self, input_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The weight called ``full_layer_name``, by that name.

        Args:
            input_dict: tensors by source pattern.
            kwargs: ``full_layer_name``, ``model``.
        """
        name, model = kwargs["full_layer_name"], kwargs["model"]
        dtype = _parameter(model, name).dtype
        tensors = {pattern: part[0] if isinstance(part, list) else part for pattern, part in input_dict.items()}
        layer = self._quantizer.layer(name, model.base_model_prefix)
        if layer is None:
            (tensor,) = tensors.values()
            return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor}
        planes = {}
        for plane, stored in layer.planes.items():
            found = next((t for p, t in tensors.items() if re.search(p, stored) is not None), None)
            if found is None:
                raise FormatError(f"tensor '{stored}', which belongs to it, is missing", tensor=name)
            planes[plane] = plane_of(found)
        return {name: decoded(read_layer(ID, layer, planes), dtype, transposed=layer.transposed)}

    @property
    def reverse_op(self) -> ConversionOps:
        raise UnsupportedError("decoded weights are saved as floats")


class PackedLinear(nn.Module):  # type: ignore[misc]
    """A linear layer that keeps its planes as buffers and decodes them when it runs."""

    def __init__(self, layer: Layer, kinds: Mapping[str, tuple[str, tuple[int, ...]]], dense: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.out_features, self.in_features = layer.shape
        for plane, (kind, shape) in kinds.items():
            self.register_buffer(plane, empty_plane(kind, shape, device=dense.weight.device))
        self.bias = dense.bias

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        """The dense weight, where the planes are."""
        planes = {plane: self.get_buffer(plane) for plane in self.layer.planes}
        device = next(iter(planes.values())).device
        form = read_layer(ID, self.layer, {plane: plane_of(tensor) for plane, tensor in planes.items()})
        return decoded(form, dtype).to(device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight_in(x.dtype), self.bias)

    def dense(self, dtype: torch.dtype) -> nn.Linear:
        """The layer with its weight decoded."""
        weight = self.weight_in(dtype)
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        made.bias = self.bias
        return made

    def extra_repr(self) -> str:
        return f"{self.layer.format}, in_features={self.in_features}, out_features={self.out_features}"


def _can_be_packed(layer: Layer, module: nn.Module) -> bool:
    names = layer.planes
    return type(module) is nn.Linear and not layer.transposed and not any("." in n or n == "bias" for n in names)


def _operations(conversion: Any) -> Sequence[Any]:
    return getattr(conversion, "operations", ())


def _parameter(model: nn.Module, name: str) -> torch.Tensor:
    module, _, last = name.rpartition(".")
    found: torch.Tensor = getattr(model.get_submodule(module), last)
    return found
