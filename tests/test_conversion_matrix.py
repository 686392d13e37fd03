"""The classes between families of formats are those of the specification's table of conversions."""

from __future__ import annotations

import pytest

from subbyte.routes import matrix

#: By source: what GPTQ, AWQ, compressed-tensors, MLX and GGUF can do at best. L: codes and parameters stay; P: a
#: parameter rounds; R: quantized again; "-": the same format, or no such layer.
TABLE = {
    "gptq, 2 bits": "L - L L L",
    "gptq, 3 bits": "L - L L L",
    "gptq, 4 bits": "L L L L L",
    "gptq, 8 bits": "L - L L L",
    "gptq, 2 bits, asymmetric": "L - L L L",
    "gptq, 3 bits, asymmetric": "L - L L L",
    "gptq, 4 bits, asymmetric": "L L L L L",
    "gptq, 8 bits, asymmetric": "L - L L R",
    "gptq, act-order": "L R R R R",
    "awq": "L - L L L",
    "compressed-tensors, pack-quantized": "L L - L L",
    "mlx, affine": "R R R - P",
    "quanto, int4": "R R R L P",
    "hqq": "R R R P P",
    "bitsandbytes, int8": "P - P P P",
    "bitsandbytes, nf4": "R R R R R",
    "torchao, int4": "L L L L L",
    "mxfp4": "- - L L L",
    "modelopt, nvfp4": "- - P P L",
    "fp8, blocks": "- - L R R",
    "fp8, powers of two": "- - L L R",
    "bitnet": "L L L L L",
    "bitnet, reciprocal": "P P P P P",
}
_TARGETS = ("gptq", "awq", "compressed-tensors", "mlx", "gguf")
_LETTERS = {"exact": "L", "exact-value": "L", "rounded": "P"}


@pytest.mark.parametrize("source", TABLE)
def test_classes_of_the_specification(source: str) -> None:
    for target, letter in zip(_TARGETS, TABLE[source].split(), strict=True):
        if letter != "-":
            found = matrix.fit(source, target)
            assert "LPR".index("R" if found is None else _LETTERS[found.kind]) <= "LPR".index(letter), target
            assert (found is None) == (letter == "R"), target


def test_every_source_is_in_the_table() -> None:
    assert list(matrix.SOURCES) == list(TABLE)
    assert set(_TARGETS) <= set(matrix.targets())


@pytest.mark.parametrize(
    ("source", "type"),
    [("gptq, 4 bits", "Q4_0"), ("gptq, 4 bits, asymmetric", "Q5_0"), ("gptq, 3 bits, asymmetric", "Q4_0"),
     ("gptq, 8 bits", "Q8_0"), ("mlx, affine", "Q4_1"), ("bitsandbytes, int8", "Q8_0"), ("mxfp4", "MXFP4"),
     ("modelopt, nvfp4", "NVFP4"), ("bitnet", "TQ2_0")],
)  # fmt: skip
def test_types_of_gguf(source: str, type: str) -> None:
    found = matrix.fit(source, "gguf")
    assert found is not None
    assert found.params["type"] == type
