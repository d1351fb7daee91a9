from __future__ import annotations

from math import prod

import networkx as nx
import pytest

from costmodels.compute import DTYPE_BYTES
from planner import ops
from planner.graph import Block, Phase
from planner.solvers.fusion import fused_kernels, is_heavy
from tests.planner.layouts.small import graph

FAMILIES = ["gqa", "gpt", "bert", "mixtral", "thirds"]
PHASES: list[Phase] = ["forward", "backward"]


def layer(family: str) -> Block:
    return graph(family).blocks[1]


def num_bytes(block: Block, values: tuple[int, ...]) -> int:
    return sum(prod(block.values[v].shape(2, 64)) * DTYPE_BYTES[block.values[v].dtype] for v in values)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("phase", PHASES)
def test_every_memory_bound_operation_is_in_one_kernel_and_no_product_is(family: str, phase: Phase) -> None:
    block = layer(family)
    fused = [i for kernel in fused_kernels(block, phase) for i in kernel.ops]
    launched = {i for i, op in enumerate(block.ops) if op.phase == phase and not ops.is_free(op, block)}
    expected = {i for i in launched if not is_heavy(block.ops[i])}
    assert len(fused) == len(set(fused))
    # All that may be missing are copies of expanded heads.
    assert set(fused) <= expected
    assert {block.ops[i].name for i in expected - set(fused)} <= {"clone"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("phase", PHASES)
def test_kernels_and_products_can_run_in_some_order(family: str, phase: Phase) -> None:
    """Fusing must not make a kernel wait for itself by way of a product."""
    block = layer(family)
    kernel_of = {i: ("kernel", k) for k, kernel in enumerate(fused_kernels(block, phase)) for i in kernel.ops}
    runs = nx.DiGraph()
    maker: dict[int, object] = {}
    for i, op in enumerate(block.ops):
        if op.phase != phase:
            continue
        made = {maker[v] for v in op.inputs if v in maker}
        if i in kernel_of or is_heavy(op):
            node = kernel_of.get(i, ("op", i))
            runs.add_edges_from((other, node) for other in made if other != node)
            maker.update(dict.fromkeys(op.outputs, node))
        elif made:  # a view is there when its base is
            maker.update(dict.fromkeys(op.outputs, made.pop()))
    assert nx.is_directed_acyclic_graph(runs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("phase", PHASES)
def test_fused_kernels_move_no_more_than_single_ones(family: str, phase: Phase) -> None:
    block = layer(family)
    shapes = [value.shape(2, 64) for value in block.values]
    single = sum(
        ops.moved_bytes(op, block, shapes)
        for op in block.ops
        if op.phase == phase and not is_heavy(op) and not ops.is_free(op, block)
    )
    fused = sum(num_bytes(block, (*kernel.reads, *kernel.writes)) for kernel in fused_kernels(block, phase))
    assert 0 < fused <= single


def test_a_gated_activation_is_one_kernel_of_two_reads_and_what_is_needed_again() -> None:
    """``silu(w1 x) * w3 x``: reads both products' results, writes silu (which backward reads) and the product."""
    block = layer("gqa")
    kernel = next(k for k in fused_kernels(block, "forward") if "silu" in {block.ops[i].name for i in k.ops})
    assert [block.ops[i].name for i in kernel.ops] == ["silu", "mul"]
    wide = num_bytes(block, block.ops[kernel.ops[0]].outputs)
    assert num_bytes(block, kernel.reads) == num_bytes(block, kernel.writes) == 2 * wide


def test_residual_additions_on_both_sides_of_the_network_stay_apart() -> None:
    """The first feeds the norm before the network, the second adds what the network yields: products lie between."""
    block = layer("gqa")
    adds = [i for i, op in enumerate(block.ops) if op.phase == "forward" and op.name == "add" and op.fqn == ""]
    kernels = [k for k in fused_kernels(block, "forward") if set(adds) & set(k.ops)]
    assert len(adds) == 2
    assert len(kernels) == 2
