"""A layer's routed experts as one node. `test_nodes` runs its options."""

from __future__ import annotations

import pytest

from planner.graph import Block
from planner.layouts.strategies import OpNode, Option
from tests.planner.layouts.strategies.models import blocks, model
from tests.planner.layouts.strategies.written import nodes_of

MIXTURES = {"qwen": (4, 16), "mixtral": (4, 16), "mla": (8, 16), "hf:mixtral": (4, 48)}
"""Experts and their inner width."""


def experts(name: str, batch: int = 2, seq_len: int = 8) -> tuple[Block, OpNode]:
    found = [
        (block, node)
        for block in model(name).blocks
        for names, nodes in nodes_of(block, batch, seq_len).items()
        for node in nodes
        if "_grouped_mm" in names
    ]
    assert len(found) == 1
    return found[0]


def by_name(block: Block, node: OpNode, option: Option) -> dict[str, str]:
    """Placements of the weights by the last part of their names, of others by their number of dims and kind."""
    weights = {v: fqn.rpartition(".")[2] for fqn, v in block.params}
    return {weights[v]: str(p) for v, p in zip(node.inputs, option.inputs, strict=True) if v in weights}


@pytest.mark.parametrize("name", MIXTURES)
def test_the_node_is_from_the_order_of_visits_to_the_sum_of_results(name: str) -> None:
    block, node = experts(name)
    names = [block.ops[i].name for i in node.ops]
    assert names[-1] == "sum" and "sort" in names
    assert not {"topk", "_softmax", "sigmoid", "mm"} & set(names)  # the router acts on each token by itself
    assert not any("shared" in block.ops[i].fqn for i in node.ops)
    held = {fqn.rpartition(".")[2] for fqn, v in block.params if v in node.inputs}
    assert held in ({"w1", "w2", "w3"}, {"gate_up_proj", "down_proj"})


@pytest.mark.parametrize("name", MIXTURES)
def test_tokens_experts_and_inner_widths(name: str) -> None:
    block, node = experts(name)
    num_experts, inner = MIXTURES[name]
    replicated = [o for o in node.options if o.factor is None]
    dispatch = [o for o in node.options if o.implementation == "dispatch"]
    own = [o for o in node.options if o not in dispatch and str(o.outputs[-1]).startswith("S")]
    (width,) = [o for o in node.options if str(o.outputs[-1]) == "P"]
    assert len(node.options) == len(replicated) + len(dispatch) + len(own) + 1 == 7
    assert [(str(o.outputs[-1]), o.size) for o in own] == [("S(0)", 16), ("S(0/2)", 8)]
    assert {p for o in own for p in by_name(block, node, o).values()} == {"B"}
    assert [(str(o.outputs[-1]), o.size) for o in dispatch] == [("S(0)", num_experts), ("S(0/2)", num_experts)]
    assert {p for o in dispatch for p in by_name(block, node, o).values()} == {"S(0)"}
    weights = by_name(block, node, width)
    if name.startswith("hf:"):
        assert weights == {"gate_up_proj": "S(1/2)", "down_proj": "S(2)"}
    else:
        assert weights == {"w1": "S(1)", "w3": "S(1)", "w2": "S(2)"}
    assert width.size == inner


@pytest.mark.parametrize("name", ["gqa", "resnet"])
def test_blocks_without_experts_have_no_such_node(name: str) -> None:
    for _, block in blocks(name):
        assert not any("_grouped_mm" in names for names in nodes_of(block, 2, 8))
