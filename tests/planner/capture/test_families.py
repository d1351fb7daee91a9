from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from planner import ops
from planner.capture import families
from planner.capture.families import DecoderConfig, family_graph
from planner.capture.trace import trace
from planner.graph import ModelGraph
from planner.layouts.model import analyse_model
from planner.models import LatentAttentionConfig, build_from_config, preset
from tests.planner.models.reference import DEEPSEEK, GPT2, LLAMA, MIXTRAL, QWEN3_MOE

LATENT = LatentAttentionConfig(q_rank=None, kv_rank=32, rope_head_dim=16, v_head_dim=24)
CONFIGS: dict[str, DecoderConfig] = {
    "gpt2": replace(GPT2, num_layers=5, dim=48, hidden_dim=200, vocab_size=77, max_seq_len=48),
    "gpt3": replace(GPT2, num_layers=3, num_heads=6, num_kv_heads=6, head_dim=16, dim=96, max_seq_len=2048),
    "gpt-untied": replace(GPT2, tied_embedding=False, activation="gelu", fused_qkv=False, max_seq_len=100),
    "multi-query": replace(GPT2, num_kv_heads=1, fused_qkv=False, max_seq_len=64),
    "fused-groups": replace(LLAMA, fused_qkv=True, num_heads=12, num_kv_heads=3),
    "bloom": replace(GPT2, positions="none", embedding_norm=True, norm_eps=1e-6),
    "llama2": replace(LLAMA, num_kv_heads=4, num_layers=4, hidden_dim=88, norm_eps=1e-6),
    "llama3": replace(LLAMA, rope_theta=500_000.0, num_heads=24, num_kv_heads=8, head_dim=4, dim=96, num_layers=7),
    "one-layer": replace(LLAMA, num_layers=1),
    "equal-sizes": replace(LLAMA, dim=32, num_heads=32, num_kv_heads=8, head_dim=32, hidden_dim=32, vocab_size=32),
    "qwen3": replace(LLAMA, qk_norm=True, tied_embedding=True, head_dim=20),
    "mixtral": replace(MIXTRAL, num_layers=6, dim=64, expert_hidden_dim=112, vocab_size=512),
    "plain-experts": replace(MIXTRAL, activation="gelu_tanh", norm="layer", bias=True, positions="learned"),
    "switch": replace(MIXTRAL, top_k=1),
    "shared-experts": replace(QWEN3_MOE, shared_hidden_dim=104, normalize_weights=False, num_dense_layers=1),
    "deepseek-v2-lite": replace(DEEPSEEK, latent_attention=LATENT, head_dim=40, score="softmax", num_groups=1, top_k=6),
    "deepseek-v3": replace(DEEPSEEK, num_layers=7, num_dense_layers=3, num_experts=32, shared_hidden_dim=40),
    "deepseek-dense": replace(DEEPSEEK, num_layers=2, num_dense_layers=2),
}


def traced(config: DecoderConfig, *, seq_len: int) -> ModelGraph:
    with torch.device("meta"):
        model, inputs = build_from_config(config)
    return trace(model, inputs, seq_len=seq_len, name="a decoder")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_is_what_a_trace_gives(config: DecoderConfig) -> None:
    seq_len = min(config.max_seq_len, 36)
    written, expected = family_graph(config, name="a decoder", seq_len=seq_len), traced(config, seq_len=seq_len)
    assert written == expected  # arguments of the operations included
    for batch, length in ((1, 1), (3, 160), (8, 4096)):
        for ours, theirs in zip(written.blocks, expected.blocks, strict=True):
            shapes, expected_shapes = ([v.shape(batch, length) for v in block.values] for block in (ours, theirs))
            assert shapes == expected_shapes
            for op, other in zip(ours.ops, theirs.ops, strict=True):
                assert ops.flop(op, shapes) == ops.flop(other, expected_shapes)
                assert ops.moved_bytes(op, ours, shapes) == ops.moved_bytes(other, theirs, expected_shapes)


@pytest.mark.parametrize("name", ["gpt-untied", "llama3", "deepseek-v3"])
def test_is_laid_out_as_a_trace_is(name: str) -> None:
    # The length in the arguments is another than that of the trace: no layout reads it.
    ours, theirs = analyse_model(family_graph(CONFIGS[name])), analyse_model(traced(CONFIGS[name], seq_len=16))
    for tp in (1, 2, 4):
        assert ours.obstacle(tp) == theirs.obstacle(tp)
        assert ours.at(tp) == theirs.at(tp)


@pytest.mark.parametrize("name", ["gpt2", "llama3-405b", "mixtral-8x7b", "qwen3-30b-a3b"])
def test_has_the_published_number_of_parameters(name: str) -> None:
    model = preset(name)
    assert isinstance(model.config, DecoderConfig)
    assert family_graph(model.config).num_parameters == model.published_parameters


def test_sizes_share_one_trace() -> None:
    family_graph(LLAMA)
    before = families._template.cache_info().misses
    for config in (replace(LLAMA, num_layers=80), replace(LLAMA, dim=48, rope_theta=1e6), replace(LLAMA, head_dim=64)):
        family_graph(config)
    assert families._template.cache_info().misses == before
    family_graph(replace(LLAMA, qk_norm=True, norm="layer"))
    assert families._template.cache_info().misses == before + 1


def test_the_dtype_is_the_compute_precision() -> None:
    graph = family_graph(LLAMA, compute_dtype="float16")
    assert "float16" in {value.dtype for block in graph.blocks for value in block.values}
    assert "bfloat16" not in {value.dtype for block in graph.blocks for value in block.values}


def test_a_number_without_meaning_is_not_guessed() -> None:
    with pytest.raises(AssertionError, match="1000000007 may be no product of sizes"):
        families._recognise([1_000_000_007], LLAMA)


def test_a_number_with_two_meanings_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    width = families._REFERENCES["dim"]
    monkeypatch.setitem(families._REFERENCES, "hidden_dim", (width[0], width[1] + 8))
    with pytest.raises(AssertionError, match=rf"{width[0]} may be .*'dim'.*'hidden_dim'"):
        families._recognise([width[0]], families._reference(LLAMA, 0))


def test_formulas_that_are_always_equal_are_one_meaning() -> None:
    first = families._sizes(families._reference(LLAMA, 0), families._SEQ_LEN[0])
    found = families._recognise([first["num_heads"] * first["head_dim"]], families._reference(LLAMA, 0))
    (formula,) = found.values()
    assert formula.of(families._sizes(LLAMA, 5)) == LLAMA.num_heads * LLAMA.head_dim


def test_a_half_of_a_head_that_would_be_broadcast_is_not_guessed() -> None:
    with pytest.raises(AssertionError, match="half_rope_dim"):
        family_graph(replace(LLAMA, head_dim=2))
