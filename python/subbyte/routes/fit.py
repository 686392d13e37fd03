"""How well a target holds a weight, and what targets promise.

Classes, best first: ``exact``: the same codes, perhaps in another order or with their offset elsewhere;
``exact-value``: other codes with equal values; ``rounded``: codes stay, a parameter rounds within a stated bound;
``requantized``: the values are quantized again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from subbyte.errors import UnsupportedError
from subbyte.forms import Form
from subbyte.planes import Plane
from subbyte.quantize import METHODS

KINDS = ("exact", "exact-value", "rounded", "requantized")


class MisfitError(UnsupportedError):
    """A target cannot hold a weight without quantizing it again; the message says why."""


@dataclass(frozen=True, slots=True)
class Grade:
    """How well a target holds a weight.

    Attributes:
        kind: ``exact``, ``exact-value`` or ``rounded``.
        bound: for ``rounded``: the largest relative change of a parameter.
        why: for ``rounded``: what rounds.
    """

    kind: str
    bound: float = 0.0
    why: str = ""

    @property
    def reason(self) -> str:
        """What rounds, and by how much at most; empty where nothing does."""
        return f"{self.why}, by {self.bound:.2g} of their values at most" if self.why else ""


@dataclass(frozen=True, slots=True)
class Fit:
    """A weight in the terms of a target.

    Attributes:
        form: what the target's format writes.
        kind: ``exact``, ``exact-value`` or ``rounded``.
        params: the format's parameters for this layer.
        bound: for ``rounded``: the largest relative change of a parameter.
        why: for ``rounded``: what rounds.
    """

    form: Form
    kind: str = "exact"
    params: Mapping[str, Any] = field(default_factory=dict)
    bound: float = 0.0
    why: str = ""

    @property
    def grade(self) -> Grade:
        """The same without the weight, which may be large."""
        return Grade(self.kind, self.bound, self.why)

    def then(self, form: Form, kind: str = "exact", bound: float = 0.0, why: str = "") -> Fit:
        """After another step: the worse kind, the sum of the bounds."""
        worse = max(self.kind, kind, key=KINDS.index)
        return Fit(form, worse, self.params, self.bound + bound, "; ".join(filter(None, (self.why, why))))

    def with_params(self, **params: Any) -> Fit:
        """The same with parameters."""
        return Fit(self.form, self.kind, params, self.bound, self.why)


@dataclass(frozen=True, slots=True)
class Option:
    """A setting of a target.

    Attributes:
        default: its value when it is not given; None for what the codes of the source have.
        about: one line for people.
        choices: what it may be; anything of the default's type if empty.
        floats: the default for floats that are quantized, where ``default`` is None.
    """

    default: Any
    about: str
    choices: tuple[Any, ...] = ()
    floats: Any = None


METHOD = Option(
    "writer",
    "how floats are quantized: writer, as the format's own library does, or a search; blocks of small floats have mse",
    ("writer", *METHODS),
)
"""The setting ``method`` of targets whose encoders take it (`subbyte.quantize`)."""


class Target(ABC):
    """A checkpoint format as a target of conversions.

    Attributes:
        id: its format id.
        options: what can be set with ``--set``.
        whole: the sizes of planes do not grow by steps with the rows of the weight.
        keeps: layers stay in the format that the source has them in.
    """

    id: ClassVar[str]
    options: ClassVar[Mapping[str, Option]]
    whole: ClassVar[bool] = False
    keeps: ClassVar[bool] = False

    @abstractmethod
    def fit(self, form: Form, options: Mapping[str, Any]) -> Fit:
        """The weight as the target holds it, without quantizing it again.

        Raises:
            MisfitError: it cannot.
        """

    @abstractmethod
    def params(self, options: Mapping[str, Any], shape: Sequence[int]) -> Mapping[str, Any]:
        """Parameters of the format's encoder for a weight of floats (the defaults are in ``options``).

        Raises:
            MisfitError: the format has no place for a weight of this shape.
        """

    def tensor(self, weight: str, plane: str) -> str:
        """Name of the tensor of a plane of the weight called ``weight``."""
        return f"{weight.removesuffix('.weight')}.{plane}"

    def companion(self, name: str, value: Plane, params: Mapping[str, Any] | None) -> Companion | None:
        """A tensor that stands beside a quantized layer (`COMPANIONS`) as the target stores it.

        Args:
            name: of the tensor in the source.
            value: its elements.
            params: parameters of the layer of the same module; None where there is none.

        Returns:
            None where the target has no place for it.
        """
        return None

    @abstractmethod
    def config(self, layers: Mapping[str, Stored], dense: Sequence[str], beside: Sequence[str]) -> Settings:
        """What describes the checkpoint.

        Args:
            layers: every quantized layer by the name of its weight.
            dense: names of weights with two or more dimensions that are not quantized.
            beside: names of the `Companion` tensors.

        Raises:
            MisfitError: layers differ where the format has one setting for all.
        """


#: Last parts of the names of tensors that belong to activations or to the cache, and not to a weight.
COMPANIONS = frozenset({
    "input_scale", "input_global_scale", "input_zero_point", "output_scale", "k_scale", "v_scale", "q_scale",
    "prob_output_scale", "input_activation_scale", "output_activation_scale",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Companion:
    """A tensor beside a layer as a target stores it.

    Attributes:
        name: its full name.
        plane: its elements.
        kind: ``exact`` or ``rounded``.
    """

    name: str
    plane: Plane
    kind: str = "exact"


@dataclass(frozen=True, slots=True)
class Stored:
    """A quantized layer as a target stores it.

    Attributes:
        params: the format's parameters.
        shape: of the weight, as its format has it.
        planes: names of its planes.
        transposed: the dense weight has its last two axes exchanged.
        beside: last parts of the names of the `Companion` tensors of its module, as they are stored.
    """

    params: Mapping[str, Any]
    shape: tuple[int, ...]
    planes: tuple[str, ...] = ()
    transposed: bool = False
    beside: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Settings:
    """Where a checkpoint says how it is quantized.

    Attributes:
        config: keys of config.json.
        files: JSON files beside the weights by name.
        metadata: strings in the header of each safetensors file.
    """

    config: Mapping[str, Any]
    files: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def value(options: Mapping[str, Any], target: Target, key: str, source: Any = None) -> Any:
    """An option: as given, else as the source has it, else the default."""
    given = options.get(key)
    if given is not None:
        return given
    return source if source is not None else target.options[key].default


def for_floats(options: Mapping[str, Any], target: Target, key: str) -> Any:
    """An option for floats that are quantized: as given, else the default."""
    given = options.get(key)
    if given is not None:
        return given
    option = target.options[key]
    return option.floats if option.default is None else option.default


def modules(weights: Sequence[str]) -> list[str]:
    """The modules of weights, without embeddings."""
    return [name.removesuffix(".weight") for name in weights if "embed" not in name.removesuffix(".weight")]
