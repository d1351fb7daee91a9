from __future__ import annotations

import re

import pytest

from planner.errors import UsageError
from planner.job import Pin
from planner.layouts.model import ModelLayouts, analyse_model
from planner.layouts.pins import block_pins, matches, placement
from planner.layouts.placements import REPLICATE, shard
from planner.layouts.tensor_parallel import ParamShard
from tests.planner.layouts.small import graph


def pin(fqn: str, layout: str) -> Pin:
    return Pin(fqn=fqn, layout=layout)


def pinned(family: str, *pins: tuple[str, str]) -> ModelLayouts:
    return analyse_model(graph(family), [pin(*p) for p in pins])


def refused(text: str, family: str, *pins: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        pinned(family, *pins)


def test_a_pattern_matches_component_by_component() -> None:
    assert matches("layers.*.wq.weight", "layers.10.wq.weight")
    assert not matches("layers.*.weight", "layers.0.wq.weight")
    assert not matches("layers.1.weight", "layers.10.weight")


def test_a_module_stands_for_its_weight() -> None:
    found = block_pins(graph("gqa"), [pin("layers.*.attention.wo", "tp:S(1)"), pin("layers.*.ffn_norm.weight", "tp:R")])
    assert found[1] == {"attention.wo.weight": {"tp": shard(1)}, "ffn_norm.weight": {"tp": REPLICATE}}
    assert not found[0] and not found[2]


def test_what_is_chosen_anyway_may_be_pinned() -> None:
    free = pinned("gqa")
    assert pinned("gqa", ("layers.*.attention.wo", "tp:S(1)")).blocks == free.blocks


def test_a_weight_pinned_whole_keeps_all_whole_that_would_be_cut_with_it() -> None:
    layout = pinned("gqa", ("layers.*.feed_forward.w1", "tp:R")).blocks[1]
    assert {fqn for fqn in layout.params if "feed_forward" in fqn} == set()
    assert layout.params["attention.wo.weight"] == ParamShard(dim=1, num_chunks=1)


def test_a_tied_table_can_be_pinned_by_its_rows() -> None:
    """Tokens do not dominate the small table of positions beside them, so that without a pin they stay whole, and with
    them the head that shares them."""
    free, rows = pinned("bert"), pinned("bert", ("tok_embeddings", "tp:S(0)"))
    assert all("tok_embeddings.weight" not in block.params for block in free.blocks)
    for block in (rows.blocks[0], rows.blocks[-1]):
        assert block.params["tok_embeddings.weight"] == ParamShard(dim=0, num_chunks=1)


def test_a_part_of_a_fused_projection_can_be_pinned() -> None:
    layout = pinned("thirds", ("layers.*.qkv", "tp:S(0/3)")).blocks[1]
    assert layout.params["qkv.weight"] == ParamShard(dim=0, num_chunks=3)


@pytest.mark.parametrize(
    ("text", "pins"),
    [
        ("attention.wo.weight tp:S(1) and attention.wq.weight tp:R (both hold the same 4)",
         [("layers.*.attention.wo", "tp:S(1)"), ("layers.*.attention.wq", "tp:R")]),
        ("rms_norm needs that dim whole. Parameters can be sharded over tp along: attention.wq.weight tp:S(0)",
         [("layers.*.attention.wo", "tp:S(0)")]),
        ("it has 2 dims", [("layers.*.attention.wo", "tp:S(2)")]),
        ("nothing begins at part 5 of dim 0", [("layers.*.attention.wq", "tp:S(0/5)")]),
        ("fits no parameter of llama3-8b. Near: layers.*.attention.wo.weight", [("layers.*.atention.wo", "tp:R")]),
        ("layers.0.attention.wo.weight is to lie as tp:R (layers.*.attention.wo) and as tp:S(1) (layers.0.attention.wo",
         [("layers.*.attention.wo", "tp:R"), ("layers.0.attention.wo", "tp:S(1)")]),
        ("blocks that are equal are laid out alike", [("layers.2.attention.wo", "tp:R")]),
    ],
)  # fmt: skip
def test_pins_that_cannot_be_obeyed_are_refused_with_what_collides(text: str, pins: list[tuple[str, str]]) -> None:
    refused(text, "gqa", *pins)


@pytest.mark.parametrize(
    ("layout", "text"),
    [("dp_shard:S(0)", "names no axis that layouts are pinned over here; write tp:S(1)"), ("S(0)", "names no axis"),
     ("tp:S(x)", "'S(x)' is no placement"), ("tp:P", "lies whole (tp:R) or sharded (tp:S(dim)), not as P")],
)  # fmt: skip
def test_a_layout_that_no_parameter_can_have_is_refused(layout: str, text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        placement(pin("layers.*.wq", layout), ("tp",))


def test_a_degree_that_cannot_obey_a_pin_is_illegal() -> None:
    """41 tokens: no degree divides them, so the head stays whole unless it is pinned."""
    model = graph("gqa", vocab_size=41)
    assert analyse_model(model).obstacle(2) is None
    obstacle = analyse_model(model, [pin("output", "tp:S(0)")]).obstacle(2)
    assert obstacle == "tp 2 cannot shard output.weight as it is pinned, tp:S(0)"
