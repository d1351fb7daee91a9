"""The pieces that the transformer families share: norms, rotary positions, attention, feed-forward, the pre-norm block.

Shapes: B samples, S positions, D = ``dim``, H query heads, G key/value heads, Dh = ``head_dim``. Head counts are never
taken from the configuration in ``forward`` but inferred from the projections, so that a tensor-parallel rank may hold a
part of the heads.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.configs import Activation

INIT_STD = 0.02
"""Standard deviation of freshly initialised matrices (GPT-2)."""


class ReferenceModel(nn.Module):
    """Base of all reference models: filling weights after ``to_empty``, and sharing those that are tied."""

    def tie_weights(self) -> None:
        """Share the tied parameters again (``to_empty`` gives each module its own). Models without any do nothing."""

    def init_weights(self) -> None:
        """Fill all parameters and buffers in place: N(0, 0.02) matrices, zero biases, norms at identity."""
        self.tie_weights()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                nn.init.normal_(module.weight, std=INIT_STD)
                if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                    nn.init.zeros_(bias)
            elif callable(reset := getattr(module, "reset_parameters", None)):
                reset()


def make_norm(kind: Literal["rms", "layer"], dim: int, eps: float) -> nn.Module:
    """``nn.RMSNorm`` (weight) or ``nn.LayerNorm`` (weight and bias) over the last dim."""
    return nn.RMSNorm(dim, eps=eps) if kind == "rms" else nn.LayerNorm(dim, eps=eps)


def rotary_angles(seq_len: int, dim: int, theta: float, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``[S, dim]`` of ``position * theta ** (-2 i / dim)``, i < dim / 2, all frequencies given twice.

    Computed in float32 (bfloat16 cannot hold large positions), returned on the device and in the dtype of ``like``.
    Source: arXiv 2104.09864, section 3.2.2.
    """
    exponents = torch.arange(0, dim, 2, device=like.device, dtype=torch.float32) / dim
    positions = torch.arange(seq_len, device=like.device, dtype=torch.float32)
    angles = positions[:, None] * (theta**-exponents)[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x [B, H, S, dim]`` by ``cos, sin [S, dim]``, pairing element i with element i + dim / 2.

    This is the pairing of the Hugging Face checkpoints; interleaved pairs are the same up to a permutation of weights.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention over ``[B, S, D]``.

    Parameters: ``wq [H Dh, D]``, ``wk`` and ``wv [G Dh, D]``, ``wo [D, H Dh]``. With ``fused_qkv`` the first three are
    one matrix ``wqkv`` whose rows run over key/value groups, each with its H / G query heads, its key head and its
    value head (Megatron-LM's order): so an even slice of the rows, as tensor parallelism takes, holds whole groups.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        causal: bool,
        bias: bool = False,
        fused_qkv: bool = False,
        qk_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.heads_per_group = num_heads // num_kv_heads
        self.causal = causal
        self.fused_qkv = fused_qkv
        if fused_qkv:
            self.wqkv = nn.Linear(dim, (num_heads + 2 * num_kv_heads) * head_dim, bias=bias)
        else:
            self.wq = nn.Linear(dim, num_heads * head_dim, bias=bias)
            self.wk = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
            self.wv = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.q_norm = nn.Identity() if qk_norm_eps is None else nn.RMSNorm(head_dim, eps=qk_norm_eps)
        self.k_norm = nn.Identity() if qk_norm_eps is None else nn.RMSNorm(head_dim, eps=qk_norm_eps)
        self.wo = nn.Linear(num_heads * head_dim, dim, bias=bias)

    def forward(self, x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
        q, k, v = self._heads(x)
        q = self.q_norm(q).transpose(1, 2)
        k = self.k_norm(k).transpose(1, 2)
        v = v.transpose(1, 2)
        if cos is not None and sin is not None:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = self._repeat(k), self._repeat(v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.wo(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x [B, S, D]`` -> q ``[B, S, H, Dh]``, k and v ``[B, S, G, Dh]``."""
        if self.fused_qkv:
            groups = self.wqkv(x).unflatten(-1, (-1, self.heads_per_group + 2, self.head_dim))
            q, k, v = groups.split([self.heads_per_group, 1, 1], dim=-2)
            return q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3)
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        return q, k, v

    def _repeat(self, x: Tensor) -> Tensor:
        """``[B, G, S, Dh]`` -> ``[B, H, S, Dh]``: each key/value head serves ``heads_per_group`` query heads."""
        if self.heads_per_group == 1:
            return x
        batch, groups, seq_len, head_dim = x.shape
        repeated = x.unsqueeze(2).expand(batch, groups, self.heads_per_group, seq_len, head_dim)
        return repeated.reshape(batch, groups * self.heads_per_group, seq_len, head_dim)


class FeedForward(nn.Module):
    """``w2(silu(w1 x) * w3 x)`` (SwiGLU, arXiv 2002.05202) or ``w2(gelu(w1 x))`` over ``[B, S, D]``.

    Parameters: ``w1`` and ``w3 [hidden_dim, D]``, ``w2 [D, hidden_dim]``.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: Activation, bias: bool = False) -> None:
        super().__init__()
        self.activation = activation
        self.w1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.w2 = nn.Linear(hidden_dim, dim, bias=bias)
        if activation == "swiglu":
            self.w3 = nn.Linear(dim, hidden_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "swiglu":
            return self.w2(F.silu(self.w1(x)) * self.w3(x))
        return self.w2(F.gelu(self.w1(x), approximate="tanh" if self.activation == "gelu_tanh" else "none"))


class TransformerBlock(nn.Module):
    """The pre-norm block ``x += attention(norm(x)); x += feed_forward(norm(x))`` over ``[B, S, D]``."""

    def __init__(
        self, *, attention: nn.Module, feed_forward: nn.Module, attention_norm: nn.Module, ffn_norm: nn.Module
    ) -> None:
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.ffn_norm = ffn_norm
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of ``logits [B, S, V]``, in float32, against ``labels [B, S]``."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
