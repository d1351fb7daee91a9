"""What a model is fed, written down and read again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planner.capture.batches import batch_of, recorded
from planner.graph import InputTensor


def tokens(batch: int, seq_len: int) -> tuple[torch.Tensor, ...]:
    return torch.empty(batch, seq_len, dtype=torch.int64), torch.empty(batch, 3, 8)


def named(batch: int, seq_len: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.empty(batch, seq_len, dtype=torch.int32),
        "labels": torch.empty(batch, dtype=torch.int64),
    }


@pytest.mark.parametrize("inputs", [tokens, named])
def test_a_batch_of_any_size_comes_back(inputs: Any) -> None:
    again = batch_of(recorded(inputs, 16))(5, 32)
    expected = inputs(5, 32)
    assert type(again) is type(expected)
    pairs = (
        zip(again.values(), expected.values(), strict=True)
        if isinstance(again, dict)
        else zip(again, expected, strict=True)
    )
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)
    if isinstance(again, dict):
        assert list(again) == list(expected)


def test_sizes_are_constant_or_the_length() -> None:
    assert recorded(tokens, 16) == (
        InputTensor(name=None, dtype="int64", shape=("seq_len",)),
        InputTensor(name=None, dtype="float32", shape=(3, 8)),
    )


@pytest.mark.parametrize(
    "inputs",
    [
        lambda batch, seq_len: (torch.empty(batch, seq_len + 1),),
        lambda batch, seq_len: (torch.empty(seq_len, batch),),
        lambda batch, seq_len: (torch.empty(batch, seq_len), {"mask": torch.empty(batch)}),
        lambda batch, seq_len: (torch.empty(()),),
    ],
)
def test_what_cannot_be_written_down_is_left_out(inputs: Any) -> None:
    assert recorded(inputs, 16) == ()
