"""What each rank of one mesh axis holds of a tensor, and the tensor again from all pieces."""

from __future__ import annotations

import torch
from torch import Tensor

from planner.layouts.placements import Placement


def cut(whole: Tensor, placement: Placement, rank: int, num_ranks: int) -> Tensor:
    """A rank's part along the sharded dim: of each run, what `torch.chunk` gives it."""
    runs = whole.unflatten(placement.dim, (placement.chunks, -1))
    length = runs.shape[placement.dim + 1]
    size = -(-length // num_ranks)
    start, end = (min(length, size * r) for r in (rank, rank + 1))
    return runs.narrow(placement.dim + 1, start, end - start).flatten(placement.dim, placement.dim + 1)


def lay(whole: Tensor, placement: Placement, num_ranks: int, random: torch.Generator) -> list[Tensor]:
    """Each rank's tensor; partial sums are random ones."""
    if placement.kind == "S":
        return [cut(whole, placement, r, num_ranks).clone() for r in range(num_ranks)]
    if placement.kind != "P":
        return [whole.clone() for _ in range(num_ranks)]
    parts = [noise(whole, random) for _ in range(num_ranks - 1)]
    return [*parts, whole - sum(parts)]


def noise(like: Tensor, random: torch.Generator) -> Tensor:
    """Random numbers of a tensor's shape and dtype."""
    if like.is_floating_point():
        return torch.randn(like.shape, generator=random, dtype=like.dtype)
    return torch.randint(-5, 5, like.shape, generator=random).to(like.dtype)


def put_together(parts: list[Tensor], placement: Placement) -> Tensor:
    """The whole tensor; where every rank should hold all of it, it is also checked that each does."""
    if placement.kind == "P":
        return torch.stack(parts).sum(0).to(parts[0].dtype)
    if placement.kind == "S":
        runs = [part.unflatten(placement.dim, (placement.chunks, -1)) for part in parts]
        return torch.cat(runs, placement.dim + 1).flatten(placement.dim, placement.dim + 1)
    for part in parts[1:]:
        assert close(part, parts[0]), "ranks differ"
    return parts[0]


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding in float64, also where both are infinite or no number."""
    if a.shape != b.shape:
        return False
    return torch.allclose(a.double(), b.double(), rtol=1e-7, atol=1e-8, equal_nan=True)
