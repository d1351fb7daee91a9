from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner import models
from planner.capture.segments import RawModel
from planner.models import ResNetConfig
from tests.planner.capture import reference, small
from tests.planner.capture.small import SEQ_LEN, Layer, Stack, block_of, targets
from tests.planner.models.reference import DEEPSEEK, TINY

BATCH = 2
RESNET = ResNetConfig(image_size=32, num_blocks=(2, 3, 2, 2), width=4, num_classes=8)


# --- the blocks put together are the model ---


@pytest.mark.parametrize("name", TINY)
def test_built_in_models_have_the_operations_of_a_plain_trace(name: str) -> None:
    config = TINY[name]
    with torch.device("meta"):
        model, inputs = models.build_from_config(config)
    expected = reference.plain_ops(model, inputs, BATCH, 16, torch.bfloat16)
    assert reference.count_ops(reference.at_one_point(model, inputs, BATCH, 16), BATCH, 16) == expected


class Windowed(Layer):
    """Its layers alternate by an attribute."""

    def __init__(self, window: int | None) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.a(x) if self.window is None else F.gelu(self.a(x[:, : self.window])).mean(1, keepdim=True))


class ByIndex(Layer):
    """Only the even layers have an activation, by a test in forward."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, x: Tensor) -> Tensor:
        return x + self.a(x) if self.layer_idx % 2 else super().forward(x)


class Named(Layer):
    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> tuple[Tensor, dict[str, Any]]:
        y = self.a(x) * scale if mask is None else self.a(x).masked_fill(mask, 0.0)
        return x + y, {"half": y[:, :, :4], "nothing": None}


class NamedStack(Stack):
    """Keyword and None arguments, a tuple with a dict as result, and a mask for one layer of three."""

    def body(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            mask = torch.ones(x.shape[1], 1, dtype=torch.bool) if i == 2 else None
            x, extra = layer(x, mask, scale=2.0)
            x = x + extra["half"].mean(dim=2, keepdim=True)
        return x


class InPlace(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.mul_(2.0)) + 1.0


class Window:
    def __init__(self, width: int) -> None:
        self.width = width


class Cropping(Layer):
    def forward(self, x: Tensor, window: Window) -> Tensor:
        return torch.cat((self.a(x[:, : window.width]), x[:, window.width :]), dim=1)


class FreshObjects(Stack):
    def body(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x, Window(1 + i % 2))
        return x


class WithoutGrad(Stack):
    """The first layer runs once without a gradient and once with."""

    def body(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hint = self.layers[0](x)
        return self.layers[1](self.layers[0](x + hint))


class Mixed(Stack):
    def body(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().body(x)


def encoder(dropout: float) -> nn.Module:
    return nn.TransformerEncoderLayer(small.DIM, 2, 32, dropout=dropout, batch_first=True)


MODELS: dict[str, tuple[nn.Module, int]] = {  # with the number of distinct blocks
    "equal layers": (Stack([Layer() for _ in range(5)]), 1),
    "index never read": (Stack([Windowed(i) for i in range(1)] + [Layer(), Layer()]), 2),
    "alternating window": (Stack([Windowed(w) for w in (4, None, 4, None)]), 2),
    "index read in forward": (Stack([ByIndex(i) for i in range(4)]), 2),
    "keywords, None, tuples": (NamedStack([Named() for _ in range(3)]), 2),
    "in place": (Stack([InPlace(), InPlace()]), 0),
    "fresh objects": (FreshObjects([Cropping() for _ in range(4)]), 2),
    "pairs": (small.Pairs(2), 1),
    "dict": (Stack(nn.ModuleDict({"x": Layer(), "y": Layer()}).values()), 1),
    "frozen embedding": (small.FrozenStack([Layer() for _ in range(3)]), 2),
    "with and without gradient": (WithoutGrad([Layer(), Layer()]), 2),
    "torch's encoder": (Stack([encoder(0.0), encoder(0.0)]), 1),
    "torch's encoder, other dropout": (Stack([encoder(0.1), encoder(0.2)]), 2),
    "skips": (small.Skips([Layer() for _ in range(3)]), 1),
    "shared parameter": (small.SharedParameter(3), 1),
    "views between": (small.Transposed([Layer(), Layer()]), 1),
}


def once(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> RawModel:
    return reference.at_one_point(model, small.tokens, BATCH, SEQ_LEN, dtype)


def both_counts(model: nn.Module, *, without: tuple[str, ...] = ()) -> tuple[Counter[Any], Counter[Any]]:
    """Operations of the captured and of the plainly traced model."""
    ours = reference.count_ops(once(model), BATCH, SEQ_LEN)
    plain = reference.plain_ops(model, small.tokens, BATCH, SEQ_LEN, torch.bfloat16)
    for counts in (ours, plain):
        for key in [key for key in counts if key[0].partition(".")[0] in without]:
            del counts[key]
    return ours, plain


@pytest.mark.parametrize("name", MODELS)
def test_users_models_have_the_operations_of_a_plain_trace(name: str) -> None:
    model, num_distinct = MODELS[name]
    blocks = {segment.block for segment in once(model).segments if segment.prefix}
    assert len(blocks) == num_distinct
    # Mere views between blocks belong to no segment.
    ours, plain = both_counts(model, without=("transpose",))
    assert ours == plain


def test_the_gradients_of_a_shared_layers_calls_are_summed_outside_of_the_blocks() -> None:
    ours, plain = both_counts(small.Twice([Layer(), Layer()]))
    assert not ours - plain
    weight, bias = (small.DIM, small.DIM), (small.DIM,)
    assert plain - ours == {("add.Tensor", (shape, shape), (shape,)): 2 for shape in (weight, bias)}


def test_an_argument_given_thrice_is_one_tensor_in_the_block_too() -> None:
    # Self-attention is one projection if query, key and value are the same object, else three. Copies are left out: a
    # block's incoming gradient is taken to lie in memory as its output does, which the plain trace's does not.
    model = small.SelfAttention([nn.MultiheadAttention(small.DIM, 2, batch_first=True) for _ in range(2)])
    ours, plain = both_counts(model, without=("clone", "view", "_unsafe_view"))
    assert ours == plain
    assert targets(block_of(once(model), "layers.0"), "forward").count("mm") == 1


def test_autocast_inside_of_the_model_reaches_its_blocks() -> None:
    model = Mixed([Layer(), Layer()])
    expected = reference.plain_ops(model, small.tokens, BATCH, SEQ_LEN, torch.float32)
    graph = once(model, torch.float32)
    matmul = next(op for op in block_of(graph, "layers.0").ops if op.name == "addmm")
    assert block_of(graph, "layers.0").values[matmul.outputs[0]].dtype == "bfloat16"
    products = [key for key in expected if key[0] in ("mm.default", "addmm.default")]
    ours = reference.count_ops(graph, BATCH, SEQ_LEN)
    assert {key: ours[key] for key in products} == {key: expected[key] for key in products}


def test_an_output_that_nothing_reads_is_the_one_thing_counted_in_vain() -> None:
    # A block is traced before it is known which of its results are used: their backward is assumed to run.
    class Pair(Layer):
        def forward(self, x: Tensor) -> Any:
            y = self.a(x)
            return x + y, y.sigmoid()

    class First(Stack):
        def body(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x, _ = layer(x)
            return x

    model = First([Pair(), Pair()])
    ours, plain = both_counts(model)
    assert not plain - ours
    assert {target for target, *_ in ours - plain} == {"sigmoid_backward.default", "add.Tensor", "zeros.default"}


# --- names ---


def test_backward_calls_carry_the_module_of_their_forward_call() -> None:
    block = block_of(reference.built_at_one_point(DEEPSEEK, 2, 16), "layers.1")
    modules = {op.fqn for op in block.ops if op.phase == "backward" and op.name == "mm"}
    assert modules == {op.fqn for op in block.ops if op.phase == "forward" and op.name == "mm"}
    assert {"attention.wq_a", "moe.router.gate", "moe.shared_experts.w1"} <= modules
    assert targets(block, "backward").count("_grouped_mm") == 2 * targets(block, "forward").count("_grouped_mm")
