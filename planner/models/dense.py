"""The dense decoder: GPT-2, GPT-3, Llama 2 and Llama 3, by configuration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from planner.models.configs import DenseDecoderConfig
from planner.models.layers import (
    Attention,
    FeedForward,
    ReferenceModel,
    TransformerBlock,
    make_norm,
    rotary_angles,
    token_loss,
)
from planner.models.mla import LatentAttention


def make_attention(config: DenseDecoderConfig) -> nn.Module:
    """The causal attention that the configuration asks for: grouped-query, or latent."""
    if config.latent_attention:
        return LatentAttention(
            config.dim,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            norm_eps=config.norm_eps,
            latent=config.latent_attention,
        )
    return Attention(
        config.dim,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        causal=True,
        bias=config.bias,
        fused_qkv=config.fused_qkv,
        qk_norm_eps=config.norm_eps if config.qk_norm else None,
    )


def make_block(config: DenseDecoderConfig) -> TransformerBlock:
    """One pre-norm block with a dense feed-forward network."""
    return TransformerBlock(
        attention=make_attention(config),
        feed_forward=FeedForward(config.dim, config.hidden_dim, activation=config.activation, bias=config.bias),
        attention_norm=make_norm(config.norm, config.dim, config.norm_eps),
        ffn_norm=make_norm(config.norm, config.dim, config.norm_eps),
    )


class Decoder(ReferenceModel):
    """Token embedding, ``num_layers`` blocks, a norm and the output: ``(tokens, labels) -> mean cross-entropy``.

    The rotary angles are computed once in ``forward`` and handed to every block, so that no block holds a buffer.
    """

    def __init__(self, config: DenseDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        if config.positions == "learned":
            self.pos_embeddings = nn.Embedding(config.max_seq_len, config.dim)
        if config.embedding_norm:
            self.embedding_norm = make_norm(config.norm, config.dim, config.norm_eps)
        self.layers = nn.ModuleList(self._make_layer(index) for index in range(config.num_layers))
        self.norm = make_norm(config.norm, config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.tie_weights()

    def _make_layer(self, index: int) -> nn.Module:
        return make_block(self.config)

    def tie_weights(self) -> None:
        """Let the output share the token embedding's weight, if the configuration ties them."""
        if self.config.tied_embedding:
            self.output.weight = self.tok_embeddings.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Loss (scalar, float32) of ``tokens [B, S]`` against ``labels [B, S]``; labels are not shifted here."""
        return token_loss(self.logits(tokens), labels)

    def logits(self, tokens: Tensor) -> Tensor:
        """``tokens [B, S]`` -> ``[B, S, vocab_size]``."""
        x = self.tok_embeddings(tokens)
        seq_len = tokens.shape[1]
        rotary: tuple[Tensor, ...] = ()
        if self.config.positions == "rotary":
            rotary = rotary_angles(seq_len, self.config.rope_dim, self.config.rope_theta, like=x)
        elif self.config.positions == "learned":
            x = x + self.pos_embeddings(torch.arange(seq_len, device=tokens.device))
        if self.config.embedding_norm:
            x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x, *rotary)
        return self.output(self.norm(x))
