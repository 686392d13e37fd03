"""What a checkpoint format offers: decoding and encoding of layers, and finding them in a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subbyte.arrays import Array
from subbyte.codec import Encoded
from subbyte.errors import ArgumentError, FormatError, UnsupportedError
from subbyte.forms import Form
from subbyte.io.safetensors import SafetensorsFile
from subbyte.planes import Plane


@dataclass(frozen=True, slots=True)
class Layer:
    """A quantized weight of a checkpoint.

    Attributes:
        name: name of the dense weight (``model.layers.0.mlp.down_proj.weight``).
        shape: its dense shape.
        planes: tensor of the checkpoint by plane.
        params: the format's parameters for this layer.
        transposed: the dense weight has its last two axes exchanged against what `Format.read` gives (experts of
            gpt-oss).
        format: id of its format, where that is not the checkpoint's.
    """

    name: str
    shape: tuple[int, ...]
    planes: Mapping[str, str]
    params: Mapping[str, Any]
    transposed: bool = False
    format: str | None = None

    @property
    def own_shape(self) -> tuple[int, ...]:
        """The shape of what `Format.read` gives."""
        return (*self.shape[:-2], self.shape[-1], self.shape[-2]) if self.transposed else self.shape


@dataclass(slots=True)
class Folder:
    """A checkpoint that a format looks for its layers in.

    Attributes:
        source: the tensors; `SafetensorsFile.array` reads small ones.
        config: config.json.
        settings: the quantization settings, from config.json or the format's side file.
        side_file: a JSON file beside the weights by its name; None where there is none.
        notes: what is stale or odd but harmless, for the user; formats append.
    """

    source: SafetensorsFile
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    side_file: Callable[[str], Any]
    notes: list[str] = field(default_factory=list)

    def modules(
        self, required: Iterable[str], optional: Iterable[str] = (), marker: str | None = None
    ) -> dict[str, dict[str, str]]:
        """Tensors by module and plane: those that are called ``<module>.<plane>``.

        A module counts when it has all of the ``required`` planes.

        Raises:
            FormatError: a module has the ``marker``, a plane that no dense module has, but not all of ``required``.
        """
        wanted = tuple(required)
        every = (*wanted, *optional)
        found: dict[str, dict[str, str]] = {}
        for name in self.source:
            for plane in every:
                if name.endswith(f".{plane}"):
                    found.setdefault(name[: -len(plane) - 1], {})[plane] = name
        for planes in found.values() if marker is not None else ():
            missing = next((plane for plane in wanted if plane not in planes), None)
            if marker in planes and missing is not None:
                module = planes[marker][: -len(marker) - 1]
                raise FormatError(
                    f"tensor '{module}.{missing}', which belongs to it, is missing", tensor=planes[marker]
                )
        return {module: planes for module, planes in found.items() if all(plane in planes for plane in wanted)}

    def note_exceptions(self, layers: Sequence[Layer], key: str = "modules_to_not_convert") -> None:
        """Notes the modules or weights that the setting lists although they are among the quantized ``layers``.

        Raises:
            FormatError: the setting is no list of names.
        """
        for name in setting_names(self.settings, key):
            of_name = next((layer for layer in layers if name and f".{name}." in f".{layer.name}."), None)
            if of_name is not None:
                self.notes.append(f"'{name}' is listed as not converted, but {of_name.name} is quantized")


class Format(ABC):
    """A checkpoint format.

    Attributes:
        id: the format id.
    """

    id: str

    def decode(self, planes: Mapping[str, Any], *, params: Mapping[str, Any], dtype: Any) -> Array:
        """The dense weight of one layer, see `subbyte.decode`."""
        return self.read(planes, params).decode(dtype)

    def encode(self, array: Any, *, params: Mapping[str, Any], importance: Any) -> Encoded:
        """The planes of one layer, see `subbyte.encode`."""
        raise UnsupportedError(f"format '{self.id}' cannot encode floats yet")

    def separable(self, params: Mapping[str, Any], shape: Sequence[int]) -> int:
        """Rows that a range of rows has to be a multiple of, to be encoded to the same codes alone; 0 for all rows.

        A step of 32 keeps the rows of a range in whole words, bytes and tiles of every layout.

        Args:
            params: the format's parameters.
            shape: of the weight.
        """
        return 0

    def shares_maximum(self, params: Mapping[str, Any], shape: Sequence[int]) -> bool:
        """Whether `separable` holds once encoders know the largest magnitude of the weight (`largest_magnitude`)."""
        return False

    @abstractmethod
    def read(self, planes: Mapping[str, Any], params: Mapping[str, Any]) -> Form:
        """The layer as a canonical form.

        Raises:
            ArgumentError: a plane is missing.
            FormatError: planes and parameters do not fit together.
            UnsupportedError: a variant that cannot be read.
        """

    def write(self, form: Form, params: Mapping[str, Any]) -> dict[str, Plane]:
        """A form's codes and parameters as planes, nothing rounded.

        Raises:
            UnsupportedError: the format cannot hold the form exactly; the message says why.
        """
        raise UnsupportedError(f"format '{self.id}' cannot hold a {type(form).__name__.lower()} form")

    def layers(self, folder: Folder) -> Sequence[Layer]:
        """The quantized weights of a checkpoint in this format.

        Nothing but headers and small tensors is read.

        Raises:
            FormatError: tensors and settings contradict each other; the message names both.
        """
        raise UnsupportedError(f"format '{self.id}' has no checkpoints of its own")


def largest_magnitude(values: NDArray[np.float32], params: Mapping[str, Any]) -> np.float32:
    """The largest magnitude of a weight: of these values, or where they are a range of its rows the parameter
    ``maximum``.
    """
    known = params.get("maximum")
    return np.float32(np.abs(values).max(initial=0) if known is None else known)


def settings(params: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The quantization settings among a layer's parameters: the first of ``keys`` that is there.

    Raises:
        FormatError: it is no JSON object.
        ArgumentError: there is none.
    """
    for key in keys or ("quantization_config",):
        if key in params:
            found = params[key]
            if not isinstance(found, Mapping):
                raise FormatError(f"{key} is {found!r:.60}: expected a JSON object")
            return found
    raise ArgumentError(f"params lacks '{keys[0] if keys else 'quantization_config'}', the settings of the format")


def optional_settings(params: Mapping[str, Any], key: str = "quantization_config") -> Mapping[str, Any]:
    """Like `settings`, but empty where there are none."""
    return settings(params, key) if key in params else {}


def setting_int(values: Mapping[str, Any], key: str, default: int | None = None, allowed: Iterable[int] = ()) -> int:
    """An integer setting.

    Raises:
        FormatError: it is missing without a default, is no integer, or none of the allowed ones.
    """
    found = values.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int):
        raise FormatError(f"setting '{key}' is {found!r:.60}: expected an integer")
    choice = tuple(allowed)
    if choice and found not in choice:
        raise FormatError(f"setting '{key}' is {found}: expected one of {', '.join(map(str, choice))}")
    return found


def setting_group_size(
    values: Mapping[str, Any], columns: int, groups: int | None = None, key: str = "group_size"
) -> int:
    """Columns of a group, at most all of them: a setting that is -1 for one group of all columns.

    Args:
        values: the settings.
        columns: columns of the weight.
        groups: the groups that there are, if known; without the setting, the columns are divided among them.
        key: name of the setting.

    Raises:
        FormatError: the setting is no size, or does not give these groups.
    """
    if key not in values and groups:
        return -(-columns // groups)
    found = setting_int(values, key)
    if found < 1 and found != -1:
        raise FormatError(f"setting '{key}' is {found}: expected a number of columns, or -1 for all")
    size = max(columns, 1) if found == -1 else min(found, max(columns, 1))
    if groups is not None and groups != -(-columns // size):
        raise FormatError(
            f"setting '{key}' is {found}, which makes {-(-columns // size)} groups of {columns} columns; the scales "
            f"have {groups}"
        )
    return size


def setting_bool(values: Mapping[str, Any], key: str, default: bool) -> bool:
    """A true-or-false setting.

    Raises:
        FormatError: it is neither.
    """
    found = values.get(key, default)
    if not isinstance(found, bool):
        raise FormatError(f"setting '{key}' is {found!r:.60}: expected true or false")
    return found


def setting_text(values: Mapping[str, Any], key: str, default: str | None = None, allowed: Iterable[str] = ()) -> str:
    """A string setting.

    Raises:
        FormatError: it is missing without a default, is no string, or none of the allowed ones.
    """
    found = values.get(key, default)
    if not isinstance(found, str):
        raise FormatError(f"setting '{key}' is {found!r:.60}: expected a string")
    choice = tuple(allowed)
    if choice and found not in choice:
        raise FormatError(f"setting '{key}' is '{found}': expected one of {', '.join(choice)}")
    return found


def setting_shape(values: Mapping[str, Any], default: tuple[int, int] | None = None) -> tuple[int, int]:
    """The setting ``shape``: rows and columns of the dense weight.

    Raises:
        FormatError: it is no pair of positive integers.
        ArgumentError: it is missing without a default.
    """
    found = values.get("shape", default)
    if found is None:
        raise ArgumentError("params lacks 'shape', the rows and columns of the weight")
    if (
        not isinstance(found, Sequence)
        or len(found) != 2
        or any(isinstance(size, bool) or not isinstance(size, int) or not 0 < size < 1 << 48 for size in found)
    ):
        raise FormatError(f"setting 'shape' is {found!r:.60}: expected two positive integers")
    return found[0], found[1]


def setting_names(values: Mapping[str, Any], *keys: str) -> list[str]:
    """The strings in the lists of these settings, which may be missing.

    Raises:
        FormatError: one is no list of strings.
    """
    found: list[str] = []
    for key in keys:
        names = values.get(key)
        if names is None:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FormatError(f"setting '{key}' is {names!r:.60}: expected a list of strings")
        found.extend(names)
    return found


def encoded(id: str, planes: Mapping[str, Plane], shape: Sequence[int], params: Mapping[str, Any]) -> Encoded:
    """Planes as what `subbyte.encode` returns."""
    arrays = {name: plane.array() for name, plane in planes.items()}
    return Encoded(arrays, config={"id": id, **params}, shape=shape)
