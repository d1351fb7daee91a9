"""The decoder that a measured run trained, from the sizes that its source names.

Sources print sizes, rarely the rest. The rest follows from the kind of model: a gated network goes with RMSNorm, rotary
positions and no biases (Llama), a plain one with LayerNorm, learned positions and biases (GPT-2); families that are
known to differ are listed by their names. Every rule is one of a family, and whatever it adds is said in words.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from planner.models import DenseDecoderConfig, LatentAttentionConfig, MoEDecoderConfig
from planner.validation.cases import CannotPriceError


class _Style(NamedTuple):
    """What a family has in place of what its kind of network suggests."""

    pattern: str
    """Found in the model's name, in lower case."""
    fields: dict[str, Any]
    words: str


_STYLES = (
    _Style("^bloom", {"positions": "none", "embedding_norm": True}, "ALiBi and a norm after the embedding"),
    _Style("^baichuan2?.13b", {"positions": "none"}, "ALiBi"),
    _Style("^gpt-neox", {"positions": "rotary"}, "rotary positions"),
    _Style("^nemotron", {"positions": "rotary", "bias": False}, "rotary positions, no biases, squared ReLU as GELU"),
    _Style("^gemma", {"norm": "rms", "positions": "rotary", "bias": False}, "RMSNorm, rotary positions, no biases"),
    _Style("^qwen3", {"qk_norm": True}, "norms of queries and keys"),
    _Style("^(code)?qwen(2|1.5)|^chatglm|^glm", {}, "no biases of queries, keys and values"),
)
_VOCABULARIES = (("^aquila", 100_008), ("^gpt", 50_257))
"""Rows of the embedding where the source names none: the family's tokenizer (BAAI/Aquila-7B, GPT-2)."""

_DEEPSEEK = r"^deepseek.?v?([23])"
_DEEPSEEK_HEAD = {"rope_head_dim": 64, "v_head_dim": 128, "kv_rank": 512}
_DEEPSEEK_NOPE_HEAD_DIM = 128
_DEEPSEEK_Q_RANK = 1536
_DEEPSEEK_V3_LAYERS = 61


def config_of(
    *,
    model: str,
    layers: int | None,
    hidden: int | None,
    ffn: int | None,
    heads: int | None,
    kv_heads: int | None,
    head_dim: int | None,
    vocab: int | None,
    seq_len: int | None,
    gated_mlp: bool | None,
    tied_embeddings: bool | None,
    experts: int | None,
    topk: int | None,
    moe_ffn: int | None,
    shared_expert_ffn: int | None,
) -> tuple[DenseDecoderConfig | MoEDecoderConfig, tuple[str, ...]]:
    """The decoder of those sizes, and what was assumed beyond them.

    Arguments are named as in the file of measured rows; ``None`` is what the source does not say. ``hidden`` is the
    width of the residual stream, ``ffn`` the inner width of the dense network, ``moe_ffn`` of one expert,
    ``shared_expert_ffn`` of all shared experts together.

    Raises:
        CannotPriceError: a field without which nothing can be priced is missing, or heads do not divide the width.
    """
    name = model.lower()
    assumed: list[str] = []

    def needed(field: str, value: int | None) -> int:
        if value is None:
            raise CannotPriceError(f"{model}: field {field!r} is missing, and no rule of its family gives it")
        return value

    def default(field: str, value: int | None, otherwise: int | None, why: str) -> int:
        if value is None and otherwise is not None:
            assumed.append(f"{field} {otherwise:,}: {why}")
            return otherwise
        return needed(field, value)

    dim, num_heads, num_layers = needed("hidden", hidden), needed("heads", heads), needed("layers", layers)
    gated = bool(needed("gated_mlp", gated_mlp))
    num_kv_heads = default("kv_heads", kv_heads, num_heads, "as many as heads")
    if ffn is None and moe_ffn is None and not gated:
        ffn = default("ffn", ffn, 4 * dim, "four times the width")
    style = _style(name, gated, assumed)
    latent = _latent_attention(name, assumed)
    if latent is not None:
        head_dim, num_kv_heads = _DEEPSEEK_NOPE_HEAD_DIM + latent.rope_head_dim, num_heads
    elif head_dim is None:
        if dim % num_heads:
            raise CannotPriceError(f"{model}: field 'head_dim' is missing, and {num_heads} heads do not divide {dim}")
        head_dim = dim // num_heads
    dense: dict[str, Any] = {
        "vocab_size": default("vocab", vocab, _vocabulary(name), "its family's tokenizer"),
        "max_seq_len": needed("seq_len", seq_len),
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "hidden_dim": needed("ffn", moe_ffn if ffn is None else ffn),
        "activation": "swiglu" if gated else "gelu_tanh",
        "norm_eps": 1e-5,
        "fused_qkv": not gated and num_kv_heads == num_heads,
        "tied_embedding": _tied(name, dim, gated, assumed) if tied_embeddings is None else tied_embeddings,
        "latent_attention": latent,
    }
    if experts is None:
        return DenseDecoderConfig(**dense | style), tuple(assumed)
    sizes = {
        "num_experts": experts,
        "top_k": needed("topk", topk),
        "expert_hidden_dim": default("moe_ffn", moe_ffn, ffn, "as wide as the dense network"),
        "shared_hidden_dim": shared_expert_ffn or 0,
    }
    routing = _deepseek_experts(name, num_layers, sizes, assumed)
    return MoEDecoderConfig(**dense | style | sizes | routing), tuple(assumed)


def _style(name: str, gated: bool, assumed: list[str]) -> dict[str, Any]:
    """Norms, positions and biases."""
    if gated:
        style: dict[str, Any] = {"norm": "rms", "positions": "rotary", "bias": False}
        assumed.append("RMSNorm, rotary positions and no biases, as models with gated networks have")
    else:
        style = {"norm": "layer", "positions": "learned", "bias": True}
        assumed.append("LayerNorm, learned positions and biases, as models with plain networks have")
    for family in _STYLES:
        if re.search(family.pattern, name):
            style |= family.fields
            assumed.append(f"{family.words}, by its family")
    return style


def _vocabulary(name: str) -> int | None:
    return next((size for pattern, size in _VOCABULARIES if re.search(pattern, name)), None)


def _tied(name: str, dim: int, gated: bool, assumed: list[str]) -> bool:
    """GPT-2 ties the output to the embedding, Llama does not; Qwen does in models narrower than 2,048."""
    tied = not gated or ("qwen" in name and dim < 2048)
    assumed.append(f"embedding and output {'share their weight' if tied else 'have a weight each'}, as its family has")
    return tied


def _latent_attention(name: str, assumed: list[str]) -> LatentAttentionConfig | None:
    """One shape in DeepSeek-V2 and V3; the Lite model does not compress queries (arXiv 2405.04434, appendix B)."""
    if not re.search(_DEEPSEEK, name):
        return None
    assumed.append("latent attention as published: ranks 1,536 and 512, heads of 128 + 64, values of 128")
    return LatentAttentionConfig(q_rank=None if "lite" in name else _DEEPSEEK_Q_RANK, **_DEEPSEEK_HEAD)


def _deepseek_experts(name: str, num_layers: int, sizes: dict[str, int], assumed: list[str]) -> dict[str, Any]:
    """Routing, shared experts and leading dense layers: arXiv 2405.04434 (V2), arXiv 2412.19437, section 4.2 (V3)."""
    found = re.search(_DEEPSEEK, name)
    if found is None:
        return {}
    third = found[1] == "3"
    dense = 3 if third and num_layers >= _DEEPSEEK_V3_LAYERS else 1
    assumed.append(f"{dense} leading dense layer{'s' if dense > 1 else ''}")
    fields: dict[str, Any] = {"num_dense_layers": dense}
    if not sizes["shared_hidden_dim"]:
        fields["shared_hidden_dim"] = (1 if third else 2) * sizes["expert_hidden_dim"]
        assumed.append(f"shared_expert_ffn {fields['shared_hidden_dim']:,}, as published")
    if third:
        fields |= {"score": "sigmoid", "weight_scale": 2.5}
    else:
        fields |= {"normalize_weights": False, "weight_scale": 1.0 if "lite" in name else 16.0}
    if "lite" not in name and sizes["num_experts"] % 8 == 0:
        fields |= {"num_groups": 8, "top_groups": 4 if third else 3}
    return fields
