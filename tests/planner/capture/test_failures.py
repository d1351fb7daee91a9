from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner.capture import lower
from planner.errors import TraceError
from tests.planner.capture.small import Layer, Stack, captured


class Branch(Layer):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        if self.a(x).mean().item() > 0:
            return x
        return -x


class Masked(Layer):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x + self.a(x)[x > 0].sum()


class Bug(Layer):
    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.a(x.transpose(1, 2))


class Wrapping(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def line_of(kind: type[nn.Module], text: str) -> str:
    lines, start = inspect.getsourcelines(kind)
    return f"test_failures.py:{next(start + i for i, line in enumerate(lines) if text in line)}: `"


@pytest.mark.parametrize(
    ("kind", "text", "module", "cause", "advice"),
    [
        (Branch, "mean().item()", "inner", "DataDependentOutputException", "use torch.where"),
        (Masked, "x > 0", "inner", "DynamicOutputShapeException", "top-k with sorting"),
        (Bug, "transpose", "inner.a", "RuntimeError", "check that the model runs on its example inputs"),
    ],
)
def test_an_error_names_module_line_cause_and_way_out(
    kind: type[nn.Module], text: str, module: str, cause: str, advice: str
) -> None:
    model = Stack([Wrapping(Layer()), Wrapping(kind())])
    with pytest.raises(TraceError) as caught:
        captured(model)
    message = str(caught.value)
    assert message.startswith(f"cannot trace Stack.layers.1.{module} at {line_of(kind, text)}")
    assert f"{text}" in message and cause in message and "batch 2, seq_len 8" in message
    assert "What to do: " in message and advice in message
    assert type(caught.value.__cause__).__name__ == cause


def test_an_error_in_a_custom_backward_is_the_models() -> None:
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * grad.sum().item()

    class Custom(Layer):
        def forward(self, x: Tensor, *_: Any) -> Tensor:
            return Failing.apply(self.a(x))  # type: ignore[no-any-return]

    with pytest.raises(TraceError, match=r"cannot trace Stack.*`return grad \* grad.sum\(\).item\(\)`"):
        captured(Stack([Custom(), Custom()]))


def test_a_bug_of_ours_is_not_called_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower.BlockBuilder, "add_op", None)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        captured(Stack([Layer(), Layer()]))
