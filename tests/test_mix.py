"""The mixes against the choices of llama.cpp's quantizer, for seven model shapes and 35 file types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from subbyte.convert.types import parse_type
from subbyte.errors import ArgumentError
from subbyte.ggml import TYPES
from subbyte.planning.mix import FILE_TYPES, MixOptions, Model, choose_types, file_type, lacking_importance, visit_order

MIXES = sorted((Path(__file__).parent / "golden" / "gguf" / "mix").glob("*.json"))
F16 = 1


def load(path: Path) -> tuple[dict, dict[str, tuple[int, ...]], Model]:
    data = json.loads(path.read_text())
    tensors = {name: tuple(reversed(ne)) for name, ne in data["tensors"]}
    model = Model(data["arch"], data["n_layer"], data["n_head"], data["n_head_kv"], data["n_expert"])
    return data, tensors, model


@pytest.mark.parametrize("path", MIXES, ids=lambda path: path.stem)
def test_every_file_type_gives_the_types_of_the_original(path: Path) -> None:
    data, tensors, model = load(path)
    names = {info.number: info.name for info in TYPES.values()}
    numbers = {kind.number: kind for kind in FILE_TYPES.values()}
    assert len(data["types_by_ftype"]) == 35
    for number, want in data["types_by_ftype"].items():
        target = numbers[int(number)]
        if isinstance(want, str):
            with pytest.raises(ArgumentError):
                choose_types(tensors, target, model)
            continue
        got = choose_types(tensors, target, model, MixOptions(importance=data["has_imatrix"]))
        assert [name for name, _ in data["tensors"]] == list(got)
        kept_as_f16 = [chosen or "F16" for chosen in got.values()]
        wrong = [row for row in zip(got, kept_as_f16, (names[i] for i in want), strict=True) if row[1] != row[2]]
        assert not wrong, (target.name, wrong[:5])


def test_there_are_goldens() -> None:
    assert len(MIXES) == 7


def test_visit_order_is_by_layer_then_bytes() -> None:
    names = ["blk.10.a", "blk.2.b", "token_embd.weight", "blk.2.a", "output.weight"]
    assert visit_order(names) == ["output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a"]


SMALL = {
    "token_embd.weight": (300, 512), "output.weight": (300, 512), "output_norm.weight": (512,),
    "blk.0.attn_v.weight": (64, 512), "blk.0.ffn_down.weight": (512, 96), "blk.0.ffn_gate_inp.weight": (8, 512),
}  # fmt: skip


def chosen(target: str, **options: object) -> dict[str, str | None]:
    return choose_types(SMALL, file_type(target), Model("llama", 8, 8, 8), MixOptions(**options))  # type: ignore[arg-type]


def test_pure_gives_one_type_wherever_it_fits() -> None:
    got = chosen("q4_k_s", pure=True)
    assert got == {
        "output.weight": "Q4_K", "output_norm.weight": None, "token_embd.weight": "Q4_K", "blk.0.attn_v.weight": "Q4_K",
        "blk.0.ffn_down.weight": "Q5_0", "blk.0.ffn_gate_inp.weight": None,
    }  # fmt: skip


def test_rules_of_the_user_come_first() -> None:
    rules = (("attn_v", "Q8_0"), (r"blk\.0", "Q6_K"))
    got = chosen("q4_k_m", tensor_type=rules, output_tensor_type="F16", token_embedding_type="Q2_K")
    assert got["blk.0.attn_v.weight"] == "Q8_0"
    assert got["blk.0.ffn_down.weight"] == "Q8_0"  # Q6_K does not divide 96
    assert (got["output.weight"], got["token_embd.weight"]) == ("F16", "Q2_K")


def test_a_row_that_no_block_divides_becomes_f16() -> None:
    got = choose_types({"blk.0.ffn_up.weight": (4, 40)}, file_type("q6_k"), Model("llama", 1))
    assert got == {"blk.0.ffn_up.weight": "F16"}


def test_a_type_without_fallback_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"blk\.0\.ffn_up\.weight.*Q1_0"):
        choose_types({"blk.0.ffn_up.weight": (4, 96)}, file_type("q1_0"), Model("llama", 1))


def test_types_that_need_importance_are_listed() -> None:
    target = file_type("iq2_xs")
    got = choose_types(SMALL, target, Model("llama", 8, 8, 8))
    assert lacking_importance(target, got) == []  # one layer only: Q2_K, Q5_K and a fallback
    more = SMALL | {"blk.0.attn_q.weight": (64, 512)}
    got = choose_types(more, target, Model("llama", 8, 8, 8))
    assert lacking_importance(target, got) == ["blk.0.attn_q.weight"]


@pytest.mark.parametrize(("name", "number"), [("q4_k", 15), ("Q4_K_M", 15), ("q3_k", 12), ("iq2_s", 28), ("tq1_0", 36)])
def test_names_of_file_types(name: str, number: int) -> None:
    assert file_type(name).number == number


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ArgumentError, match="q9_k"):
        file_type("q9_k")
    with pytest.raises(ArgumentError, match="q8_1"):
        parse_type("q8_1")
