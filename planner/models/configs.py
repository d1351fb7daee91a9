"""What a reference model is made of: one frozen configuration per family. Nothing here imports torch.

A shrunken model of the same shape is ``dataclasses.replace(config, num_layers=2, ...)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Activation = Literal["swiglu", "gelu", "gelu_tanh"]
"""``swiglu`` is gated (three matrices); ``gelu`` (exact) and ``gelu_tanh`` are plain (two matrices)."""


@dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    q_rank: int | None
    """Width of the compressed query; ``None`` leaves queries uncompressed (DeepSeek-V2-Lite)."""
    kv_rank: int
    """Width of the compressed key and value."""
    rope_head_dim: int
    """Part of each query/key head that is rotated; its key is shared by all heads."""
    v_head_dim: int
    """Width of a value head."""


@dataclass(frozen=True, kw_only=True)
class DenseDecoderConfig:
    """A causal decoder: GPT-2, GPT-3, BLOOM, Llama 2 and Llama 3."""

    vocab_size: int
    """Rows of the token embedding and of the output."""
    max_seq_len: int
    """Rows of the learned position table, or the longest context the rotary model was released for."""
    dim: int
    """Width of the residual stream."""
    num_layers: int
    """Number of transformer blocks."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads: ``num_heads`` is multi-head, 1 is multi-query, between is grouped-query attention."""
    head_dim: int
    """Width of a query/key head (and of a value head without latent attention)."""
    hidden_dim: int
    """Inner width of the dense feed-forward network."""
    activation: Activation
    """Shape and non-linearity of the feed-forward networks, experts among them."""
    norm: Literal["rms", "layer"]
    """``nn.RMSNorm`` or ``nn.LayerNorm`` (with bias)."""
    norm_eps: float
    """Added to the mean square (or variance) in every norm."""
    positions: Literal["rotary", "learned", "none"]
    """Rotation of queries and keys, a table added to the token embedding, or neither. ALiBi, which adds a line to the
    scores inside of the attention kernel (arXiv 2108.12409), has the parameters and the traffic of ``none``."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    bias: bool = False
    """Whether the linear layers of the blocks have a bias."""
    fused_qkv: bool = False
    """One projection ``wqkv`` in place of ``wq``, ``wk`` and ``wv``."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotation (Qwen3)."""
    embedding_norm: bool = False
    """Whether the token embedding is normalised before the first block (BLOOM)."""
    tied_embedding: bool = False
    """Whether the output shares the token embedding's weight."""
    latent_attention: LatentAttentionConfig | None = None
    """Replaces grouped-query attention when given (DeepSeek-V3)."""

    @property
    def rope_dim(self) -> int:
        """Rotated width of a query/key head."""
        return self.latent_attention.rope_head_dim if self.latent_attention else self.head_dim


@dataclass(frozen=True, kw_only=True)
class MoEDecoderConfig(DenseDecoderConfig):
    """A decoder whose feed-forward networks are mixtures of experts: Mixtral, Qwen3-MoE, DeepSeek-V3."""

    num_experts: int
    """Routed experts per layer."""
    top_k: int
    """Routed experts that each token visits."""
    expert_hidden_dim: int
    """Inner width of one expert."""
    shared_hidden_dim: int = 0
    """Inner width of the network that every token visits: all shared experts together; 0 is none."""
    num_dense_layers: int = 0
    """Leading layers that keep the dense network of width ``hidden_dim``."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """Router score; ``sigmoid`` adds the balancing bias of arXiv 2412.19437, section 2.1.2, to the choice."""
    normalize_weights: bool = True
    """Whether the weights of a token's chosen experts are divided by their sum."""
    weight_scale: float = 1.0
    """Factor on the routed experts' weights."""
    num_groups: int = 1
    """Groups that the experts are divided into for group-limited routing; 1 is no limit."""
    top_groups: int = 1
    """Groups that each token may choose its experts from."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A bidirectional encoder trained with masked language modelling: BERT."""

    vocab_size: int
    """Rows of the token embedding and of the tied output."""
    max_seq_len: int
    """Rows of the learned position table."""
    num_segments: int
    """Rows of the segment embedding."""
    dim: int
    """Width of the residual stream."""
    num_layers: int
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads of width ``dim / num_heads``."""
    hidden_dim: int
    """Inner width of the feed-forward network."""
    norm_eps: float
    """Added to the variance in every LayerNorm."""


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig:
    """An image classifier over a sequence of patches: ViT."""

    image_size: int
    """Height and width of the input in pixels."""
    patch_size: int
    """Height and width of one patch in pixels."""
    dim: int
    """Width of the residual stream."""
    num_layers: int
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads of width ``dim / num_heads``."""
    hidden_dim: int
    """Inner width of the feed-forward network."""
    norm_eps: float
    """Added to the variance in every LayerNorm."""
    num_classes: int
    """Rows of the classifier."""

    max_seq_len: ClassVar[None] = None


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A residual convolutional network of bottleneck blocks: ResNet-50 and deeper."""

    image_size: int
    """Height and width of the input in pixels."""
    num_blocks: tuple[int, int, int, int]
    """Bottleneck blocks in ``layer1`` to ``layer4``."""
    width: int
    """Inner channels of ``layer1``; each later stage doubles them, and a block's output is four times as wide."""
    num_classes: int
    """Rows of the classifier."""

    max_seq_len: ClassVar[None] = None


ModelConfig = DenseDecoderConfig | MoEDecoderConfig | EncoderConfig | VisionTransformerConfig | ResNetConfig
