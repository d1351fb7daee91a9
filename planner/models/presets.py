"""Published models by name: configuration, published parameter count and where that count stands. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from planner.models.configs import (
    DenseDecoderConfig,
    EncoderConfig,
    LatentAttentionConfig,
    ModelConfig,
    MoEDecoderConfig,
    ResNetConfig,
    VisionTransformerConfig,
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published model."""

    name: str
    """Key in ``PRESETS``."""
    config: ModelConfig
    """What ``build`` builds."""
    published_parameters: int
    """Parameter count as published."""
    published_digits: int | None = None
    """Significant digits that the source prints; ``None`` when the count is exact."""
    published_source: str
    """Where the count is published."""
    seq_len: int
    """Tokens per sample when the user gives none (the pre-training length); 1 for images."""
    description: str
    """One line for listings."""

    @property
    def max_seq_len(self) -> int | None:
        """Longest sequence that ``inputs`` accepts; ``None`` for images."""
        return self.config.max_seq_len


def _gpt(*, dim: int, num_layers: int, num_heads: int, max_seq_len: int) -> DenseDecoderConfig:
    return DenseDecoderConfig(
        vocab_size=50_257, max_seq_len=max_seq_len, dim=dim, num_layers=num_layers,
        num_heads=num_heads, num_kv_heads=num_heads, head_dim=dim // num_heads, hidden_dim=4 * dim,
        activation="gelu_tanh", norm="layer", norm_eps=1e-5, positions="learned",
        bias=True, fused_qkv=True, tied_embedding=True,
    )  # fmt: skip


def _llama(
    *, dim: int, num_layers: int, num_heads: int, num_kv_heads: int, hidden_dim: int,
    vocab_size: int, max_seq_len: int, rope_theta: float,
) -> DenseDecoderConfig:  # fmt: skip
    return DenseDecoderConfig(
        vocab_size=vocab_size, max_seq_len=max_seq_len, dim=dim, num_layers=num_layers,
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=dim // num_heads, hidden_dim=hidden_dim,
        activation="swiglu", norm="rms", norm_eps=1e-5, positions="rotary", rope_theta=rope_theta,
    )  # fmt: skip


def _gpt2(name: str, parameters: int, **shape: int) -> Preset:
    return Preset(
        name=name, config=_gpt(max_seq_len=1024, **shape), seq_len=1024, published_parameters=parameters,
        published_source=f"Hugging Face model {name}, number of parameters",
        description="LayerNorm, learned positions, GELU, tied embedding",
    )  # fmt: skip


def _gpt3(name: str, parameters: int, digits: int, source: str, **shape: int) -> Preset:
    return Preset(
        name=name, config=_gpt(max_seq_len=2048, **shape), seq_len=2048, published_parameters=parameters,
        published_digits=digits, published_source=f"arXiv 2005.14165, {source}",
        description="as GPT-2, dense attention in every layer",
    )  # fmt: skip


def _llama2(name: str, parameters: int, size: str, **shape: int) -> Preset:
    return Preset(
        name=name, config=_llama(vocab_size=32_000, max_seq_len=4096, rope_theta=10_000.0, **shape),
        seq_len=4096, published_parameters=parameters,
        published_source=f"Hugging Face model meta-llama/Llama-2-{size}-hf, safetensors total",
        description="RMSNorm, rotary positions, SwiGLU",
    )  # fmt: skip


def _llama3(name: str, parameters: int, size: str, **shape: int) -> Preset:
    # The position limit is that of Llama 3.1, whose shapes are those of Llama 3; pre-training is at 8,192.
    return Preset(
        name=name, config=_llama(vocab_size=128_256, max_seq_len=131_072, rope_theta=500_000.0, **shape),
        seq_len=8192, published_parameters=parameters,
        published_source=f"Hugging Face model meta-llama/Llama-3.1-{size}, safetensors total",
        description="as Llama 2 with grouped-query attention",
    )  # fmt: skip


_MIXTRAL_8X7B = MoEDecoderConfig(
    vocab_size=32_000, max_seq_len=32_768, dim=4096, num_layers=32,
    num_heads=32, num_kv_heads=8, head_dim=128, hidden_dim=14_336,
    activation="swiglu", norm="rms", norm_eps=1e-5, positions="rotary", rope_theta=1_000_000.0,
    num_experts=8, top_k=2, expert_hidden_dim=14_336,
)  # fmt: skip

_QWEN3_30B_A3B = MoEDecoderConfig(
    vocab_size=151_936, max_seq_len=40_960, dim=2048, num_layers=48,
    num_heads=32, num_kv_heads=4, head_dim=128, hidden_dim=6144, qk_norm=True,
    activation="swiglu", norm="rms", norm_eps=1e-6, positions="rotary", rope_theta=1_000_000.0,
    num_experts=128, top_k=8, expert_hidden_dim=768,
)  # fmt: skip

_DEEPSEEK_V3 = MoEDecoderConfig(
    vocab_size=129_280, max_seq_len=163_840, dim=7168, num_layers=61,
    num_heads=128, num_kv_heads=128, head_dim=192, hidden_dim=18_432,
    latent_attention=LatentAttentionConfig(q_rank=1536, kv_rank=512, rope_head_dim=64, v_head_dim=128),
    activation="swiglu", norm="rms", norm_eps=1e-6, positions="rotary", rope_theta=10_000.0,
    num_experts=256, top_k=8, expert_hidden_dim=2048, shared_hidden_dim=2048, num_dense_layers=3,
    score="sigmoid", weight_scale=2.5, num_groups=8, top_groups=4,
)  # fmt: skip

_ALL = (
    _gpt2("gpt2", 124_439_808, dim=768, num_layers=12, num_heads=12),
    _gpt2("gpt2-medium", 354_823_168, dim=1024, num_layers=24, num_heads=16),
    _gpt2("gpt2-large", 774_030_080, dim=1280, num_layers=36, num_heads=20),
    _gpt2("gpt2-xl", 1_557_611_200, dim=1600, num_layers=48, num_heads=25),
    _gpt3("gpt3-6.7b", 6_700_000_000, 2, "table 2.1", dim=4096, num_layers=32, num_heads=32),
    # The table prints a width of 5,140, which 40 heads of 128 contradict; 5,120 is used everywhere since.
    _gpt3("gpt3-13b", 13_000_000_000, 2, "name in table 2.1", dim=5120, num_layers=40, num_heads=40),
    _gpt3("gpt3-175b", 175_000_000_000, 3, "abstract", dim=12_288, num_layers=96, num_heads=96),
    _llama2(
        "llama2-7b", 6_738_415_616, "7b",
        dim=4096, num_layers=32, num_heads=32, num_kv_heads=32, hidden_dim=11_008,
    ),
    _llama2(
        "llama2-13b", 13_015_864_320, "13b",
        dim=5120, num_layers=40, num_heads=40, num_kv_heads=40, hidden_dim=13_824,
    ),
    _llama2(
        "llama2-70b", 68_976_648_192, "70b",
        dim=8192, num_layers=80, num_heads=64, num_kv_heads=8, hidden_dim=28_672,
    ),
    _llama3(
        "llama3-8b", 8_030_261_248, "8B",
        dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, hidden_dim=14_336,
    ),
    _llama3(
        "llama3-70b", 70_553_706_496, "70B",
        dim=8192, num_layers=80, num_heads=64, num_kv_heads=8, hidden_dim=28_672,
    ),
    _llama3(
        "llama3-405b", 405_853_388_800, "405B",
        dim=16_384, num_layers=126, num_heads=128, num_kv_heads=8, hidden_dim=53_248,
    ),
    Preset(
        name="mixtral-8x7b", config=_MIXTRAL_8X7B, seq_len=4096, published_parameters=46_702_792_704,
        published_source="Hugging Face model mistralai/Mixtral-8x7B-v0.1, safetensors total",
        description="8 experts in every layer, 2 per token",
    ),
    Preset(
        name="qwen3-30b-a3b", config=_QWEN3_30B_A3B, seq_len=4096, published_parameters=30_532_122_624,
        published_source="Hugging Face model Qwen/Qwen3-30B-A3B, safetensors total",
        description="128 experts in every layer, 8 per token, query/key norms",
    ),
    Preset(
        name="deepseek-v3", config=_DEEPSEEK_V3, seq_len=4096, published_parameters=671_000_000_000, published_digits=3,
        published_source="arXiv 2412.19437, abstract (the multi-token prediction module is not counted)",
        description="latent attention, 256 routed and 1 shared expert, 8 per token",
    ),
    Preset(
        name="bert-large", seq_len=512, published_parameters=340_000_000, published_digits=2,
        config=EncoderConfig(
            vocab_size=30_522, max_seq_len=512, num_segments=2, dim=1024, num_layers=24, num_heads=16,
            hidden_dim=4096, norm_eps=1e-12,
        ),
        published_source="arXiv 1810.04805, section 3",
        description="uncased, masked language modelling, tied output",
    ),
    Preset(
        name="vit-l-16", seq_len=1, published_parameters=304_326_632,
        config=VisionTransformerConfig(
            image_size=224, patch_size=16, dim=1024, num_layers=24, num_heads=16, hidden_dim=4096, norm_eps=1e-6,
            num_classes=1000,
        ),
        published_source="torchvision.models.ViT_L_16_Weights.IMAGENET1K_V1, num_params",
        description="224 x 224 images",
    ),
    Preset(
        name="resnet-50", seq_len=1, published_parameters=25_557_032,
        config=ResNetConfig(image_size=224, num_blocks=(3, 4, 6, 3), width=64, num_classes=1000),
        published_source="torchvision.models.ResNet50_Weights.IMAGENET1K_V1, num_params",
        description="v1.5 (stride in the 3 x 3 convolution), 224 x 224 images",
    ),
)  # fmt: skip

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
