"""Dispatch of rows to experts: ranks without rows, placements with replicas, tensors without data."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.runtime.grouped import grouped_mm
from planner.runtime.implementations.experts import Exchange
from planner.runtime.parts import ExpertGroup
from tests.planner.runtime.counting import Counting
from tests.planner.runtime.gloo import run_ranks

NUM_EXPERTS, WIDTH, HIDDEN = 4, 3, 5
PLACEMENTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "in order": (),
    "in another order": ((1,), (0,), (1,), (0,)),
    "with replicas": ((0, 1), (0,), (1,), (0, 1)),
}
COUNTS = {
    "even": ((2, 2, 2, 2), (2, 2, 2, 2)),
    "uneven": ((5, 0, 1, 2), (0, 3, 0, 4)),
    "one expert takes all": ((0, 0, 0, 6), (0, 0, 0, 3)),
    "a rank without rows": ((0, 0, 0, 0), (1, 0, 2, 0)),
}
"""Per rank, rows for each expert."""


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(counts: tuple[int, ...], rank: int) -> tuple[Tensor, Tensor]:
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    return numbers(rank + 1, sum(counts), WIDTH), ends


def exchanged() -> dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]]:
    """Results, gradients of rows and of the own experts' weights."""
    rank, found = dist.get_rank(), {}
    assert dist.group.WORLD is not None
    for placement, holders in PLACEMENTS.items():
        for name, counts in COUNTS.items():
            exchange = Exchange(ExpertGroup(dist.group.WORLD, 2, rank, holders), NUM_EXPERTS)
            rows, ends = rows_of(counts[rank], rank)
            rows.requires_grad_()
            weights = numbers(0, NUM_EXPERTS, WIDTH, HIDDEN)[list(exchange.slots[rank])].requires_grad_()
            way = exchange.plan(rows, ends)
            made = grouped_mm(exchange.there(rows, way), exchange.shared(weights), way.ends)
            back = exchange.back(made, way)
            grads = torch.autograd.grad(back, (rows, weights), numbers(rank + 9, *back.shape))
            found[placement, name] = (back.detach(), *grads)
    return found


@cache
def results() -> list[dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]]]:
    return run_ranks(2, exchanged)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_rows_meet_their_experts_wherever_these_are(placement: str, name: str) -> None:
    weights = numbers(0, NUM_EXPERTS, WIDTH, HIDDEN).requires_grad_()
    wholes = [rows_of(counts, rank) for rank, counts in enumerate(COUNTS[name])]
    leaves = [rows.requires_grad_() for rows, _ in wholes]
    made = [
        torch.cat([part @ w for part, w in zip(rows.tensor_split(ends[:-1].long()), weights, strict=True)])
        for rows, ends in wholes
    ]
    grads = torch.autograd.grad(made, [*leaves, weights], [numbers(r + 9, *m.shape) for r, m in enumerate(made)])
    for rank in range(2):
        back, of_rows, of_weights = results()[rank][placement, name]
        slots = ExpertGroup(None, 2, rank, PLACEMENTS[placement]).slots(NUM_EXPERTS)[rank]
        assert torch.allclose(back, made[rank].detach())
        assert torch.allclose(of_rows, grads[rank])
        assert torch.allclose(of_weights, grads[2][list(slots)])


def without_data() -> list[tuple[str, int]]:
    assert dist.group.WORLD is not None
    exchange = Exchange(ExpertGroup(dist.group.WORLD, 2, dist.get_rank()), NUM_EXPERTS)
    with FakeTensorMode(), Counting() as counting:
        rows = torch.empty(10, WIDTH, requires_grad=True)
        way = exchange.plan(rows, torch.empty(NUM_EXPERTS, dtype=torch.int32))
        made = grouped_mm(exchange.there(rows, way), torch.empty(2, WIDTH, HIDDEN), way.ends)
        back = exchange.back(made, way)
        assert back.shape == (10, HIDDEN)
        back.sum().backward()
        assert rows.grad is not None and rows.grad.shape == rows.shape
    return counting.seen


def test_without_data_every_rank_gets_as_many_rows() -> None:
    counts, row, result = NUM_EXPERTS * 8, 10 * WIDTH * 4, 10 * HIDDEN * 4
    expected = [("all_to_all", num_bytes) for num_bytes in (counts, row, result, result, row)]
    assert run_ranks(2, without_data) == [expected, expected]


@pytest.mark.parametrize("forms", [((6, 3), (2, 3, 4)), ((4, 6), (6, 5))])
def test_grouped_products_and_their_gradients(forms: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (numbers(i, *shape).requires_grad_() for i, shape in enumerate(forms))
    ends = torch.tensor([4, 6], dtype=torch.int32)
    runs = (slice(0, 4), slice(4, 6))
    parts = [a[run] @ b[g] if b.dim() == 3 else a[:, run] @ b[run] for g, run in enumerate(runs)]
    expected = torch.cat(parts) if b.dim() == 3 else torch.stack(parts)
    found = grouped_mm(a, b, ends)
    assert torch.allclose(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), (a, b)), torch.autograd.grad(expected.sum(), (a, b)), strict=True
    ):
        assert torch.allclose(ours, theirs)
