"""Strategies of one operation over several axes."""

from __future__ import annotations

from itertools import product

import pytest

from planner.graph import Block
from planner.layouts.placements import Placement
from planner.layouts.strategies import OpNode, block_nodes
from planner.solvers.block_layout.strategies import Strategy, strategies
from tests.planner.solvers.block_layout.hand import layout, written


def node(block: Block) -> OpNode:
    return block_nodes(block, [value.shape(1, 1) for value in block.values])[0]


def mm(rows: int, depth: int = 8, columns: int = 8) -> Block:
    return written({"x": (rows, depth), "w": (depth, columns), "y": (rows, columns)}, ["x"], ["w"],
                   [("mm.default", "x", "w", "y")], ["y"])  # fmt: skip


def heads(num_heads: int, head_dim: int) -> Block:
    flat, split = (8, num_heads * head_dim), (8, num_heads, head_dim)
    return written({"x": flat, "y": split}, ["x"], [], [("view.default", "x", split, "y")], ["y"])


def outputs(found: tuple[Strategy, ...]) -> set[tuple[Placement, ...]]:
    return {strategy.outputs[0] for strategy in found}


def test_over_one_axis_strategies_are_the_options_that_its_size_divides() -> None:
    block = mm(8)
    for size in (2, 3, 4, 8):
        found = strategies(block, node(block), (size,))
        assert [s.options for s in found] == [(option,) for option in node(block).options if option.splits(size)]


@pytest.mark.parametrize("sizes", [(2, 2), (2, 4), (4, 2), (2, 2, 2), (3, 2)])
def test_over_several_axes_they_are_all_products(sizes: tuple[int, ...]) -> None:
    """Where every factor is divided by all axes together."""
    block = mm(48, 48, 48)
    found = strategies(block, node(block), sizes)
    assert [s.options for s in found] == list(product(node(block).options, repeat=len(sizes)))
    for strategy in found:
        columns = tuple(option.inputs[0] for option in strategy.options)
        assert strategy.inputs[0] == columns
        assert strategy.outputs[0] == tuple(option.outputs[0] for option in strategy.options)


@pytest.mark.parametrize(("rows", "offered"), [(2, False), (4, True), (6, False), (7, True), (8, True)])
def test_axes_that_divide_one_factor_divide_it_together(rows: int, offered: bool) -> None:
    """Over 2 x 2 devices: 2 rows are not enough, of 6 the last device would have none, 7 are cut as 2, 2, 2, 1."""
    block = mm(rows)
    assert (layout("S(0) S(0)") in outputs(strategies(block, node(block), (2, 2)))) is offered
    assert layout("S(0) S(1)") in outputs(strategies(block, node(block), (2, 2)))


def test_shares_are_the_devices_that_divide_the_work() -> None:
    block = mm(8)
    found = strategies(block, node(block), (2, 4))
    by_inputs = {(" ".join(map(str, s.inputs[0])), " ".join(map(str, s.inputs[1]))): s.shares for s in found}
    expected = {
        ("S(0) B", "B S(1)"): 8,
        ("S(1) S(0)", "S(0) B"): 8,
        ("S(0) R", "B R"): 2,
        ("R B", "R S(1)"): 4,
        ("R R", "R R"): 1,
    }
    assert {inputs: by_inputs[inputs] for inputs in expected} == expected


@pytest.mark.parametrize(("sizes", "offered"), [
    ((2,), ["S(1)"]),  # of 4 heads 2
    ((3,), ["S(1/4)"]),  # of each head 2 elements
    ((2, 2), ["S(1) S(1)"]),
    ((2, 3), ["S(1) S(1/4)"]),
    ((3, 2), ["S(1/4) S(1)"]),
    ((2, 2, 2), ["S(1) S(1) S(1/4)", "S(1) S(1/4) S(1)", "S(1/4) S(1) S(1)"]),  # two axes for the heads, one inside
])  # fmt: skip
def test_the_inside_of_a_head_is_sharded_where_an_axis_cannot_divide_the_heads(
    sizes: tuple[int, ...], offered: list[str]
) -> None:
    block = heads(4, 6)
    found = {s.inputs[0] for s in strategies(block, node(block), sizes) if all(p.dim == 1 for p in s.inputs[0])}
    assert found == {layout(text) for text in offered}


def test_an_axis_of_one_device_shards_nothing() -> None:
    block = mm(8)
    [found] = strategies(block, node(block), (1,))
    assert {placement.kind for placements in (*found.inputs, *found.outputs) for placement in placements} == {"R"}
