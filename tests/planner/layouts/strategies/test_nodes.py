"""Nodes of traced blocks: complete, and right on real numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.graph import Ref
from planner.layouts.strategies import OpNode, block_nodes
from planner.layouts.strategies.nodes import differentiable
from tests.planner.layouts.strategies.harness import check, run_whole
from tests.planner.layouts.strategies.models import NAMES, blocks, forward, shapes_of
from tests.planner.layouts.strategies.running import Node

_checked: set[object] = set()
"""Nodes like these were run before, for another model or layer."""


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_every_node_gives_the_values_and_gradients_of_the_whole(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    for made, block in blocks(name):
        shapes = shapes_of(made, block)
        values = forward(block, shapes, random)
        for found in block_nodes(block, shapes):
            node = Node(block, shapes, found, differentiable(block))
            signature = _signature(node)
            if signature in _checked:
                continue
            _checked.add(signature)
            whole = run_whole(node, {v: values[v] for v in found.inputs}, random)
            for option in found.options:
                if option.splits(2):
                    try:
                        check(node, option, 2, whole, random)
                    except Exception as wrong:
                        names = [(op.name, op.args) for op in node.ops]
                        raise AssertionError(f"{names} {[shapes[v] for v in found.inputs]} {option}") from wrong


def _signature(node: Node) -> object:
    def shaped(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return node.shapes[arg.value], node.block.values[arg.value].dtype
        return tuple(map(shaped, arg)) if isinstance(arg, tuple) else arg

    return (
        tuple((op.target, shaped(op.args)) for op in node.ops),
        node.node.options,
        tuple(node.shapes[v] for v in node.node.outputs),
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_forward_operation_is_in_one_node_after_what_it_reads(name: str) -> None:
    for made, block in blocks(name):
        nodes = block_nodes(block, shapes_of(made, block))
        forward_ops = [i for i, op in enumerate(block.ops) if op.phase == "forward"]
        assert sorted(i for node in nodes for i in node.ops) == forward_ops
        makers = {v: n for n, node in enumerate(nodes) for i in node.ops for v in block.ops[i].outputs}
        for n, node in enumerate(nodes):
            assert all(makers.get(v, -1) < n for v in node.inputs)
            assert all(_fits(node, option) for option in node.options)
        assert all(node.ruled for node in nodes)


def _fits(node: OpNode, option: Any) -> bool:
    return len(option.inputs) == len(node.inputs) and len(option.outputs) == len(node.outputs)
