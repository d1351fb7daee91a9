from __future__ import annotations

import csv
import statistics
import timeit
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.compute import attention_s, dtype_bytes, gemm_s, memory_bound_s
from hardware_profiles.errors import UnknownNameError
from hardware_profiles.load import load_cluster, load_profile, names
from hardware_profiles.schema import Profile

FOLDER = Path(__file__).parents[2].parent / "shared" / "validation"
GEMMS, ATTENTION = FOLDER / "gemm_measured.csv", FOLDER / "attention_forward_measured.csv"
A100, H100, H200 = (load_cluster(name, 8).device for name in ("a100-80gb", "h100-sxm", "h200-sxm"))
PROFILES = [profile for name in names() if isinstance(profile := load_profile(name), Profile)]
DEVICES = [
    device
    for profile in PROFILES
    if dict((device := profile.device.build(profile.name)).peak_flop_per_s).get("bfloat16")
]
MEASURED_AS = {"A100-SXM4-80GB": A100, "H100-80GB-HBM3": H100, "H200-SXM": H200}

sides = st.integers(1, 20_000)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_a_large_product_comes_near_the_sustained_rate(device) -> None:
    side = 16_384
    rate = 2 * side**3 / gemm_s(device, "bfloat16", m=side, n=side, k=side)
    assert rate <= device.peak("bfloat16") * device.efficiency.gemm
    assert rate == pytest.approx(device.peak("bfloat16") * device.efficiency.gemm, rel=0.06)


@given(st.sampled_from(DEVICES), sides, sides, sides)
def test_never_faster_than_the_roofline(device, m: int, n: int, k: int) -> None:
    seconds = gemm_s(device, "bfloat16", m=m, n=n, k=k)
    assert seconds > 2 * m * n * k / device.peak("bfloat16")
    assert seconds > 2 * (m * k + k * n + m * n) / device.memory_bytes_per_s


@given(st.sampled_from(DEVICES), sides, sides, sides)
def test_deeper_products_take_no_less(device, m: int, n: int, k: int) -> None:
    assert gemm_s(device, "bfloat16", m=m, n=n, k=k) <= gemm_s(device, "bfloat16", m=m, n=n, k=2 * k)


@given(st.sampled_from(DEVICES), st.integers(1, 64), sides, sides)
def test_skinny_products_are_bound_by_memory_or_latency(device, m: int, n: int, k: int) -> None:
    """Not absurd: within a factor of what the smallest tile must do, plus reading the operands."""
    seconds = gemm_s(device, "bfloat16", m=m, n=n, k=k)
    full_tile = gemm_s(device, "bfloat16", m=max(device.gemm_tile), n=n, k=k)
    assert seconds <= full_tile


def test_waves() -> None:
    """132 SMs, tiles of 256 x 128: a few tiles too many cost part of a second wave, filled up again at two."""
    one = gemm_s(H100, "bfloat16", m=256 * 12, n=128 * 11, k=65_536)
    over = gemm_s(H100, "bfloat16", m=256 * 12, n=128 * 12, k=65_536)
    two = gemm_s(H100, "bfloat16", m=256 * 12, n=128 * 22, k=65_536)
    assert over > 1.2 * one
    assert two == pytest.approx(2 * one, rel=0.01)


def test_batches_fill_waves_together() -> None:
    four = gemm_s(H100, "bfloat16", batch=4, m=1024, n=1024, k=4096)
    assert four == pytest.approx(gemm_s(H100, "bfloat16", m=2048, n=2048, k=4096))
    assert four < 4 * gemm_s(H100, "bfloat16", m=1024, n=1024, k=4096)


def test_nothing_to_do_takes_no_time() -> None:
    assert gemm_s(H100, "bfloat16", m=0, n=8, k=8) == 0
    assert memory_bound_s(H100, 0) == 0
    assert attention(H100, q_len=0, kv_len=128) == 0


def test_streams_run_at_the_sustained_bandwidth() -> None:
    assert memory_bound_s(H100, 3.35e9) == pytest.approx(1e-3 / 0.85 + 2e-6)


def test_precision() -> None:
    fp32, bf16 = (gemm_s(H100, dtype, m=8192, n=8192, k=8192) for dtype in ("float32", "bfloat16"))
    assert fp32 / bf16 == pytest.approx(989 / 67, rel=0.01)
    with pytest.raises(UnknownNameError, match=r"unknown dtype for device 'a100-80gb' 'float8_e4m3fn'\. "):
        gemm_s(A100, "float8_e4m3fn", m=8, n=8, k=8)
    with pytest.raises(UnknownNameError, match=r"unknown dtype 'bf16'\. .*Known: bfloat16, "):
        dtype_bytes("bf16")


def attention(
    device, *, q_len: int, kv_len: int, causal: bool = False, backward: bool = False, heads: int = 16
) -> float:
    return attention_s(
        device,
        "bfloat16",
        batch=16,
        heads=heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=128,
        causal=causal,
        backward=backward,
    )


def test_causal_halves_long_attention_only() -> None:
    for length, low, high in ((16_384, 0.5, 0.52), (128, 0.99, 1.01)):
        ratio = attention(H100, q_len=length, kv_len=length, causal=True) / attention(H100, q_len=length, kv_len=length)
        assert low <= ratio <= high


def test_one_query_block_of_a_long_causal_context() -> None:
    """Queries at the end of a context see nearly all keys: masking saves little."""
    masked = attention(H100, q_len=1024, kv_len=16_384, causal=True)
    assert 0.95 < masked / attention(H100, q_len=1024, kv_len=16_384) < 1


@given(st.integers(1, 8192), st.integers(1, 8192), st.booleans(), st.booleans())
def test_longer_attention_takes_no_less(q_len: int, kv_len: int, causal: bool, backward: bool) -> None:
    short = attention(H100, q_len=q_len, kv_len=kv_len, backward=backward)
    assert short <= attention(H100, q_len=q_len, kv_len=2 * kv_len, backward=backward)
    assert short <= attention(H100, q_len=2 * q_len, kv_len=kv_len, backward=backward)
    assert attention(H100, q_len=q_len, kv_len=kv_len, causal=causal, backward=backward) <= short


@pytest.mark.parametrize(
    ("length", "forward", "backward"),
    [(512, 315, 305), (1024, 410, 408), (2048, 484, 465), (4096, 518, 499), (8192, 529, 518), (16_384, 539, 516)],
)
def test_published_h100_attention(length: int, forward: float, backward: float) -> None:
    """cuDNN on H100, 16k tokens, 16 heads of 128: TFLOP/s of FlashAttention-3, figure 5 (causal) and 6 (not causal)."""
    shape = {"batch": 16_384 // length, "heads": 16, "q_len": length, "kv_len": length, "head_dim": 128}
    flop = 4 * 16_384 * 16 * length * 128
    seconds = attention_s(H100, "bfloat16", **shape, causal=True, backward=False)
    assert flop / 2 / seconds / 1e12 == pytest.approx(forward, rel=0.08)
    seconds = attention_s(H100, "bfloat16", **shape, causal=False, backward=True)
    assert 2.5 * flop / seconds / 1e12 == pytest.approx(backward, rel=0.15)


@pytest.mark.skipif(not GEMMS.is_file(), reason="measured matrix products are not beside this checkout")
@pytest.mark.parametrize("name", MEASURED_AS)
def test_against_measured_products(name: str, record_testsuite_property: Callable[[str, object], None]) -> None:
    errors = []
    with GEMMS.open(newline="") as file:
        for row in csv.DictReader(file):
            m, n, k = int(row["m"]), int(row["n"]), int(row["k"])
            if row["device"] == name and row["gemm_dtype"] == "bfloat16" and min(m, n, k) >= 1024:
                errors.append(gemm_s(MEASURED_AS[name], "bfloat16", m=m, n=n, k=k) / (float(row["ms"]) / 1e3) - 1)
    absolute = sorted(map(abs, errors))
    median, p90 = statistics.median(absolute), absolute[len(absolute) * 9 // 10]
    bias = statistics.median(errors)
    record_testsuite_property(f"gemm {name}", f"median {median:.3f}, p90 {p90:.3f}, bias {bias:+.3f}, n {len(errors)}")
    assert len(errors) > 1000
    assert median <= 0.07
    assert p90 <= 0.15


@pytest.mark.skipif(not ATTENTION.is_file(), reason="measured attention is not beside this checkout")
def test_against_measured_attention(record_testsuite_property: Callable[[str, object], None]) -> None:
    """Forward on H100 from 1 ms up: shorter calls include kernels around the attention, A100's kernel is older."""
    errors = []
    with ATTENTION.open(newline="") as file:
        for row in csv.DictReader(file):
            measured_s, length = float(row["ms"]) / 1e3, int(row["isl"])
            if row["device"] == "H100-80GB-HBM3" and measured_s >= 1e-3:
                shape = {"batch": int(row["batch_size"]), "heads": int(row["num_heads"]), "head_dim": 128}
                predicted = attention_s(
                    H100, "bfloat16", **shape, q_len=length, kv_len=length, causal=True, backward=False
                )
                errors.append(predicted / measured_s - 1)
    median = statistics.median(map(abs, errors))
    record_testsuite_property("attention H100 forward", f"median {median:.3f}, n {len(errors)}")
    assert median <= 0.06


def test_a_price_takes_microseconds() -> None:
    """Generous, since test machines are busy: about 6 us for a new shape and 1.5 us for one seen before."""
    shapes = iter(range(1, 100_000))
    fresh = (
        min(timeit.repeat(lambda: gemm_s(H100, "bfloat16", m=4096, n=next(shapes), k=4096), number=500, repeat=5)) / 500
    )
    again = min(timeit.repeat(lambda: gemm_s(H100, "bfloat16", m=4096, n=4096, k=4096), number=500, repeat=5)) / 500
    assert fresh < 1e-4
    assert again < 5e-5
