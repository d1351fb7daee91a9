from __future__ import annotations

import dataclasses
import functools
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from planner import models
from planner.capture.blocks import (
    call_key,
    find_blocks,
    hides_tensors,
    position_attributes,
    structure_keys,
    watched,
)
from tests.planner.capture.small import Layer, Pairs, Stack, Twice


def distinct(blocks: list[nn.Module]) -> int:
    keys = structure_keys({f"layers.{i}": block for i, block in enumerate(blocks)})
    return len(set(keys.values()))


def with_attribute(name: str, values: list[Any]) -> list[nn.Module]:
    layers: list[nn.Module] = [Layer() for _ in values]
    for layer, value in zip(layers, values, strict=True):
        setattr(layer.a, name, value)
    return layers


# --- which modules are blocks ---


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Stack([Layer(), Layer()]), ["layers.0", "layers.1"]),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), ["0", "2"]),
        (nn.ModuleDict({"x": Layer(), "y": Layer()}), ["x", "y"]),
        (Pairs(2), ["layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1"]),
        (Twice([Layer(), Layer()]), ["layers.0", "layers.1"]),
        (Stack([Layer()]), []),
        (Stack([nn.Dropout(), nn.Dropout()]), []),
        (nn.Sequential(OrderedDict(stem=nn.Linear(2, 2), stage=nn.Sequential(Layer(), Layer()))), ["stem", "stage"]),
        (nn.Linear(2, 2), []),
    ],
    ids=["list", "sequential", "dict", "pairs", "twice", "single", "without parameters", "outermost", "no container"],
)
def test_blocks_are_children_of_outermost_containers(model: nn.Module, expected: list[str]) -> None:
    assert list(find_blocks(model)) == expected


def test_a_dict_that_names_unlike_parts_is_opened() -> None:
    # nanoGPT keeps everything in one ModuleDict: its layers are the blocks, not the embedding.
    parts = {"wte": nn.Embedding(4, 2), "wpe": nn.Embedding(4, 2), "h": nn.ModuleList([Layer(), Layer()])}
    model = nn.ModuleDict({"transformer": nn.ModuleDict(parts)})
    assert list(find_blocks(model)) == ["transformer.h.0", "transformer.h.1"]


@pytest.mark.parametrize(
    ("name", "num_blocks", "num_distinct"),
    [("llama3-8b", 32, 1), ("deepseek-v3", 61, 2), ("resnet-50", 16, 8), ("bert-large", 24, 1), ("vit-l-16", 24, 1)],
)
def test_distinct_structures_of_known_models(name: str, num_blocks: int, num_distinct: int) -> None:
    # ResNet-50: each of the four stages has one block that changes the resolution and repeats another.
    with torch.device("meta"):
        model, _ = models.build(name)
    blocks = find_blocks(model)
    assert len(blocks) == num_blocks
    assert len(set(structure_keys(blocks).values())) == num_distinct


# --- equal structure ---


def shared_lambda() -> Callable[[int], int]:
    return lambda x: x


@dataclasses.dataclass
class Settings:
    window: int
    nested: dict[str, int] = dataclasses.field(default_factory=dict)


class Plain:
    def __init__(self, window: int) -> None:
        self.window = window
        self.itself = self


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 2, 3],
        [5, 6, 7, 8],
        [torch.device("cpu"), torch.device("cpu")],
        [slice(1, 2), slice(1, 2)],
        [{1, 2}, {2, 1}],
        [Settings(1), Settings(1)],
        [Plain(1), Plain(1)],
        [functools.partial(max, 1), functools.partial(max, 1)],
        [shared_lambda(), shared_lambda()],
        [torch.zeros(3), torch.ones(3)],
    ],
    ids=["index", "index from 5", "device", "slice", "set", "dataclass", "object", "partial", "lambda", "tensor"],
)
def test_blocks_with_equal_attributes_are_equal(values: list[Any]) -> None:
    assert distinct(with_attribute("setting", values)) == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([4, 0, 4, 0], 2),
        ([0, 1, 2, 2], 3),
        ([0.0, 0.1], 2),
        ([Settings(1), Settings(2)], 2),
        ([Settings(1, {"a": 1}), Settings(1, {"a": 2})], 2),
        ([Plain(1), Plain(2)], 2),
        ([[1, [2]], [1, [3]]], 2),
        ([functools.partial(max, 1), functools.partial(max, 2)], 2),
        ([lambda x: x, lambda x: -x], 2),
        ([torch.zeros(3), torch.zeros(4)], 2),
        ([torch.zeros(3), torch.zeros(3, dtype=torch.int64)], 2),
        ([object(), object()], 2),
    ],
    ids=["alternating", "not quite the index", "float", "dataclass", "nested", "object", "list", "partial", "lambda",
         "shape", "dtype", "unknown"],
)  # fmt: skip
def test_blocks_with_unlike_attributes_differ(values: list[Any], expected: int) -> None:
    assert distinct(with_attribute("setting", values)) == expected


def frozen(layer: Layer) -> Layer:
    layer.a.weight.requires_grad_(False)
    return layer


def hooked(layer: Layer) -> Layer:
    layer.a.register_forward_hook(lambda *_: None)
    return layer


def shadowed(layer: Layer) -> Layer:
    layer.forward = types.MethodType(lambda self, x: x, layer)  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    "other",
    [
        Layer(dim=8),
        frozen(Layer()),
        Layer().eval(),
        Layer().double(),
        hooked(Layer()),
        shadowed(Layer()),
        nn.Sequential(Layer()),
    ],
    ids=["width", "frozen", "evaluated", "dtype", "hook", "own forward", "class"],
)
def test_what_forward_may_read_tells_blocks_apart(other: nn.Module) -> None:
    assert distinct([Layer(), other]) == 2
    assert distinct([Layer(), Layer()]) == 1


def test_dropout_probabilities_tell_blocks_apart() -> None:
    assert distinct([nn.Sequential(nn.Linear(2, 2), nn.Dropout(p)) for p in (0.1, 0.1, 0.2)]) == 2


# --- positions ---


def test_a_position_counts_only_among_numbered_siblings_of_one_class() -> None:
    blocks = {f"layers.{i}": layer for i, layer in enumerate(with_attribute("index", [3, 4]))}
    assert position_attributes(blocks) == {"layers.0": {"a.index"}, "layers.1": {"a.index"}}
    named = dict(zip(("layers.x", "layers.y"), blocks.values(), strict=True))
    assert position_attributes(named) == {"layers.x": frozenset(), "layers.y": frozenset()}


def test_reading_a_position_is_noticed_and_leaves_the_module_as_it_was() -> None:
    layers = with_attribute("index", [0, 1])
    blocks = {f"layers.{i}": layer for i, layer in enumerate(layers)}
    kind = type(layers[0].a)

    def run() -> None:
        with watched(blocks, position_attributes(blocks)) as read:
            assert isinstance(layers[1].a, kind) and type(layers[1].a).__name__ == kind.__name__
            assert not read
            layers[1].a.index += 10
            assert read == {"a.index"}
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        run()
    assert [type(layer.a) for layer in layers] == [kind, kind]
    assert [layer.a.index for layer in layers] == [0, 11]


# --- calls ---

X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((X, X), (X, X.clone())),
        ((X,), (X.t().contiguous().t(),)),
        ((X,), (X.clone().requires_grad_(),)),
        ((X, None), (X, 1)),
        ((X, True), (X, False)),
        ((X, Plain(1)), (X, Plain(2))),
    ],
    ids=["same tensor twice", "strides", "gradient", "None", "flag", "object"],
)
def test_call_keys_tell_calls_apart(one: Any, other: Any) -> None:
    assert call_key(one, {}) != call_key(other, {})
    assert call_key(one, {}) == call_key(one, {})


def test_call_keys_ignore_values_and_know_the_modes() -> None:
    key = call_key((X,), {"mask": None})
    assert key == call_key((torch.ones(2, 3),), {"mask": None})
    assert key != call_key((X,), {})
    with torch.no_grad():
        assert key != call_key((X,), {"mask": None})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert key != call_key((X,), {"mask": None})


@pytest.mark.parametrize(
    ("leaf", "hidden"),
    [(Settings(1), False), (Plain(1), False), (X, False), (nn.Linear(2, 2), False), (len, False), ("x", False),
     (Settings(X), True), (types.SimpleNamespace(a={"b": [Plain(X)]}), True)],  # type: ignore[arg-type]
    ids=["settings", "plain", "tensor", "module", "function", "text", "dataclass", "nested"],
)  # fmt: skip
def test_hidden_tensors_are_found(leaf: Any, hidden: bool) -> None:
    assert hides_tensors(leaf) is hidden
