"""Shrunken configurations of every family, and Hugging Face weights under the names used here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from planner.models import (
    DenseDecoderConfig,
    EncoderConfig,
    LatentAttentionConfig,
    MoEDecoderConfig,
    ResNetConfig,
    VisionTransformerConfig,
)

LLAMA = DenseDecoderConfig(
    vocab_size=96, max_seq_len=64, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, hidden_dim=48,
    activation="swiglu", norm="rms", norm_eps=1e-5, positions="rotary",
)  # fmt: skip
GPT2 = DenseDecoderConfig(
    vocab_size=96, max_seq_len=16, dim=32, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=8, hidden_dim=128,
    activation="gelu_tanh", norm="layer", norm_eps=1e-5, positions="learned",
    bias=True, fused_qkv=True, tied_embedding=True,
)  # fmt: skip
MIXTRAL = MoEDecoderConfig(
    vocab_size=96, max_seq_len=64, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, hidden_dim=48,
    activation="swiglu", norm="rms", norm_eps=1e-5, positions="rotary", num_experts=4, top_k=2, expert_hidden_dim=48,
)  # fmt: skip
QWEN3_MOE = MoEDecoderConfig(
    vocab_size=96, max_seq_len=64, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, hidden_dim=48,
    activation="swiglu", norm="rms", norm_eps=1e-6, positions="rotary", qk_norm=True,
    num_experts=8, top_k=3, expert_hidden_dim=24,
)  # fmt: skip
DEEPSEEK = MoEDecoderConfig(
    vocab_size=96, max_seq_len=64, dim=32, num_layers=3, num_heads=4, num_kv_heads=4, head_dim=24, hidden_dim=48,
    latent_attention=LatentAttentionConfig(q_rank=24, kv_rank=16, rope_head_dim=8, v_head_dim=16),
    activation="swiglu", norm="rms", norm_eps=1e-6, positions="rotary",
    num_experts=8, top_k=3, expert_hidden_dim=24, shared_hidden_dim=24, num_dense_layers=1,
    score="sigmoid", weight_scale=2.5, num_groups=4, top_groups=2,
)  # fmt: skip
BERT = EncoderConfig(
    vocab_size=96, max_seq_len=16, num_segments=2, dim=32, num_layers=2, num_heads=4, hidden_dim=64, norm_eps=1e-12
)
VIT = VisionTransformerConfig(
    image_size=32, patch_size=8, dim=32, num_layers=2, num_heads=4, hidden_dim=64, norm_eps=1e-6, num_classes=10
)
RESNET = ResNetConfig(image_size=64, num_blocks=(2, 1, 1, 1), width=8, num_classes=10)

TINY = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "mixtral": MIXTRAL,
    "qwen3-moe": QWEN3_MOE,
    "deepseek": DEEPSEEK,
    "bert": BERT,
    "vit": VIT,
    "resnet": RESNET,
}

# Applied in this order; what the Llama-like checkpoints of Hugging Face call a thing, and what it is called here.
LLAMA_NAMES = {
    "model.": "",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.": "attention.",
    "q_a_layernorm": "q_norm",
    "kv_a_layernorm": "kv_norm",
    "q_a_proj": "wq_a",
    "q_b_proj": "wq_b",
    "kv_a_proj_with_mqa": "wkv_a",
    "kv_b_proj": "wkv_b",
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "mlp.gate.e_score_correction_bias": "moe.router.expert_bias",
    "mlp.gate.": "moe.router.gate.",
    "mlp.experts.": "moe.experts.",
    "mlp.shared_experts.": "moe.shared_experts.",
    "mlp.": "feed_forward.",
    "gate_proj": "w1",
    "up_proj": "w3",
}


def randomize(model: nn.Module) -> None:
    """Give every parameter a value that a wrong norm, bias or order cannot hide behind."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def rename(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """``state`` with every key's parts replaced in the order of ``names``."""
    renamed = {}
    for key, value in state.items():
        for theirs, ours in names.items():
            key = key.replace(theirs, ours)  # noqa: PLW2901
        renamed[key] = value
    return renamed


def from_llama_like(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Llama, Mixtral, Qwen3-MoE or DeepSeek-V3 state dict under our names, gate and up projection taken apart."""
    ours = {}
    for key, value in rename(state, LLAMA_NAMES).items():
        if key.endswith("experts.gate_w3"):  # their gate_up_proj
            ours[key.replace("gate_w3", "w1")], ours[key.replace("gate_w3", "w3")] = value.chunk(2, dim=1)
        else:
            ours[key.replace("down_proj", "w2")] = value
    return ours


def tokens(vocab_size: int, *, batch_size: int = 2, seq_len: int = 12) -> Tensor:
    """Random token ids."""
    return torch.randint(vocab_size, (batch_size, seq_len), generator=torch.Generator().manual_seed(1))
