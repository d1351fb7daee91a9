"""Blocks of traced models, with the values that their forward pass makes of random inputs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from planner.capture.sources import load_model
from planner.capture.trace import trace
from planner.graph import Block, ModelGraph
from tests.planner.layouts.small import SEQ_LEN, graph
from tests.planner.layouts.strategies.running import run_op

BATCH = 2
SMALL = ("gqa", "mqa", "gpt", "thirds", "bert", "qwen", "mixtral", "mla", "resnet", "vit")
DECODER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": DECODER | {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": 2},
    "mixtral": DECODER | {"architectures": ["MixtralForCausalLM"], "num_key_value_heads": 2, "num_local_experts": 4},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64,
             "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0},
    "bert": DECODER | {"architectures": ["BertForMaskedLM"]},
    "vit": DECODER | {"architectures": ["ViTForImageClassification"], "image_size": 16, "patch_size": 8},
    "t5": {"architectures": ["T5ForConditionalGeneration"], "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
           "num_decoder_layers": 2, "num_heads": 4, "vocab_size": 64, "decoder_start_token_id": 0, "pad_token_id": 0},
    "mamba2": {"architectures": ["Mamba2ForCausalLM"], "hidden_size": 32, "num_heads": 4, "head_dim": 16,
               "state_size": 8, "n_groups": 2, "num_hidden_layers": 2, "vocab_size": 64, "chunk_size": 4},
}  # fmt: skip


@cache
def transformers_graph(name: str) -> ModelGraph:
    """A transformers model of width 32."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(CONFIGS[name] | {"model_type": name}))
        source = load_model(f"hf:{path}", dtype=torch.bfloat16)
    return trace(source.module, source.inputs, seq_len=1 if name == "vit" else SEQ_LEN, name=name)


def model(name: str) -> ModelGraph:
    """A small built-in by its name, one of transformers by ``hf:`` and its type."""
    return transformers_graph(name.removeprefix("hf:")) if name.startswith("hf:") else graph(name)


NAMES = (*SMALL, *(f"hf:{name}" for name in CONFIGS))


def shapes_of(made: ModelGraph, block: Block) -> list[tuple[int, ...]]:
    return [value.shape(BATCH, made.fixed_seq_len or SEQ_LEN) for value in block.values]


def forward(block: Block, shapes: list[tuple[int, ...]], random: torch.Generator) -> dict[int, Tensor]:
    """Every value of the forward pass: given ones are random, integers small enough to be any index."""
    held: dict[int, Tensor] = {}
    looked_up = {"embedding": 0, "nll_loss_forward": 1}
    end = min((shapes[op.inputs[0]][looked_up[op.name]] for op in block.ops if op.name in looked_up), default=16)
    for op in block.ops:
        if op.phase == "backward":
            continue
        for v in op.inputs:
            if v not in held:
                held[v] = _given(block.values[v].dtype, shapes[v], end, random)
        held.update({v: t.detach() for v, t in run_op(op, held, [shapes[v] for v in op.outputs]).items()})
    return held


def _given(dtype: str, shape: tuple[int, ...], end: int, random: torch.Generator) -> Tensor:
    if "float" in dtype:
        return 0.5 * torch.randn(shape, generator=random, dtype=torch.float64) + 0.1
    whole = torch.randint(2 if dtype == "bool" else min(end, 16), shape, generator=random)
    return whole.bool() if dtype == "bool" else whole


def blocks(name: str) -> Iterator[tuple[ModelGraph, Block]]:
    made = model(name)
    yield from ((made, block) for block in made.blocks)
