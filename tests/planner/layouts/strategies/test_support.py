"""Which operations have rules."""

from __future__ import annotations

from time import process_time

import pytest
import torch
from torch import Tensor, nn

from planner.capture.trace import trace
from planner.graph import ModelGraph
from planner.layouts.strategies import block_nodes, coverage, replicated_warning, unruled
from tests.planner.layouts.strategies.models import NAMES, model


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_of_these_models_has_a_rule(name: str) -> None:
    found = coverage(model(name))
    assert found.unruled == ()
    assert found.ruled_share == 1
    assert all(op.ruled and op.num_options >= 1 for op in found.ops)
    assert sum(op.bytes_share for op in found.ops) == pytest.approx(1)
    assert sum(op.flop_share for op in found.ops) == pytest.approx(1)


def test_products_carry_the_flop_and_layers_count_as_often_as_they_run() -> None:
    found = {op.name: op for op in coverage(model("gqa")).ops}
    assert found["mm"].flop_share + found["attention"].flop_share == pytest.approx(1)
    assert found["attention"].count == 4
    assert found["mm"].count == 4 * 7 + 1
    assert (found["mm"].family, found["silu"].family, found["view"].family) == ("linear", "pointwise", "views")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.renorm(self.up(x), 2, 0, 1.0))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def unknown() -> ModelGraph:
    return trace(Stack(), lambda batch, seq_len: (torch.empty(batch, 4, 8),), seq_len=1)


def test_an_unknown_operation_is_named_and_replicated() -> None:
    graph = unknown()
    found = coverage(graph)
    assert ("renorm", "layers.0") in found.unruled and ("renorm", "layers.1") in found.unruled
    assert found.ruled_share < 1
    block = next(graph.blocks[segment.block] for segment in graph.segments if segment.prefix)
    assert unruled(block) == (("renorm", ""),)
    nodes = block_nodes(block, [value.shape(2, 1) for value in block.values])
    (node,) = [node for node in nodes if not node.ruled]
    assert block.ops[node.ops[0]].name == "renorm"
    assert {p.kind for option in node.options for p in (*option.inputs, *option.outputs)} == {"R", "B"}


def test_a_plan_is_told_what_lies_whole_for_want_of_a_rule() -> None:
    (line,) = replicated_warning(unknown())
    assert line.startswith("no layout rule knows renorm in layers.0, renorm in layers.1")
    assert replicated_warning(model("gqa")) == ()


@pytest.mark.parametrize(("name", "index", "seconds"), [("gqa", 1, 0.15), ("mla", 2, 0.3)])
def test_a_block_takes_a_fraction_of_a_second(name: str, index: int, seconds: float) -> None:
    block = model(name).blocks[index]
    shapes = [value.shape(4, 512) for value in block.values]
    begin = process_time()
    block_nodes(block, shapes)
    assert process_time() - begin < seconds
