"""Uses of a batch's whole numbers, against torch itself: one more than the largest is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.capture.program import capture_program
from planner.runtime.integers import Use, integer_uses

BATCH, LENGTH = 2, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Embedding(5, 8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
        return x + self.linear(x) + self.kinds(kinds)


class Model(nn.Module):
    """Looks tokens up twice, hands kinds to its blocks, shifts its labels, and multiplies by a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.more = nn.Embedding(20, 8), nn.Embedding(12, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 7)

    def forward(self, tokens: Tensor, kinds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        x = (self.words(tokens) + self.more(tokens.clone())) * mask.unsqueeze(-1)
        for block in self.blocks:
            x = block(x, kinds)
        return F.cross_entropy(self.head(x)[:, :-1].flatten(0, 1), labels[:, 1:].reshape(-1))


def inputs(batch: int, seq_len: int) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(batch, seq_len, dtype=torch.int64) for _ in range(4))


def test_bounds_are_the_largest_that_torch_takes() -> None:
    model = Model()
    program = capture_program(model, inputs, batch=BATCH, seq_len=LENGTH, dtype=torch.float32)
    uses = integer_uses(program)
    assert uses == {0: Use("index", 12), 1: Use("index", 5), 3: Use("target", 7, shift=1)}
    for leaf, use in uses.items():
        batch = inputs(BATCH, LENGTH)
        batch[leaf].fill_(use.below - 1)
        assert model(*batch).isfinite()
        batch[leaf].fill_(use.below)
        with pytest.raises(IndexError):
            model(*batch)


def test_a_shift_is_what_the_loss_does_not_look_at() -> None:
    model, batch = Model(), inputs(BATCH, LENGTH)
    before = model(*batch)
    batch[3][:, 0] = 3
    assert torch.equal(model(*batch), before)
    batch[3][:, 1] = 3
    assert not torch.equal(model(*batch), before)


def test_a_target_of_a_loss_that_is_no_part_of_the_model() -> None:
    def images(batch: int, seq_len: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 3, 4, 4), torch.zeros(batch, dtype=torch.int64)

    model = nn.Sequential(nn.Conv2d(3, 8, 4), nn.Flatten(), nn.Linear(8, 16))
    program = capture_program(model, images, batch=2, seq_len=1, dtype=torch.float32, loss_fn=F.cross_entropy)
    assert integer_uses(program) == {1: Use("target", 16)}
