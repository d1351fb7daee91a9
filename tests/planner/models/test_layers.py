from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planner.models.layers import Attention, FeedForward, make_norm, rotary_angles, rotate, token_loss


def test_rotation_is_by_position_times_frequency() -> None:
    cos, sin = rotary_angles(3, 4, 100.0, like=torch.empty(0))
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.1], [2.0, 0.2]]).repeat(1, 2)
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())


def test_rotated_products_depend_on_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8)
    cos, sin = rotary_angles(10, 8, 10_000.0, like=q)
    scores = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-2, -1)).squeeze()
    for distance in range(10):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_angles_keep_large_positions_apart_in_bfloat16() -> None:
    cos, _ = rotary_angles(4097, 8, 10_000.0, like=torch.empty(0, dtype=torch.bfloat16))
    assert cos.dtype == torch.bfloat16
    torch.testing.assert_close(cos[4095, 0].float(), torch.tensor(4095.0).cos(), atol=4e-3, rtol=0)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """``[B, H, S, Dh]`` attention with the score matrix written out."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(dim=-1) @ v


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1], ids=["multi-head", "grouped-query", "multi-query"])
def test_attention_matches_the_written_out_form(num_kv_heads: int, causal: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(16, num_heads=4, num_kv_heads=num_kv_heads, head_dim=8, causal=causal)
    x = torch.randn(2, 6, 16)
    q, k, v = (w(x).unflatten(-1, (-1, 8)).transpose(1, 2) for w in (attention.wq, attention.wk, attention.wv))
    k, v = (value.repeat_interleave(4 // num_kv_heads, dim=1) for value in (k, v))
    expected = attention.wo(explicit_attention(q, k, v, causal=causal).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_fused_projection_equals_separate_ones(num_kv_heads: int) -> None:
    torch.manual_seed(0)
    separate = Attention(16, num_heads=4, num_kv_heads=num_kv_heads, head_dim=8, causal=True)
    fused = Attention(16, num_heads=4, num_kv_heads=num_kv_heads, head_dim=8, causal=True, fused_qkv=True)
    parts = [w.weight.unflatten(0, (num_kv_heads, -1)) for w in (separate.wq, separate.wk, separate.wv)]
    fused.load_state_dict({"wqkv.weight": torch.cat(parts, dim=1).flatten(0, 1), "wo.weight": separate.wo.weight})
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(fused(x), separate(x))


@pytest.mark.parametrize("fused_qkv", [False, True], ids=["separate", "fused"])
def test_even_slices_of_the_rows_are_whole_heads(fused_qkv: bool) -> None:
    torch.manual_seed(0)
    whole = Attention(16, num_heads=4, num_kv_heads=2, head_dim=8, causal=True, fused_qkv=fused_qkv)
    x = torch.randn(2, 6, 16)
    total = torch.zeros_like(x)
    for rank in range(2):
        part = Attention(16, num_heads=2, num_kv_heads=1, head_dim=8, causal=True, fused_qkv=fused_qkv)
        part.load_state_dict(
            {
                name: weight.chunk(2, dim=1 if name == "wo.weight" else 0)[rank]
                for name, weight in whole.state_dict().items()
            }
        )
        total += part(x)
    torch.testing.assert_close(total, whole(x))


def test_feed_forward_formulas() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    gated = FeedForward(8, 12, activation="swiglu")
    torch.testing.assert_close(gated(x), gated.w2(F.silu(gated.w1(x)) * gated.w3(x)))
    for activation, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):
        plain = FeedForward(8, 12, activation=activation, bias=True)
        torch.testing.assert_close(plain(x), plain.w2(F.gelu(plain.w1(x), approximate=approximate)))
        assert not hasattr(plain, "w3")


def test_make_norm() -> None:
    assert {name for name, _ in make_norm("rms", 4, 1e-5).named_parameters()} == {"weight"}
    assert {name for name, _ in make_norm("layer", 4, 1e-5).named_parameters()} == {"weight", "bias"}


def test_token_loss_of_even_logits_is_log_of_the_vocabulary() -> None:
    loss = token_loss(torch.zeros(2, 3, 50, dtype=torch.bfloat16), torch.zeros(2, 3, dtype=torch.int64))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(50.0).log())
