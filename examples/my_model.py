"""A model of your own: a factory that Meshwright can plan.

meshwright plan examples/my_model.py:build --hardware a100-80gb:2x8 --seq-len 2048
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Parallel attention and MLP on one norm (as in PaLM), with a fused projection."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, dim = x.shape
        h = self.norm(x)
        q, k, v = (t.view(batch, length, self.num_heads, -1).transpose(1, 2) for t in self.qkv(h).split(dim, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        return x + self.out(attended) + self.down(F.gelu(self.up(h)))


class Model(nn.Module):
    """A decoder that returns its own loss."""

    def __init__(self, vocab: int = 32_000, dim: int = 4096, num_layers: int = 32, num_heads: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), labels.flatten())


def build():
    """The model and its example inputs; called with ``meta`` as the default device, so no weights are made."""

    def inputs(batch: int, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.zeros(batch, seq_len, dtype=torch.int64)
        return tokens, tokens

    return Model(), inputs
