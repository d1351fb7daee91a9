"""Programs: where tensors come from, and what stops the reading. That they compute what the model does is tested where
they run (tests/planner/runtime/test_build.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from planner.capture.one_sample import one_sample
from planner.capture.program import capture_program
from planner.errors import TraceError
from tests.planner.runtime.small import small


def program(model: nn.Module, inputs: Any, **settings: Any) -> Any:
    return capture_program(model, inputs, **{"batch": 2, "seq_len": 8, "dtype": torch.float32} | settings)


def test_calls_stand_beside_the_blocks_of_the_graph() -> None:
    given = small("mixtral")
    found = program(given.model, given.inputs)
    assert len(found.segments) == len(found.graph.segments) == 6
    for segment in found.segments:
        forward = [op for op in segment.block.ops if op.phase == "forward"]
        names = [call.target._schema.name.partition("::")[2] for call in segment.calls]
        assert names == [op.name for op in forward]
        made = {v for op in forward for v in op.outputs}
        read = {v for op in forward for v in op.inputs}
        assert set(segment.sources) >= read - made
        symbolic = found.graph.blocks[segment.segment.block]
        assert [v.shape(2, 8) for v in symbolic.values] == [v.shape(1, 1) for v in segment.block.values]


def test_sources_name_parameters_and_slots_join_segments() -> None:
    given = small("gpt")
    found = program(given.model, given.inputs)
    first, second, last = found.segments[0], found.segments[1], found.segments[-1]
    named = {source.name for source in first.sources.values() if source.kind == "param"}
    assert named == {"tok_embeddings.weight", "pos_embeddings.weight"}
    assert "tok_embeddings.weight" in {source.name for source in last.sources.values()}, "the head is tied"
    (handed,) = first.results
    assert handed in {source.slot for source in second.sources.values() if source.kind == "slot"}
    assert list(last.results) == [found.loss]
    assert sorted(found.inputs.values()) == [0, 1]


class Viewed(nn.Module):
    """Turns what its blocks hand on, which is no operation of any block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x)
        x = self.layers[1](x.transpose(0, 1)).transpose(0, 1)
        return self.layers[2](x).square().mean()


def test_views_between_blocks_are_slots_that_look_at_others() -> None:
    found = program(Viewed(), lambda batch, _: (torch.empty(batch, 8, 8),), seq_len=1)
    assert len(found.views) == 2
    makers = {slot for segment in found.segments for slot in segment.results}
    assert {view.looked_at for view in found.views.values()} <= makers


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.layers = nn.ModuleList(Scaled() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, self.scale)
        return x.square().mean()


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * scale


def test_a_parameter_given_as_an_argument_is_refused() -> None:
    with pytest.raises(TraceError, match=r"layers\.0 is given a parameter as an argument: let it hold"):
        program(Shared(), lambda batch, _: (torch.empty(batch, 8),), seq_len=1)


class Expanded(nn.Module):
    """Of one sample there is nothing to expand: torch leaves the operation out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.token = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def test_a_program_of_one_sample_has_the_operations_of_more() -> None:
    one, two = (
        program(Expanded(), lambda batch, _: (torch.empty(batch, 4, 8),), seq_len=1, batch=batch) for batch in (1, 2)
    )
    for alone, pair in zip(one.segments, two.segments, strict=True):
        assert [call.target for call in alone.calls] == [call.target for call in pair.calls]
        symbolic = one.graph.blocks[alone.segment.block]
        assert [v.shape(1, 1) for v in symbolic.values] == [v.shape(1, 1) for v in alone.block.values]
    assert one.segments[0].calls[0].args[1] == [1, -1, -1]


def test_what_is_not_linear_in_the_samples_has_no_program_of_one() -> None:
    with pytest.raises(TraceError, match="change with the number of samples: a with two of them, b with three"):
        one_sample({"name": "a"}, {"name": "b"})
