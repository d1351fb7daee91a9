"""A small model cut into stages by hand, to test what drives stages without what makes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from planner.plan import Candidate

VOCABULARY, WIDTH, LENGTH = 30, 12, 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self, num_blocks: int = 4, *, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


class Begin(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embed = model.embed

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embed(tokens)


class End(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.norm, self.head = model.norm, model.head

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


class Stage(nn.Module):
    """Stage ``index`` of so many, with as many blocks each."""

    def __init__(self, model: Model, index: int, num_stages: int) -> None:
        super().__init__()
        self.first, self.last = index == 0, index == num_stages - 1
        share = len(model.blocks) // num_stages
        self.blocks = list(range(index * share, (index + 1) * share))
        units: list[nn.Module] = [model.blocks[i] for i in self.blocks]
        self.units = nn.ModuleList([Begin(model)] * self.first + units + [End(model)] * self.last)
        self.groups = [[unit] for unit in self.units]
        if self.first and self.last and model.head.weight is model.embed.weight:
            self.groups = [[self.units[0], self.units[-1]], *self.groups[1:-1]]

    def forward(self, *crossing: torch.Tensor, b0: torch.Tensor, b1: torch.Tensor) -> torch.Tensor:
        x = b0 if self.first else crossing[0]
        for unit in self.units:
            x = unit(x, b1) if isinstance(unit, End) else unit(x)
        return x

    def crossing(self, batch: int, device: str = "meta") -> tuple[torch.Tensor, ...]:
        return (torch.empty(batch, LENGTH, WIDTH, device=device, requires_grad=True),)


def candidate(**changes: object) -> Candidate:
    given = {"pp": 1, "dp_replicate": 1, "dp_shard": 1, "tp": 1, "sequence_parallel": False, "zero_stage": 0}
    given |= {"microbatch_size": 2, "num_microbatches": 1, "recompute": "none", **changes}
    return Candidate(**given)  # type: ignore[arg-type]


def batch(samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (samples, LENGTH), generator=generator)
    return tokens, torch.randint(0, VOCABULARY, (samples, LENGTH), generator=generator)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def unsharded_gradients(model: Model, tensors: Sequence[torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = model(*tensors)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
