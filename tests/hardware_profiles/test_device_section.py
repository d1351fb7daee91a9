from __future__ import annotations

import pytest

from tests.hardware_profiles.faults import errors, profile

TIERS = (
    "[collectives]",
    """[[device.tiers]]
name = "sram"
memory_gib = 0.5
gb_per_s = 10000

[device.host]
link_gb_per_s = 25.0
memory_gib = 128

[collectives]""",
)


def test_a_device_in_si_units() -> None:
    device = profile().device.build("toy")
    assert device.peak("bfloat16") == 100e12
    assert device.memory_bytes == 16 * 2**30
    assert device.memory_bytes_per_s == 1e12
    assert device.gemm_tile == (128, 64)
    assert device.launch_overhead_s == pytest.approx(2e-6)
    assert device.efficiency.optimizer == 0.75
    assert (device.tiers, device.host, device.mtbf_s, device.price_usd_per_hour) == ((), None, None, None)


def test_further_memories_and_the_host() -> None:
    more = ("launch_overhead_us = 2.0", "launch_overhead_us = 2.0\nmtbf_hours = 50_000\nprice_usd_per_hour = 2.5")
    device = profile(TIERS, more).device.build("toy")
    (sram,) = device.tiers
    assert (sram.name, sram.memory_bytes, sram.bytes_per_s) == ("sram", 2**29, 1e13)
    assert device.host is not None
    assert (device.host.link_bytes_per_s, device.host.memory_bytes) == (25e9, 2**37)
    assert (device.mtbf_s, device.price_usd_per_hour) == (50_000 * 3600, 2.5)


def test_the_hosts_time_per_call_is_known_where_it_was_measured() -> None:
    assert profile().device.build("toy").call_s is None
    measured = profile(("launch_overhead_us = 2.0", "launch_overhead_us = 2.0\ncall_us = 12.5"))
    assert measured.device.build("toy").call_s == pytest.approx(12.5e-6)


def test_decimal_memory_is_decimal() -> None:
    assert profile(("memory_gib = 16.0", "memory_gb = 16.0")).device.build("toy").memory_bytes == 16e9


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("memory_gib = 16.0", "", "device: give exactly one of memory_gib and memory_gb"),
        ("memory_gib = 16.0", "memory_gib = 16\nmemory_gb = 16", "device: give exactly one of memory_gib and memory"),
        ("memory_gib = 16.0", "memory_gib = 16\nmemory = 16", "device.memory = 16: unknown key"),
        ("memory_gb_per_s = 1000.0", "memory_tb_per_s = 1.0", "device.memory_gb_per_s: required key is missing"),
        ("launch_overhead_us = 2.0", "", "device.launch_overhead_us: required key is missing"),
        ("norm = 0.7\n", "", "device.efficiency.norm: required key is missing"),
        ("[128, 64]", "[128]", "device.gemm_tile: List should have at least 2 items after validation, not 1"),
        ("peak_bf16_tflop_per_s = 100", "", "device: give at least one of peak_fp64_tflop_per_s, peak_fp32_tflop"),
    ],
)
def test_nothing_physical_has_a_default(old: str, new: str, line: str) -> None:
    assert errors((old, new))[0].startswith(f"toy.toml: {line}")
