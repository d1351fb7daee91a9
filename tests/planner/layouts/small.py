"""Small models of every family, traced once each."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from planner import models
from planner.capture.sources import capture_model
from planner.capture.trace import trace
from planner.graph import ModelGraph
from planner.models.configs import LatentAttentionConfig

SEQ_LEN = 8
"""At which blocks are executed."""

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gqa": ("llama3-8b", {"num_heads": 8, "num_kv_heads": 4, "head_dim": 4, "hidden_dim": 24}),
    "mqa": ("llama3-8b", {"num_heads": 4, "num_kv_heads": 1, "head_dim": 8, "hidden_dim": 24}),
    "gpt": ("gpt2", {"num_heads": 4, "num_kv_heads": 4, "head_dim": 8, "hidden_dim": 24, "max_seq_len": 64}),
    "bert": ("bert-large", {"num_heads": 4, "hidden_dim": 24, "max_seq_len": 64}),
    "qwen": ("qwen3-30b-a3b", {"num_heads": 8, "num_kv_heads": 4, "head_dim": 4, "hidden_dim": 24,
                               "num_experts": 4, "top_k": 2, "expert_hidden_dim": 16}),
    "mixtral": ("mixtral-8x7b", {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "hidden_dim": 16,
                                 "num_experts": 4, "expert_hidden_dim": 16}),
    "mla": ("deepseek-v3", {"num_dense_layers": 1, "num_heads": 4, "num_kv_heads": 4, "head_dim": 12, "hidden_dim": 24,
                            "num_experts": 8, "top_k": 2, "expert_hidden_dim": 16, "num_groups": 4, "top_groups": 2,
                            "latent_attention": LatentAttentionConfig(q_rank=16, kv_rank=24, rope_head_dim=4,
                                                                      v_head_dim=8)}),
}  # fmt: skip


def graph(family: str, *, num_layers: int = 4, vocab_size: int = 40) -> ModelGraph:
    """A model of width 32; images and ``thirds`` have sizes of their own."""
    return _graph(family, num_layers, vocab_size) if family in CONFIGS else _graph(family, 0, 0)


@cache
def _graph(family: str, num_layers: int, vocab_size: int) -> ModelGraph:
    if family == "resnet":
        return _traced("resnet-50", seq_len=1, image_size=32, num_blocks=(2, 1, 1, 1), width=8, num_classes=16)
    if family == "vit":
        return _traced("vit-l-16", seq_len=1, image_size=16, patch_size=4, dim=32, num_layers=2, num_heads=4,
                       hidden_dim=24, num_classes=16)  # fmt: skip
    if family == "thirds":
        return trace(Thirds(), thirds_inputs, name="thirds", seq_len=SEQ_LEN)
    preset, sizes = CONFIGS[family]
    return _traced(preset, seq_len=SEQ_LEN, dim=32, num_layers=num_layers, vocab_size=vocab_size, **sizes)


def _traced(preset: str, *, seq_len: int, **sizes: Any) -> ModelGraph:
    with torch.device("meta"):
        module, inputs = models.build_from_config(replace(models.preset(preset).config, **sizes))
    return trace(module, inputs, name=preset, seq_len=seq_len)


class ThirdsLayer(nn.Module):
    """Attention whose fused projection holds q, k and v one after another, as Hugging Face's GPT-2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (4, 8)).transpose(1, 2) for t in self.qkv(self.norm(x)).split(32, dim=2))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Thirds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 32)
        self.layers = nn.ModuleList(ThirdsLayer() for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return x.float().square().mean()


def thirds_inputs(batch: int, seq_len: int) -> tuple[Tensor, ...]:
    return (torch.empty(batch, seq_len, dtype=torch.int64),)


@cache
def captured(model: str, seq_len: int | None, compute_dtype: str) -> tuple[ModelGraph, int, str]:
    """A built-in model of full size."""
    return capture_model(model, seq_len=seq_len, compute_dtype=compute_dtype)


def capture_once(model: Any, *, seq_len: int | None, compute_dtype: str, **rest: Any) -> tuple[ModelGraph, int, str]:
    """Stands in for `capture_model`: each built-in is traced once per process."""
    if isinstance(model, str) and model in models.names():
        return captured(model, seq_len, compute_dtype)
    return capture_model(model, seq_len=seq_len, compute_dtype=compute_dtype, **rest)
