from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.attention import UNFUSED_FRACTION
from costmodels.compute import attention_s, gemm_s, unfused_attention_s, unfused_attention_saved_bytes
from hardware_profiles.load import load_cluster

A100, H100 = (load_cluster(name, 8).device for name in ("a100-80gb", "h100-sxm"))
SHAPE = {"batch": 2, "heads": 16, "q_len": 1024, "kv_len": 1024, "head_dim": 128}


def unfused(device: Any = A100, **changes: Any) -> float:
    return unfused_attention_s(
        device, "bfloat16", **{**SHAPE, "causal": False, "backward": False, "dropout": False, **changes}
    )


def products(backward: bool) -> float:
    scores, values = ({"m": 1024, "n": 1024, "k": 128}, {"m": 1024, "n": 128, "k": 1024})
    one, other = (gemm_s(A100, "bfloat16", batch=32, **sides) for sides in (scores, values))
    return one + 3 * other if backward else one + other


@pytest.mark.parametrize(
    ("changes", "softmax_bytes", "dropout_bytes"),
    [
        ({}, 4, 0),
        ({"backward": True}, 6, 0),
        ({"dropout": True}, 4, 5),
        ({"backward": True, "dropout": True}, 6, 5),
        ({"causal": True}, 2 * (1 + 1025 / 2048), 0),
        ({"causal": True, "backward": True}, 2 * (1 + 2 * 1025 / 2048), 0),
    ],
)
def test_unfused_by_hand(changes: dict[str, bool], softmax_bytes: float, dropout_bytes: int) -> None:
    scores = 2 * 16 * 1024 * 1024
    expected = products(changes.get("backward", False)) + 3e-6 + softmax_bytes * scores / (2039e9 * 0.75)
    if dropout_bytes:
        expected += 3e-6 + dropout_bytes * scores / (2039e9 * 0.85)
    assert unfused(**changes) == pytest.approx(expected / UNFUSED_FRACTION)


def test_unfused_without_queries_or_keys_takes_no_time() -> None:
    assert unfused(q_len=0) == unfused(kv_len=0, causal=True, backward=True, dropout=True) == 0


@given(st.integers(1, 4096), st.integers(1, 4096), st.booleans(), st.booleans())
def test_unfused_grows_with_length(q_len: int, kv_len: int, backward: bool, dropout: bool) -> None:
    short = unfused(q_len=q_len, kv_len=kv_len, backward=backward, dropout=dropout)
    assert short <= unfused(q_len=2 * q_len, kv_len=kv_len, backward=backward, dropout=dropout)
    assert short <= unfused(q_len=q_len, kv_len=2 * kv_len, backward=backward, dropout=dropout)


def test_fused_is_faster() -> None:
    for backward in (False, True):
        fused = attention_s(A100, "bfloat16", **SHAPE, causal=True, backward=backward)
        assert unfused(causal=True, backward=backward) > 1.5 * fused


def test_saved_scores() -> None:
    """5 a s^2 b with dropout, 2 a s^2 b without (Korthikanti et al. 2022)."""
    shape = {"batch": 4, "heads": 64, "q_len": 2048, "kv_len": 2048}
    assert unfused_attention_saved_bytes(**shape, dropout=True) == 5 * 64 * 2048**2 * 4
    assert unfused_attention_saved_bytes(**shape, dropout=False) == 2 * 64 * 2048**2 * 4
    assert unfused_attention_saved_bytes(**shape, dropout=True, dtype="float32") == 9 * 64 * 2048**2 * 4


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "head_dim", "length", "flash1", "flash2"),
    [
        (24, 2048, 16, 128, 2048, 189, 196),
        (24, 2048, 16, 128, 8192, 170, 220),
        (32, 2560, 32, 80, 2048, 189, 205),
        (32, 2560, 32, 80, 8192, 175, 225),
    ],
)
def test_flash_generations_in_published_training(
    layers: int, hidden: int, heads: int, head_dim: int, length: int, flash1: float, flash2: float
) -> None:
    """FlashAttention-2 paper, table 1: TFLOP/s of GPT-3 1.3B and 2.7B on A100, with 6 N + 12 L h s FLOP a token. What
    FlashAttention-2's time leaves of the step stays."""
    token_flop = 6 * (12 * layers * hidden**2 + 51_200 * hidden) + 12 * layers * hidden * length
    shape = {"batch": 1, "heads": heads, "q_len": length, "kv_len": length, "head_dim": head_dim, "causal": True}

    def token_s(generation: Any) -> float:
        passes = (
            attention_s(A100, "float16", **shape, backward=backward, generation=generation)
            for backward in (False, True)
        )
        return layers / length * sum(passes)

    others_s = token_flop / (flash2 * 1e12) - token_s("flash2")
    assert token_flop / (others_s + token_s("flash1")) / 1e12 == pytest.approx(flash1, rel=0.08)


def test_narrow_heads_are_slower() -> None:
    """FlashAttention-3 on H100 without mask: 497 TFLOP/s with head dim 64, 648 with 128 (figure 5)."""
    rates = []
    for heads, head_dim in ((32, 64), (16, 128)):
        shape = {"batch": 1, "heads": heads, "q_len": 16_384, "kv_len": 16_384, "head_dim": head_dim}
        seconds = attention_s(H100, "bfloat16", **shape, causal=False, backward=False)
        rates.append(4 * heads * 16_384**2 * head_dim / seconds)
    assert rates[0] / rates[1] == pytest.approx(497 / 648, rel=0.06)


def test_earlier_generations_of_attention_are_slower_where_the_profile_says_so() -> None:
    """On H100 the profile's figures are cuDNN's; on A100 they are FlashAttention-2's own."""
    sizes: Any = {**SHAPE, "q_len": 8192, "kv_len": 8192, "causal": True, "backward": False}
    on = {d: [attention_s(d, "bfloat16", **sizes, generation=g) for g in ("vendor", "flash2", "flash1")]
          for d in (A100, H100)}  # fmt: skip
    assert on[H100][0] < on[H100][1] < on[H100][2]
    assert on[A100][0] == on[A100][1] < on[A100][2]
    assert on[H100][1] / on[H100][0] == pytest.approx(1 / H100.efficiency.attention_flash2, rel=0.01)
