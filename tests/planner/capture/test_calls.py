from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from planner import models
from planner.capture import joint
from planner.capture.calls import BlockCall
from planner.errors import TraceError
from planner.models import ResNetConfig
from tests.planner.capture import reference, small
from tests.planner.capture.small import SEQ_LEN, Layer, Stack, captured
from tests.planner.models.reference import DEEPSEEK

BATCH = 2
RESNET = ResNetConfig(image_size=32, num_blocks=(2, 3, 2, 2), width=4, num_classes=8)


@pytest.fixture
def traced_calls(monkeypatch: pytest.MonkeyPatch) -> list[BlockCall]:
    """Every block call that a graph is made of, over all points of a trace."""
    calls: list[BlockCall] = []
    original = joint.trace_block

    def count(call: BlockCall, *args: Any) -> Any:
        calls.append(call)
        return original(call, *args)

    monkeypatch.setattr("planner.capture.trace.trace_block", count)
    return calls


# --- cost ---


@pytest.mark.parametrize("name", ["llama3-8b", "llama3-405b"])
def test_a_deep_model_has_one_block_traced_per_point(name: str, traced_calls: list[BlockCall]) -> None:
    with torch.device("meta"):
        model, inputs = models.build(name)
    graph = captured(model, inputs=inputs, seq_len=1)
    assert len(traced_calls) == 3  # three batches
    assert {id(call.module) for call in traced_calls} == {id(model.layers[0])}
    assert len(graph.segments) == models.preset(name).config.num_layers + 2  # type: ignore[union-attr]
    assert len(graph.blocks) == 3


@pytest.mark.parametrize(
    ("config", "expected"),
    [(DEEPSEEK, ["layers.0", "layers.1"]), (RESNET, [f"layer{s}.{i}" for s in (1, 2, 3, 4) for i in (0, 1)])],
)
def test_each_distinct_block_is_traced_once_per_point(
    config: Any, expected: list[str], traced_calls: list[BlockCall]
) -> None:
    with torch.device("meta"):
        model, inputs = models.build_from_config(config)
    captured(model, inputs=inputs, seq_len=1)
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(call.module)] for call in traced_calls[: len(expected)]] == expected
    assert len(traced_calls) == 3 * len(expected)


# --- calls that cannot be opaque ---


@dataclasses.dataclass
class State:
    x: Tensor


class Stateful(Layer):
    def forward(self, state: State) -> State:  # type: ignore[override]
        return State(state.x + self.a(state.x))


class StatefulStack(Stack):
    def body(self, x: Tensor) -> Tensor:
        state = State(x)
        for layer in self.layers:
            state = layer(state)
        return state.x


def test_layers_that_pass_objects_are_traced_as_part_of_the_model() -> None:
    model = StatefulStack([Stateful() for _ in range(3)])
    graph = captured(model)
    expected = reference.plain_ops(model, small.tokens, BATCH, SEQ_LEN, torch.bfloat16)
    assert reference.count_ops(graph, BATCH, SEQ_LEN) == expected
    (warning,) = graph.warnings
    assert "Stateful" in warning and "layers.0 passes tensors inside of a State" in warning
    assert "register_dataclass" in warning


def test_a_model_that_runs_differently_each_time_is_refused() -> None:
    class Moody(Stack):
        def body(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, random.random())
            return x

    with pytest.raises(TraceError, match=r"Moody calls layers\.0 with other shapes or arguments each time it runs"):
        captured(Moody([Layer(), Layer()]))


class Doubled(Layer):
    """Writes into its input and returns nothing."""

    def forward(self, x: Tensor, *_: Any) -> None:  # type: ignore[override]
        x += self.a(x.clone()).tanh()


class DoubledStack(Stack):
    def body(self, x: Tensor) -> Tensor:
        x = x * 1
        for layer in self.layers:
            layer(x)
        return x


class Borrowing(Layer):
    """Runs a module that it holds in a list, unregistered."""

    def __init__(self, other: torch.nn.Module) -> None:
        super().__init__()
        self.others = [other]

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return super().forward(x) + self.others[0](x)


def hooked() -> Layer:
    layer = Layer()
    layer.register_forward_hook(lambda module, args, out: out * 2)
    return layer


def borrowing() -> Stack:
    model = Stack()
    model.common = torch.nn.Linear(small.DIM, small.DIM)
    model.layers.extend([Borrowing(model.common), Borrowing(model.common)])
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (DoubledStack([Doubled(), Doubled()]), "layers.0 changes an input in place"),
        (Stack([hooked(), hooked()]), "layers.0 has forward hooks"),
        (borrowing(), "layers.0 holds a module that is not registered as its own"),
    ],
)
def test_layers_with_side_effects_are_traced_as_part_of_the_model(model: Stack, reason: str) -> None:
    graph = captured(model)
    expected = reference.plain_ops(model, small.tokens, BATCH, SEQ_LEN, torch.bfloat16)
    assert reference.count_ops(graph, BATCH, SEQ_LEN) == expected
    assert any(warning.endswith(reason) for warning in graph.warnings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_refused() -> None:
    model = Stack([Layer(), Layer()])
    model.layers[1].compile()
    with pytest.raises(TraceError, match=r"layers\.1 went through torch\.compile.*plan the plain module"):
        captured(model)
