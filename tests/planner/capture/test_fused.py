from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.capture.fused import FusedKernels
from planner.graph import Block
from tests.planner.capture import reference

BATCH, LEN, DIM = 2, 8, 16
LENT_RMS_NORM, LENT_DROPOUT = torch.rms_norm, F.dropout
"""As a model holds them that imports the functions by name."""


class One(nn.Module):
    """A projection, and one call after it."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.first = nn.Linear(DIM, DIM, bias=False)
        self.norm = nn.RMSNorm(DIM)
        self.plain = nn.RMSNorm((LEN, DIM), elementwise_affine=False)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.first(x)).float().mean()


def traced(call: Any) -> Block:
    def inputs(batch: int, _: int) -> tuple[Tensor]:
        return (torch.zeros(batch, LEN, DIM),)

    (block,) = reference.at_one_point(One(call), inputs, BATCH, 1).blocks
    return block


def shape(block: Block, value: int) -> tuple[tuple[int, ...], str]:
    return block.values[value].shape(BATCH, 1), block.values[value].dtype


@pytest.mark.parametrize(
    ("call", "rows", "weighted"),
    [
        (lambda model, x: model.norm(x), (BATCH, LEN, 1), True),
        (lambda model, x: model.plain(x), (BATCH, 1, 1), False),
        (lambda model, x: F.rms_norm(x, (DIM,), model.norm.weight, 1e-6), (BATCH, LEN, 1), True),
        (lambda model, x: LENT_RMS_NORM(x, (DIM,), model.norm.weight), (BATCH, LEN, 1), True),
    ],
    ids=["module", "two dims, no weight", "function", "imported before"],
)
def test_rms_norm_is_one_call_that_saves_its_input_and_one_number_per_row(
    call: Any, rows: tuple[int, ...], weighted: bool
) -> None:
    block = traced(call)
    forward, backward = (op for op in block.ops if op.name.startswith("rms_norm"))
    x = ((BATCH, LEN, DIM), "bfloat16")
    assert [shape(block, v) for v in forward.outputs] == [x, (rows, "float32")]
    assert [shape(block, v) for v in backward.outputs] == [x, ((DIM,), "bfloat16")][: 1 + weighted]
    saved = [shape(block, v)[1] for v in block.saved]
    assert sorted(saved) == ["bfloat16", "float32"]
    assert {block.values[forward.inputs[0]].storage} < {block.values[v].storage for v in block.saved}


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: F.dropout(x, 0.1),
        lambda model, x: LENT_DROPOUT(x, p=0.1),
        lambda model, x: nn.Dropout(0.1)(x),
    ],
    ids=["function", "imported before", "module"],
)
def test_dropout_is_one_call_that_saves_a_mask_of_bytes(call: Any) -> None:
    block = traced(call)
    dropouts = [op.target for op in block.ops if "dropout" in op.name]
    assert dropouts == ["native_dropout.default", "native_dropout_backward.default"]
    assert [shape(block, v) for v in block.saved] == [((BATCH, LEN, DIM), "bool")]


@pytest.mark.parametrize("options", [{"p": 0.0}, {"p": 0.5, "training": False}])
def test_dropout_that_drops_nothing_is_no_call(options: Any) -> None:
    targets = [op.target for op in traced(lambda model, x: F.dropout(x, **options)).ops]
    assert targets == [op.target for op in traced(lambda model, x: x).ops]


def test_dropout_in_place_is_torchs_own() -> None:
    with FakeTensorMode(), FusedKernels():
        x = torch.zeros(4)
        assert F.dropout(x, 0.5, inplace=True) is x
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            F.dropout(x, 1.5)


def test_what_is_replaced_comes_back_after_an_error() -> None:
    def fail() -> None:
        with FusedKernels():
            assert torch.rms_norm is not LENT_RMS_NORM
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert (torch.rms_norm, F.dropout) == (LENT_RMS_NORM, LENT_DROPOUT)
    x = torch.ones(2, 4)
    assert torch.equal(F.rms_norm(x, (4,), eps=0.0), x)
