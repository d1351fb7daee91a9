from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from planner.models.layers import rotary_angles
from planner.models.mla import LatentAttention
from planner.models.moe import MoEDecoder
from tests.planner.models.reference import DEEPSEEK, from_llama_like, randomize, tokens

ROPE = DEEPSEEK.rope_dim


def halves(rows: Tensor) -> Tensor:
    """Rows of interleaved rotation pairs (the last ``ROPE`` of dim -2) reordered to first halves, second halves."""
    plain, rotated = rows.split([rows.shape[-2] - ROPE, ROPE], dim=-2)
    return torch.cat((plain, rotated[..., 0::2, :], rotated[..., 1::2, :]), dim=-2)


def test_deepseek_v3_matches_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    latent = DEEPSEEK.latent_attention
    assert latent is not None
    theirs = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            vocab_size=DEEPSEEK.vocab_size, hidden_size=DEEPSEEK.dim, intermediate_size=DEEPSEEK.hidden_dim,
            moe_intermediate_size=DEEPSEEK.expert_hidden_dim, num_hidden_layers=DEEPSEEK.num_layers,
            num_attention_heads=DEEPSEEK.num_heads, num_key_value_heads=DEEPSEEK.num_kv_heads,
            n_routed_experts=DEEPSEEK.num_experts, num_experts_per_tok=DEEPSEEK.top_k,
            n_shared_experts=DEEPSEEK.shared_hidden_dim // DEEPSEEK.expert_hidden_dim,
            n_group=DEEPSEEK.num_groups, topk_group=DEEPSEEK.top_groups,
            routed_scaling_factor=DEEPSEEK.weight_scale, first_k_dense_replace=DEEPSEEK.num_dense_layers,
            q_lora_rank=latent.q_rank, kv_lora_rank=latent.kv_rank, qk_rope_head_dim=latent.rope_head_dim,
            qk_nope_head_dim=DEEPSEEK.head_dim - latent.rope_head_dim, v_head_dim=latent.v_head_dim,
            rms_norm_eps=DEEPSEEK.norm_eps, max_position_embeddings=64, num_mtp_layers=0,
        )
    )  # fmt: skip
    randomize(theirs)
    state = from_llama_like(theirs.state_dict())
    for name, value in state.items():
        if name.endswith("wq_b.weight"):
            state[name] = halves(value.unflatten(0, (DEEPSEEK.num_heads, -1))).flatten(0, 1)
        elif name.endswith("wkv_a.weight"):
            state[name] = halves(value)
        elif name.endswith("expert_bias"):
            value.copy_(torch.linspace(-0.3, 0.3, DEEPSEEK.num_experts))  # shared with their model
    ours = MoEDecoder(DEEPSEEK)
    ours.load_state_dict(state)
    ids = tokens(DEEPSEEK.vocab_size)
    torch.testing.assert_close(ours.logits(ids), theirs(ids).logits, rtol=1e-5, atol=2e-5)


def test_even_slices_of_the_heads_add_up() -> None:
    torch.manual_seed(0)
    latent = DEEPSEEK.latent_attention
    assert latent is not None
    whole, *parts = (
        LatentAttention(DEEPSEEK.dim, num_heads=heads, head_dim=DEEPSEEK.head_dim, norm_eps=1e-6, latent=latent)
        for heads in (4, 2, 2)
    )
    x = torch.randn(2, 6, DEEPSEEK.dim)
    angles = rotary_angles(6, ROPE, 10_000.0, like=x)
    dims = {"wq_b.weight": 0, "wkv_b.weight": 0, "wo.weight": 1}
    for rank, part in enumerate(parts):
        part.load_state_dict(
            {
                name: weight.chunk(2, dim=dims[name])[rank] if name in dims else weight
                for name, weight in whole.state_dict().items()
            }
        )
    torch.testing.assert_close(parts[0](x, *angles) + parts[1](x, *angles), whole(x, *angles))


def test_uncompressed_queries_are_the_product_of_the_two_matrices() -> None:
    torch.manual_seed(0)
    latent = DEEPSEEK.latent_attention
    assert latent is not None
    plain, compressed = (
        LatentAttention(DEEPSEEK.dim, num_heads=4, head_dim=DEEPSEEK.head_dim, norm_eps=1e-6, latent=shape)
        for shape in (replace(latent, q_rank=None), latent)
    )
    compressed.q_norm = nn.Identity()
    state = compressed.state_dict()
    state["wq.weight"] = state.pop("wq_b.weight") @ state.pop("wq_a.weight")
    plain.load_state_dict(state)
    x, angles = torch.randn(2, 5, DEEPSEEK.dim), rotary_angles(5, ROPE, 1e4, like=torch.zeros(0))
    torch.testing.assert_close(plain(x, *angles), compressed(x, *angles))
