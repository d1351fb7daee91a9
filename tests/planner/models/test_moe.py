from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planner.models.moe import MoE, MoEBlock, MoEDecoder, Router
from tests.planner.models.reference import DEEPSEEK, MIXTRAL, QWEN3_MOE, from_llama_like, randomize, tokens


def expert_by_expert(moe: MoE, x: Tensor) -> Tensor:
    """The same block as a loop over tokens and their experts."""
    weights, chosen = moe.router(x.flatten(0, 1))
    rows = []
    for token, token_weights, token_chosen in zip(x.flatten(0, 1), weights, chosen.tolist(), strict=True):
        row = torch.zeros_like(token)
        for weight, expert in zip(token_weights, token_chosen, strict=True):
            w1, w2 = moe.experts.w1[expert], moe.experts.w2[expert]
            plain = moe.experts.activation == "gelu"
            hidden = F.gelu(w1 @ token) if plain else F.silu(w1 @ token) * (moe.experts.w3[expert] @ token)
            row = row + weight * (w2 @ hidden)
        rows.append(row)
    out = torch.stack(rows).view_as(x)
    return out if moe.shared_experts is None else out + moe.shared_experts(x)


PLAIN = dataclasses.replace(MIXTRAL, activation="gelu", shared_hidden_dim=40)


@pytest.mark.parametrize(
    "config", [MIXTRAL, QWEN3_MOE, DEEPSEEK, PLAIN], ids=["mixtral", "qwen3-moe", "deepseek", "plain"]
)
@pytest.mark.parametrize("seq_len", [1, 9])
def test_matches_a_loop_over_experts_forward_and_backward(config, seq_len: int) -> None:
    # With one position of two samples, some experts get no token.
    moe = MoE(config)
    randomize(moe)
    torch.manual_seed(0)
    x = torch.randn(2, seq_len, config.dim)
    grad = torch.randn_like(x)
    results = []
    for forward in (moe, lambda x: expert_by_expert(moe, x)):
        leaf = x.clone().requires_grad_()
        out = forward(leaf)
        parameters = dict(moe.named_parameters())
        results.append((out, *torch.autograd.grad(out, (leaf, *parameters.values()), grad)))
    for name, ours, expected in zip(("out", "x", *parameters), *results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_softmax_weights_of_the_chosen_sum_to_one() -> None:
    router = Router(QWEN3_MOE)
    randomize(router)
    weights, chosen = router(torch.randn(5, QWEN3_MOE.dim))
    assert weights.shape == chosen.shape == (5, QWEN3_MOE.top_k)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(5))

    plain = Router(dataclasses.replace(QWEN3_MOE, normalize_weights=False))
    plain.load_state_dict(router.state_dict())
    assert (plain(torch.randn(5, QWEN3_MOE.dim))[0].sum(dim=-1) < 1).all()


def test_bias_changes_the_choice_but_not_the_weight() -> None:
    config = dataclasses.replace(DEEPSEEK, num_groups=1, normalize_weights=False, weight_scale=1.0)
    router = Router(config)
    randomize(router)
    router.expert_bias[5] = 10.0
    x = torch.randn(7, config.dim)
    weights, chosen = router(x)
    assert (chosen == 5).any(dim=-1).all()
    torch.testing.assert_close(weights, router.gate(x).sigmoid().gather(1, chosen))


def test_choice_stays_inside_the_best_groups() -> None:
    router = Router(DEEPSEEK)
    randomize(router)
    _, chosen = router(torch.randn(64, DEEPSEEK.dim))
    group_size = DEEPSEEK.num_experts // DEEPSEEK.num_groups
    assert all(len({expert // group_size for expert in row}) <= DEEPSEEK.top_groups for row in chosen.tolist())


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe"])
def test_matches_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"Mixtral": MIXTRAL, "Qwen3Moe": QWEN3_MOE}[family]
    own = {
        "Mixtral": {"num_local_experts": config.num_experts, "sliding_window": None},
        "Qwen3Moe": {"num_experts": config.num_experts, "moe_intermediate_size": config.expert_hidden_dim},
    }[family]
    theirs = getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(
            vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.hidden_dim,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, rms_norm_eps=config.norm_eps,
            num_experts_per_tok=config.top_k, max_position_embeddings=64, norm_topk_prob=True,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, **own,
        )
    )  # fmt: skip
    randomize(theirs)
    ours = MoEDecoder(config)
    ours.load_state_dict(from_llama_like(theirs.state_dict()))
    ids = tokens(config.vocab_size)
    torch.testing.assert_close(ours.logits(ids), theirs(ids).logits, rtol=1e-5, atol=2e-5)


def test_leading_layers_are_dense() -> None:
    layers = MoEDecoder(DEEPSEEK).layers
    assert [isinstance(layer, MoEBlock) for layer in layers] == [False, True, True]


def test_module_names_and_shapes() -> None:
    shapes = {name: tuple(value.shape) for name, value in MoEDecoder(DEEPSEEK).state_dict().items()}
    assert shapes["layers.1.moe.router.gate.weight"] == (8, 32)
    assert shapes["layers.1.moe.experts.w1"] == shapes["layers.1.moe.experts.w3"] == (8, 24, 32)
    assert shapes["layers.1.moe.experts.w2"] == (8, 32, 24)
    assert shapes["layers.1.moe.shared_experts.w1.weight"] == (24, 32)
    assert shapes["layers.0.feed_forward.w1.weight"] == (48, 32)
