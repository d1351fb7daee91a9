from __future__ import annotations

import pytest
import torch

from planner.capture.unchanged import replaced_forwards, unchanged
from tests.planner.capture.small import Layer, Stack


def test_everything_set_on_a_module_is_undone() -> None:
    layer = Layer()
    layer.cache = {"a": [1]}  # type: ignore[assignment]
    cache = layer.cache
    before = {name: dict(module.__dict__) for name, module in layer.named_modules()}

    def run() -> None:
        with unchanged(layer):
            layer.eval()
            layer.forward = lambda x: x  # type: ignore[method-assign, assignment]
            layer.a.bias = None
            layer.register_buffer("late", torch.zeros(1))
            cache["b"] = [2]
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        run()
    assert {name: dict(module.__dict__) for name, module in layer.named_modules()} == before
    assert layer.cache is cache and cache == {"a": [1]}
    assert layer.training and layer.a.bias is not None and not list(layer.buffers())


def test_replaced_forwards_come_back_with_what_shadowed_them() -> None:
    model = Stack([Layer(), Layer()])
    own = model.layers[1].forward = lambda x: x  # type: ignore[method-assign]
    blocks = {f"layers.{i}": layer for i, layer in enumerate(model.layers)}
    x = torch.ones(1, 16)
    with replaced_forwards(model, blocks, lambda fqn, block: lambda _: (fqn, block.forward)):
        results = [layer(x) for layer in model.layers]
    assert [fqn for fqn, _ in results] == ["layers.0", "layers.1"]
    assert "forward" not in model.layers[0].__dict__ and model.layers[1].__dict__["forward"] is own
