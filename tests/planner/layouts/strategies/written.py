"""Options as text, for tests that say what they expect."""

from __future__ import annotations

from collections.abc import Sequence

from planner.graph import Block
from planner.layouts.strategies import OpNode, Option, block_nodes, differentiable
from planner.layouts.strategies.factors import OpFactors
from planner.layouts.strategies.nodes import node_of
from tests.planner.layouts.strategies.calls import Call, block_of


def text(option: Option) -> str:
    """``S(0) B -> S(0)``, with the name of an implementation that communicates behind."""
    placements = f"{' '.join(map(str, option.inputs))} -> {' '.join(map(str, option.outputs))}".strip()
    return placements if option.implementation == "local" else f"{placements} by {option.implementation}"


def texts(options: Sequence[Option]) -> set[str]:
    return {text(option) for option in options}


def options_of(call: Call) -> dict[str, Option]:
    """Options of one call by itself, by text."""
    block, _ = block_of(call)
    shapes = [value.shape(1, 1) for value in block.values]
    factors = OpFactors(block, shapes, lambda v: [[size] for size in shapes[v]])
    return {text(option): option for option in node_of(factors, (0,), differentiable(block)).options}


def nodes_of(block: Block, batch: int, seq_len: int) -> dict[str, list[OpNode]]:
    """Nodes by the names of their operations, at some sizes."""
    found: dict[str, list[OpNode]] = {}
    for node in block_nodes(block, [value.shape(batch, seq_len) for value in block.values]):
        found.setdefault(" ".join(block.ops[i].name for i in node.ops), []).append(node)
    return found
