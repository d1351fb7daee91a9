from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from planner.models.dense import Decoder
from tests.planner.models.reference import GPT2, LLAMA, from_llama_like, randomize, rename, tokens


def test_llama_matches_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=LLAMA.vocab_size, hidden_size=LLAMA.dim, intermediate_size=LLAMA.hidden_dim,
            num_hidden_layers=LLAMA.num_layers, num_attention_heads=LLAMA.num_heads,
            num_key_value_heads=LLAMA.num_kv_heads, rms_norm_eps=LLAMA.norm_eps, max_position_embeddings=64,
        )
    )  # fmt: skip
    randomize(theirs)
    ours = Decoder(LLAMA)
    ours.load_state_dict(from_llama_like(theirs.state_dict()))
    ids = tokens(LLAMA.vocab_size)
    torch.testing.assert_close(ours.logits(ids), theirs(ids).logits)


def test_gpt2_matches_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=GPT2.vocab_size, n_positions=GPT2.max_seq_len, n_embd=GPT2.dim, n_layer=GPT2.num_layers,
            n_head=GPT2.num_heads,
        )
    ).eval()  # fmt: skip
    randomize(theirs)
    names = {
        "transformer.": "", "wte": "tok_embeddings", "wpe": "pos_embeddings", "lm_head": "output", "ln_f": "norm",
        "h.": "layers.", "ln_1": "attention_norm", "ln_2": "ffn_norm", "attn.c_attn": "attention.wqkv",
        "attn.c_proj": "attention.wo", "mlp.c_fc": "feed_forward.w1", "mlp.c_proj": "feed_forward.w2",
    }  # fmt: skip
    state = rename(theirs.state_dict(), names)
    for name, value in state.items():
        if "attention.w" in name or "feed_forward" in name:
            value = value.t()  # noqa: PLW2901  (their matrices are [in, out]; a bias is its own transpose)
        if "wqkv" in name:  # their rows are [q | k | v] over all heads, ours [q, k, v] of each head
            value = value.unflatten(0, (3, GPT2.num_heads, -1)).transpose(0, 1).flatten(0, 2)  # noqa: PLW2901
        state[name] = value
    ours = Decoder(GPT2)
    ours.load_state_dict(state)
    ids = tokens(GPT2.vocab_size)
    torch.testing.assert_close(ours.logits(ids), theirs(ids).logits)


def test_llama_forward_flop_is_the_hand_formula() -> None:
    batch, seq = 2, 12
    dim, heads, kv_heads, head_dim = LLAMA.dim, LLAMA.num_heads, LLAMA.num_kv_heads, LLAMA.head_dim
    weights = dim * (heads + 2 * kv_heads) * head_dim + heads * head_dim * dim + 3 * dim * LLAMA.hidden_dim
    scores_and_values = 2 * 2 * batch * heads * seq * seq * head_dim
    expected = (
        LLAMA.num_layers * (2 * batch * seq * weights + scores_and_values) + 2 * batch * seq * dim * LLAMA.vocab_size
    )
    ids = tokens(LLAMA.vocab_size, batch_size=batch, seq_len=seq)
    # The counter has no formula for the fused CPU kernel, but for the matrix products of the written-out form.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        Decoder(LLAMA)(ids, ids)
    assert counter.get_total_flops() == expected


def test_the_future_does_not_change_the_past() -> None:
    torch.manual_seed(0)
    model = Decoder(LLAMA)
    ids = tokens(LLAMA.vocab_size)
    changed = ids.clone()
    changed[:, 6:] = 0
    torch.testing.assert_close(model.logits(ids)[:, :6], model.logits(changed)[:, :6])


def test_module_names() -> None:
    names = set(Decoder(LLAMA).state_dict())
    assert {
        "tok_embeddings.weight",
        "layers.0.attention_norm.weight",
        "layers.0.attention.wq.weight",
        "layers.0.attention.wo.weight",
        "layers.0.ffn_norm.weight",
        "layers.1.feed_forward.w1.weight",
        "layers.1.feed_forward.w2.weight",
        "layers.1.feed_forward.w3.weight",
        "norm.weight",
        "output.weight",
    } < names


def test_without_positions_earlier_tokens_are_a_set() -> None:
    # Of one layer: in a second one, the tokens before have seen different predecessors.
    config = replace(GPT2, positions="none", embedding_norm=True, num_layers=1)
    model = Decoder(config)
    randomize(model)
    assert not hasattr(model, "pos_embeddings")
    ids = tokens(config.vocab_size)
    swapped = ids.clone()
    swapped[:, [0, 1]] = ids[:, [1, 0]]
    torch.testing.assert_close(model.logits(swapped)[:, 2:], model.logits(ids)[:, 2:])


def test_an_embedding_norm_forgets_the_scale_of_the_embedding() -> None:
    model = Decoder(replace(GPT2, positions="none", embedding_norm=True, tied_embedding=False))
    randomize(model)
    ids = tokens(GPT2.vocab_size)
    before = model.logits(ids)
    with torch.no_grad():
        model.tok_embeddings.weight *= 3
    torch.testing.assert_close(model.logits(ids), before, rtol=1e-4, atol=1e-4)
