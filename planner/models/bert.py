"""BERT with the masked-language-modelling head (arXiv 1810.04805).

The next-sentence head and its pooler (1,051,650 parameters in BERT-large) are left out: the rounded count of the paper
holds without them, and the loss is the cross-entropy over tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planner.models.configs import EncoderConfig
from planner.models.layers import Attention, FeedForward, ReferenceModel, token_loss


class BertBlock(nn.Module):
    """The post-norm block ``x = norm(x + attention(x)); x = norm(x + feed_forward(x))`` over ``[B, S, D]``."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = Attention(
            config.dim,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            head_dim=config.dim // config.num_heads,
            causal=False,
            bias=True,
        )
        self.attention_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim, activation="gelu", bias=True)
        self.ffn_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x))
        return self.ffn_norm(x + self.feed_forward(x))


class Bert(ReferenceModel):
    """Embeddings, ``num_layers`` blocks and the language-modelling head: ``(tokens, labels) -> mean cross-entropy``.

    Every position is predicted and every token belongs to the first segment: the shapes, and so the arithmetic, are
    those of pre-training with the head on all positions.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.pos_embeddings = nn.Embedding(config.max_seq_len, config.dim)
        self.segment_embeddings = nn.Embedding(config.num_segments, config.dim)
        self.embedding_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.layers = nn.ModuleList(BertBlock(config) for _ in range(config.num_layers))
        self.head = nn.Linear(config.dim, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the output share the token embedding's weight; its bias is its own."""
        self.output.weight = self.tok_embeddings.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Loss (scalar, float32) of ``tokens [B, S]`` against ``labels [B, S]``."""
        return token_loss(self.logits(tokens), labels)

    def logits(self, tokens: Tensor) -> Tensor:
        """``tokens [B, S]`` -> ``[B, S, vocab_size]``."""
        x = self.tok_embeddings(tokens) + self.segment_embeddings(torch.zeros_like(tokens))
        x = x + self.pos_embeddings(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(F.gelu(self.head(x))))
