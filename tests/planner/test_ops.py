from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from planner import ops
from planner.capture.segments import RawModel
from planner.graph import Block, Op, Ref
from planner.ops import Gemm
from tests.planner.capture import reference

BATCH = 2


class One(nn.Module):
    """A call on the input and a weight; the mean of what it returns is the loss."""

    def __init__(self, call: Any, *weight: int) -> None:
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(torch.zeros(*weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight).float().mean()


class Mean(nn.Module):
    """The mean of a model's result."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).float().mean()


def traced(model: nn.Module, *shape: int) -> RawModel:
    def inputs(batch: int, _: int) -> tuple[Tensor]:
        return (torch.zeros(batch, *shape),)

    return reference.at_one_point(model, inputs, BATCH, 1)


def only_block(model: nn.Module, *shape: int) -> Block:
    (block,) = traced(model, *shape).blocks
    return block


def shapes(block: Block) -> list[tuple[int, ...]]:
    return [value.shape(BATCH, 1) for value in block.values]


def find(block: Block, name: str) -> Op:
    return next(op for op in block.ops if op.name == name)


# --- FLOP ---


def conv(**options: Any) -> nn.Module:
    kind = getattr(nn, options.pop("kind", "Conv2d"))
    return nn.Sequential(kind(4, 6 * options.get("groups", 1), 3, **options), nn.Flatten(), nn.GELU())


MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "mm": (One(torch.matmul, 8, 5), (8,)),
    "addmm": (nn.Linear(8, 5), (8,)),
    "linear over three dims": (nn.Linear(8, 5), (7, 8)),
    "bmm": (One(lambda x, w: (x * w) @ (x * w).transpose(1, 2), 8), (7, 8)),
    "baddbmm": (One(lambda x, w: torch.baddbmm(x * w, x * w, x * w), 8), (8, 8)),
    "a matrix by itself": (One(lambda x, w: torch.addmm(w[0], w, w), 8, 8), (8,)),
    "a matrix squared": (One(lambda x, w: w @ w, 8, 8), (8,)),
    "einsum": (One(lambda x, w: torch.einsum("bij,ijk->bik", x, w), 7, 8, 5), (7, 8)),
    "conv": (conv(), (4, 9, 9)),
    "conv, no bias, stride, padding": (conv(bias=False, stride=2, padding=1), (4, 9, 9)),
    "conv, dilation": (conv(dilation=2), (4, 9, 9)),
    "conv of one dim": (conv(kind="Conv1d"), (4, 9)),
    "conv of three dims": (conv(kind="Conv3d"), (4, 5, 5, 5)),
    "transposed conv": (conv(kind="ConvTranspose2d", stride=2), (4, 5, 5)),
    "two convs": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3)), (4, 5, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_flop_is_torchs_count(name: str) -> None:
    model, shape = MODELS[name]
    model = model if isinstance(model, One) else Mean(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        expected = reference.eager_flop_of(lambda: model(torch.zeros(BATCH, *shape)))
    assert sum(expected) > 0
    assert reference.count_flop(traced(model, *shape), BATCH, 1) == expected


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution_costs_each_group_by_itself(groups: int) -> None:
    block = only_block(One(lambda x, w: F.conv2d(x.exp(), w, groups=groups), 8, 4 // groups, 3, 3), 4, 9, 9)
    forward, backward = find(block, "convolution"), find(block, "convolution_backward")
    m, n, k = BATCH * 7 * 7, 8 // groups, 4 // groups * 9
    assert ops.gemms(forward, shapes(block)) == (Gemm(groups, m=m, n=n, k=k),)
    assert ops.flop(forward, shapes(block)) == 2 * groups * m * n * k
    assert ops.gemms(backward, shapes(block)) == (Gemm(groups, m=n, n=k, k=m),)  # the input needs no gradient


def test_gemms_of_a_linear_layer_and_its_gradients() -> None:
    block = only_block(Mean(nn.Linear(8, 5, bias=False)), 7, 8)
    found = [(op.phase, *ops.gemms(op, shapes(block))) for op in block.ops if op.name == "mm"]
    tokens = BATCH * 7
    assert found == [("forward", Gemm(1, m=tokens, n=5, k=8)), ("backward", Gemm(1, m=5, n=8, k=tokens))]


def test_gemms_of_experts() -> None:
    experts, width, hidden, rows = 4, 8, 16, 24

    def call(x: Tensor, w: Tensor) -> Tensor:
        ends = torch.arange(1, experts + 1, dtype=torch.int32) * (rows // experts)
        return F.grouped_mm(F.grouped_mm(x.flatten(0, 1), w, offs=ends), w.transpose(1, 2), offs=ends)

    block = only_block(One(call, experts, width, hidden), rows // BATCH, width)
    found = [ops.gemms(op, shapes(block))[0] for op in block.ops if op.name == "_grouped_mm"]
    per_expert = rows // experts
    up, down = Gemm(experts, m=per_expert, n=hidden, k=width), Gemm(experts, m=per_expert, n=width, k=hidden)
    assert found[:2] == [up, down]
    # Backward: the gradient of the rows between both products, and of each weight (a product over the expert's rows).
    weight = Gemm(experts, m=width, n=hidden, k=per_expert)
    assert len(found) == 5 and sorted(g.k for g in found[2:]) == [per_expert, per_expert, width]
    assert set(found[2:]) == {up, weight}


def test_what_is_not_a_product_counts_no_flop() -> None:
    block = only_block(One(lambda x, w: F.softmax(F.layer_norm(x * w, (8,)).exp(), -1), 8), 7, 8)
    assert reference.count_flop(RawModel((block,), (), ()), BATCH, 1) == (0, 0)
    assert all(ops.flop(op, shapes(block)) == 0 and ops.gemms(op, shapes(block)) == () for op in block.ops)


# --- memory ---


def test_views_and_allocations_launch_no_kernel() -> None:
    def call(x: Tensor, w: Tensor) -> Tensor:
        y = (x * w).transpose(1, 2).reshape(-1, 7)[1:].chunk(2)[0]
        return torch.empty_like(y).copy_(y).relu_().clone()

    block = only_block(One(call, 8), 7, 8)
    free = {op.name: ops.is_free(op, block) for op in block.ops if op.phase == "forward"}
    views = {"transpose": True, "slice": True, "split": True, "empty_like": True, "_unsafe_view": True}
    kernels = {"mul": False, "copy_": False, "relu_": False, "clone": False}
    assert {name: is_free for name, is_free in free.items() if name in views | kernels} == views | kernels


def moved(block: Block, name: str) -> int:
    return ops.moved_bytes(find(block, name), block, shapes(block))


def test_bytes_moved_are_arguments_and_results() -> None:
    block = only_block(One(lambda x, w: x.float() * w, 8), 7, 8)
    x = BATCH * 7 * 8
    assert moved(block, "_to_copy") == x * 2 + x * 4
    assert moved(block, "mul") == x * 4 + 8 * 2 + x * 4  # a bfloat16 weight of 8


@pytest.mark.parametrize(
    ("call", "name", "row"),
    [
        (lambda x, w: F.embedding(x.argmax(-1), w), "embedding", 16),
        (lambda x, w: w[x.argmax(-1)], "index", 16),
        (lambda x, w: w.index_select(0, x.argmax(-1).flatten()), "index_select", 16),
        (lambda x, w: w.gather(0, x.argmax(-1, keepdim=True).flatten(0, 1).expand(-1, 16)), "gather", 16),
    ],
)
def test_lookups_read_what_they_return(call: Any, name: str, row: int) -> None:
    block = only_block(One(call, 1000, row), 7, 8)
    lookup, rows = find(block, name), BATCH * 7
    index = block.values[lookup.inputs[1]].shape(BATCH, 1)
    assert moved(block, name) == 2 * rows * row * 2 + torch.Size(index).numel() * 8


def test_one_call_on_a_devices_share() -> None:
    # The shapes are the caller's: half of the heads, half of the FLOP.
    arguments = tuple(Ref(v) for v in range(3))
    call = Op("attention.default", "", "forward", (*arguments, None, True), (0, 1, 2), (3, 4), pointwise=False)
    whole, half = ([(2, heads, 8, 4)] * 4 + [(2, heads, 8)] for heads in (6, 3))
    assert ops.flop(call, whole) == 2 * ops.flop(call, half) == 2 * 2 * 6 * 8 * 8 * (4 + 4)
