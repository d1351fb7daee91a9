"""The mixture-of-experts decoder: Mixtral, Qwen3-MoE and DeepSeek-V3, by configuration.

Dropless routing without data-dependent shapes. Of T = B S tokens, each visits k of E experts:

1. the router scores ``[T, E]`` and picks k experts and their weights per token, ``[T, k]``;
2. the T k visits are sorted by expert, so that each expert's rows are contiguous in ``[T k, D]``, and a histogram of
   fixed length E gives the end of each expert's rows;
3. grouped matrix products run all experts at once; the rows are put back in token order, weighted and summed.

Rows of ``grouped_mm``'s operands must be multiples of 16 bytes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.configs import Activation, MoEDecoderConfig
from planner.models.dense import Decoder, make_attention, make_block
from planner.models.layers import INIT_STD, FeedForward, make_norm


class Router(nn.Module):
    """Chooses ``top_k`` of ``num_experts`` for each token.

    Scores are a softmax or sigmoid of ``gate(x)`` in float32. With ``sigmoid``, ``expert_bias`` is added to the scores
    for the choice but not to the weights; training moves it outside of autograd, hence a buffer (arXiv 2412.19437,
    section 2.1.2). With groups, only experts of the ``top_groups`` groups with the highest sum of their two best scores
    may be chosen.
    """

    expert_bias: Tensor

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.dim, config.num_experts, bias=False)
        if config.score == "sigmoid":
            self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))

    def reset_parameters(self) -> None:
        if self.config.score == "sigmoid":
            self.expert_bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x [T, D]`` -> weights ``[T, k]`` in the dtype of ``x``, expert ids ``[T, k]`` (int64)."""
        logits = self.gate(x).float()
        if self.config.score == "sigmoid":
            scores = logits.sigmoid()
            preference = scores + self.expert_bias
        else:
            scores = preference = logits.softmax(dim=-1)
        chosen = self._limit_groups(preference).topk(self.config.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.config.normalize_weights:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return (weights * self.config.weight_scale).to(x.dtype), chosen

    def _limit_groups(self, preference: Tensor) -> Tensor:
        """``[T, E]`` -> ``[T, E]`` with minus infinity outside of each token's ``top_groups`` groups."""
        if self.config.num_groups == 1:
            return preference
        groups = preference.unflatten(-1, (self.config.num_groups, -1))
        group_scores = groups.topk(2, dim=-1).values.sum(dim=-1)
        kept = group_scores.topk(self.config.top_groups, dim=-1).indices
        outside = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, kept, False)
        return groups.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(-2)


class Experts(nn.Module):
    """E `FeedForward` networks side by side: w1 and, if gated, w3 ``[E, hidden, D]``, w2 ``[E, D, hidden]``."""

    def __init__(self, num_experts: int, dim: int, hidden_dim: int, *, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.w1 = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.w2 = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))
        if activation == "swiglu":
            self.w3 = nn.Parameter(torch.empty(num_experts, hidden_dim, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.parameters():
            nn.init.normal_(weight, std=INIT_STD)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """``x [N, D]`` sorted by expert, ``ends [E]`` (int32) where each expert's rows end -> ``[N, D]``."""
        hidden = F.grouped_mm(x, self.w1.transpose(-2, -1), offs=ends)
        if self.activation == "swiglu":
            hidden = F.silu(hidden) * F.grouped_mm(x, self.w3.transpose(-2, -1), offs=ends)
        else:
            hidden = F.gelu(hidden, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return F.grouped_mm(hidden, self.w2.transpose(-2, -1), offs=ends)


class MoE(nn.Module):
    """Router, routed experts and, if there are any, shared experts, over ``[B, S, D]``."""

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config.num_experts, config.dim, config.expert_hidden_dim, activation=config.activation)
        self.shared_experts = (
            FeedForward(config.dim, config.shared_hidden_dim, activation=config.activation)
            if config.shared_hidden_dim
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(tokens)
        out = self._routed(tokens, weights, chosen).view_as(x)
        return out if self.shared_experts is None else out + self.shared_experts(x)

    def _routed(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """``tokens [T, D]``, ``weights`` and ``chosen [T, k]`` -> weighted sum of the chosen experts ``[T, D]``."""
        num_experts, top_k = self.experts.w1.shape[0], chosen.shape[1]
        visits = chosen.flatten()
        order = visits.argsort(stable=True)
        counts = visits.new_zeros(num_experts).scatter_add(0, visits, torch.ones_like(visits))
        ends = counts.cumsum(0).to(torch.int32)

        out = self.experts(tokens.index_select(0, order // top_k), ends)

        # Gathering by the inverse permutation, then summing, is deterministic where an atomic scatter-add is not.
        out = out.index_select(0, order.argsort()).unflatten(0, (-1, top_k))
        return (out * weights.unsqueeze(-1)).sum(dim=1)


class MoEBlock(nn.Module):
    """The pre-norm block ``x += attention(norm(x)); x += moe(norm(x))`` over ``[B, S, D]``."""

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config.norm, config.dim, config.norm_eps)
        self.attention = make_attention(config)
        self.ffn_norm = make_norm(config.norm, config.dim, config.norm_eps)
        self.moe = MoE(config)

    def forward(self, x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.moe(self.ffn_norm(x))


class MoEDecoder(Decoder):
    """A decoder whose layers from ``num_dense_layers`` on are mixtures of experts: ``(tokens, labels) -> loss``.

    The loss is the cross-entropy alone, without a load-balancing term.
    """

    config: MoEDecoderConfig

    def _make_layer(self, index: int) -> nn.Module:
        return make_block(self.config) if index < self.config.num_dense_layers else MoEBlock(self.config)
