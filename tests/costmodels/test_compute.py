from __future__ import annotations

import timeit
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.kernels import DEEP_GEMM, Errors, attention_rows, cells, gemm_rows
from costmodels.compute import attention_s, dtype_bytes, gemm_s, memory_bound_s, quantise_s
from hardware_profiles.cluster import gemm_family
from hardware_profiles.errors import UnknownNameError
from hardware_profiles.load import load_cluster, load_profile, names
from hardware_profiles.schema import Profile

FOLDER = Path(__file__).parents[2].parent / "shared" / "validation"
GEMMS, ATTENTION = FOLDER / "gemm_measured.csv", FOLDER / "attention_forward_measured.csv"
A100, H100 = (load_cluster(name, 8).device for name in ("a100-80gb", "h100-sxm"))
PROFILES = [profile for name in names() if isinstance(profile := load_profile(name), Profile)]
DEVICES = [
    device
    for profile in PROFILES
    if dict((device := profile.device.build(profile.name)).peak_flop_per_s).get("bfloat16")
]

sides = st.integers(1, 20_000)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_a_large_product_comes_near_the_sustained_rate(device) -> None:
    side = 16_384
    reached = device.peak("bfloat16") * device.efficiency.gemm
    rate = 2 * side**3 / gemm_s(device, "bfloat16", m=side, n=side, k=side)
    assert 0.94 * reached * device.efficiency.gemm_sustained <= rate <= reached


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
    full_tile = gemm_s(device, "bfloat16", m=max(64, *device.gemm_tile), n=n, k=k)
    assert seconds <= full_tile


def test_waves() -> None:
    """132 SMs, tiles of 256 x 128: a few tiles too many cost part of a second wave, filled up again at two."""
    one = gemm_s(H100, "bfloat16", m=256 * 12, n=128 * 11, k=16_384)
    over = gemm_s(H100, "bfloat16", m=256 * 12, n=128 * 12, k=16_384)
    two = gemm_s(H100, "bfloat16", m=256 * 12, n=128 * 22, k=16_384)
    assert over > 1.14 * one
    assert two == pytest.approx(2 * one, rel=0.02)


def test_one_wave_by_hand() -> None:
    """132 tiles of 256 x 128 on 132 SMs: k and the prologue's 96 elements at 84 % of the peak."""
    tiles_s = 2 * 256 * 128 * (8192 + 96) / (989e12 * 0.84 / 132)
    assert gemm_s(H100, "bfloat16", m=256 * 12, n=128 * 11, k=8192) == pytest.approx(2e-6 + 1e-6 + tiles_s)


def test_long_products_meet_the_power_limit() -> None:
    side = 32_768
    flop_s = 2 * side**3 * (1 + 96 / side) / (989e12 * 0.84)
    expected = 2e-3 + (flop_s - 2e-3) / 0.87
    assert gemm_s(H100, "bfloat16", m=side, n=side, k=side) == pytest.approx(expected, rel=0.02)


def test_fraction_by_dtype() -> None:
    """Twice the peak, 0.81 instead of 0.84 of it, twice the elements in the prologue; results stay 2 bytes."""
    shape = {"m": 256 * 12, "n": 128 * 11, "k": 8192}
    tiles_s = 2 * 256 * 128 * (8192 + 192) / (1979e12 * 0.81 / 132)
    assert gemm_s(H100, "float8_e4m3fn", **shape) == pytest.approx(3e-6 + tiles_s)
    wide = gemm_s(H100, "float8_e4m3fn", m=65_536, n=65_536, k=16)
    assert wide == pytest.approx(3e-6 + 2e-3 + ((2 * 65_536**2 + 2 * 16 * 65_536) / (3.35e12 * 0.85) - 2e-3) / 0.87)


def test_unstated_fractions_are_those_of_half_precision() -> None:
    mi300x = load_cluster("mi300x", 8).device.efficiency
    assert mi300x.gemm_fp32 == mi300x.gemm_fp8 == mi300x.gemm_fp4 == mi300x.gemm and mi300x.gemm_sustained == 1
    names = ("tfloat32", "float64", "bfloat16", "float16", "float8_e5m2", "float4_e2m1fn_x2")
    fields = ("gemm_fp32", "gemm_fp32", "gemm", "gemm", "gemm_fp8", "gemm_fp4")
    assert tuple(map(gemm_family, names)) == fields


def test_a_cast_by_hand() -> None:
    """Read twice, write once: 5 bytes an element at 55 % of the bandwidth."""
    assert quantise_s(H100, "float8_e4m3fn", 1e9) == pytest.approx(11e-6 + 5e9 / (3.35e12 * 0.55))
    assert quantise_s(H100, "float4_e2m1fn_x2", 1e9) == pytest.approx(5.5e-6 + 2.5625e9 / (3.35e12 * 0.55))
    assert quantise_s(H100, "float8_e4m3fn", 0) == 0


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
    fp32, bf16 = (gemm_s(H100, dtype, m=256 * 12, n=128 * 11, k=8192) for dtype in ("float32", "bfloat16"))
    assert fp32 / bf16 == pytest.approx(989 / 67, rel=0.04)
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


LIMITS = {"bfloat16": (0.09, 0.17), "fp8": (0.06, 0.16), "nvfp4": (0.06, 0.18)}
"""(median, 90th percentile) of the errors of products with 1,024 rows and more, on every device."""


@pytest.fixture(scope="module")
def products() -> dict[tuple[str, str, str], Errors]:
    if not GEMMS.is_file():
        pytest.skip("measured matrix products are not beside this checkout")
    return cells(list(gemm_rows(GEMMS)))


@pytest.mark.parametrize("dtype", LIMITS)
def test_against_measured_products(
    products: dict[tuple[str, str, str], Errors], dtype: str, record_testsuite_property: Callable[[str, object], None]
) -> None:
    found = {device: e for (device, kind, band), e in products.items() if (kind, band) == (dtype, "m >= 1,024")}
    assert {"bfloat16": 6, "fp8": 5, "nvfp4": 1}[dtype] == len(found)
    median, p90 = LIMITS[dtype]
    for device, errors in found.items():
        record_testsuite_property(f"{dtype} products, {device}", errors)
        assert errors.num_rows > 1500
        assert errors.median <= median and errors.p90 <= p90 and abs(errors.bias) <= 0.05, device
        skinny = products[device, dtype, "n or k < 2,048"]
        assert skinny.median <= 0.10 and skinny.p90 <= 0.25, device


@pytest.mark.skipif(not ATTENTION.is_file(), reason="measured attention is not beside this checkout")
def test_against_measured_attention(record_testsuite_property: Callable[[str, object], None]) -> None:
    """Forward from 1 ms up: shorter calls are mostly kernels around the attention."""
    found = {
        device: e for (device, _, band), e in cells(list(attention_rows(ATTENTION))).items() if band.startswith("1")
    }
    for device, errors in found.items():
        record_testsuite_property(f"attention forward, {device}", errors)
        assert errors.median <= 0.05 and errors.p90 <= 0.10
    assert len(found) == 2


def test_deep_gemm_grouped_products() -> None:
    """Fine-grained scales cost DeepGEMM a tenth to a quarter of what the profile's figure, per tensor, promises."""
    grouped = [row for row in DEEP_GEMM if row[0] > 1]
    for groups, m, n, k, tflop_per_s in grouped:
        seconds = gemm_s(H100, "float8_e4m3fn", batch=groups, m=m, n=n, k=k, grouped=True)
        assert 1 < 2 * groups * m * n * k / seconds / 1e12 / tflop_per_s < 1.35


def test_a_price_takes_microseconds() -> None:
    """Generous, since test machines are busy: about 6 us for a new shape and 1.5 us for one seen before."""
    shapes = iter(range(1, 100_000))
    fresh = (
        min(timeit.repeat(lambda: gemm_s(H100, "bfloat16", m=4096, n=next(shapes), k=4096), number=500, repeat=5)) / 500
    )
    again = min(timeit.repeat(lambda: gemm_s(H100, "bfloat16", m=4096, n=4096, k=4096), number=500, repeat=5)) / 500
    assert fresh < 1e-4
    assert again < 5e-5


def test_a_product_among_others_runs_at_the_power_limit_from_its_start() -> None:
    h100 = load_cluster("h100-sxm", 8).device
    alone, busy = (gemm_s(h100, "bfloat16", m=4096, n=4096, k=4096, sustained=s) for s in (False, True))
    assert alone < busy < alone / h100.efficiency.gemm_sustained
