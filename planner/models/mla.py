"""Multi-head latent attention of DeepSeek-V2 and V3 (arXiv 2405.04434, section 2.1), in its training form.

Queries and keys/values pass through low-rank latents; each query/key head is a part without position and a rotated part
whose key is one head shared by all:

    q       = wq_b(q_norm(wq_a(x))), or wq(x)            [B, S, H, nope + rope]
    c, kr   = wkv_a(x)                                   [B, S, kv_rank], [B, S, rope]
    kn, v   = wkv_b(kv_norm(c))                          [B, S, H, nope], [B, S, H, v]
    out     = wo(softmax(q [kn, kr]^T / sqrt(nope + rope)) v)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.configs import LatentAttentionConfig
from planner.models.layers import rotate


class LatentAttention(nn.Module):
    """Causal latent attention over ``[B, S, D]`` with ``num_heads`` heads of width ``head_dim = nope + rope``."""

    def __init__(
        self, dim: int, *, num_heads: int, head_dim: int, norm_eps: float, latent: LatentAttentionConfig
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.nope_head_dim = head_dim - latent.rope_head_dim
        self.rope_head_dim = latent.rope_head_dim
        self.kv_rank = latent.kv_rank
        self.v_head_dim = latent.v_head_dim
        self.q_rank = latent.q_rank
        if latent.q_rank is None:
            self.wq = nn.Linear(dim, num_heads * head_dim, bias=False)
        else:
            self.wq_a = nn.Linear(dim, latent.q_rank, bias=False)
            self.q_norm = nn.RMSNorm(latent.q_rank, eps=norm_eps)
            self.wq_b = nn.Linear(latent.q_rank, num_heads * head_dim, bias=False)
        self.wkv_a = nn.Linear(dim, latent.kv_rank + latent.rope_head_dim, bias=False)
        self.kv_norm = nn.RMSNorm(latent.kv_rank, eps=norm_eps)
        self.wkv_b = nn.Linear(latent.kv_rank, num_heads * (self.nope_head_dim + latent.v_head_dim), bias=False)
        self.wo = nn.Linear(num_heads * latent.v_head_dim, dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = self.wq(x) if self.q_rank is None else self.wq_b(self.q_norm(self.wq_a(x)))
        q = q.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q_nope, q_rope = q.split([self.nope_head_dim, self.rope_head_dim], dim=-1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), dim=-1)

        latent, k_rope = self.wkv_a(x).split([self.kv_rank, self.rope_head_dim], dim=-1)
        k_rope = rotate(k_rope.unsqueeze(1), cos, sin)
        kv = self.wkv_b(self.kv_norm(latent)).unflatten(-1, (-1, self.nope_head_dim + self.v_head_dim)).transpose(1, 2)
        k_nope, v = kv.split([self.nope_head_dim, self.v_head_dim], dim=-1)
        k = torch.cat((k_nope, k_rope.expand(-1, k_nope.shape[1], -1, -1)), dim=-1)

        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).flatten(2))
