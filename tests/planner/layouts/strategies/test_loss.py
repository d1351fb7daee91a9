"""A cross-entropy as one node."""

from __future__ import annotations

import pytest
import torch

from planner.graph import Block
from planner.layouts.strategies import differentiable
from planner.layouts.strategies.factors import OpFactors
from planner.layouts.strategies.loss import loss_ops
from planner.layouts.strategies.nodes import node_of
from tests.planner.layouts.small import graph
from tests.planner.layouts.strategies.harness import check, run_whole
from tests.planner.layouts.strategies.models import NAMES, blocks
from tests.planner.layouts.strategies.running import Node
from tests.planner.layouts.strategies.written import nodes_of, text

IGNORED = -100


@pytest.mark.parametrize("name", [name for name in NAMES if name != "thirds"])
def test_every_models_loss_is_one_node(name: str) -> None:
    found = [[block.ops[i].name for i in run] for _, block in blocks(name) for run in loss_ops(block)]
    assert found == [["_log_softmax", "nll_loss_forward"]]


def test_classes_by_reductions_and_rows_as_partial_sums() -> None:
    (node,) = nodes_of(graph("gqa").blocks[2], 2, 8)["_log_softmax nll_loss_forward"]
    assert [text(option) for option in node.options] == [
        "R R -> R R R",
        "B R -> B B R",
        "S(0) S(0) -> S(0) P P by mean_count",
        "S(0/2) S(0/2) -> S(0/2) P P by mean_count",
        "S(1) R -> S(1) R R by loss_parallel",
    ]


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("rows", [12, 7])
def test_rows_that_are_ignored_do_not_count(rows: int, num_ranks: int) -> None:
    """However they are spread over the ranks."""
    random = torch.Generator().manual_seed(rows)
    node = _node(rows, graph("gqa").blocks[2])
    logits, labels = node.node.inputs
    targets = torch.randint(40, (rows,), generator=random)
    targets[: rows // 2] = IGNORED
    whole = run_whole(node, {logits: torch.randn(rows, 40, generator=random).double(), labels: targets}, random)
    checked = 0
    for option in node.node.options:
        if option.splits(num_ranks):
            check(node, option, num_ranks, whole, random)
            checked += 1
    assert checked >= 3


def _node(rows: int, block: Block) -> Node:
    (run,) = loss_ops(block)
    shapes = [value.shape(1, rows) for value in block.values]
    factors = OpFactors(block, shapes, lambda v: [[size] for size in shapes[v]])
    gradients = differentiable(block)
    return Node(block, shapes, node_of(factors, run, gradients), gradients)
