from __future__ import annotations

from pathlib import Path

import pytest

from hardware_profiles.errors import ProfileError
from hardware_profiles.schema import parse_profile

GOOD = Path(__file__).with_name("toy.toml").read_text(encoding="utf-8")


def errors(old: str, new: str) -> list[str]:
    assert old in GOOD
    with pytest.raises(ProfileError) as caught:
        parse_profile(GOOD.replace(old, new, 1), "toy.toml")
    return str(caught.value).splitlines()


def test_a_good_profile_becomes_si_units() -> None:
    profile = parse_profile(GOOD, "toy.toml")
    device = profile.device.build(profile.name)
    assert device.peak("bfloat16") == 100e12
    assert device.memory_bytes == 16 * 2**30
    assert device.memory_bytes_per_s == 1e12
    assert device.gemm_tile == (128, 64)
    assert device.launch_overhead_s == pytest.approx(2e-6)
    level = profile.node.build(4)
    assert (level.num_devices, level.bytes_per_s, level.switch_reduce_fraction, level.full_mesh) == (
        4,
        100e9,
        0.0,
        False,
    )
    assert level.latency_s == pytest.approx(3e-6)


def test_decimal_memory_is_decimal() -> None:
    profile = parse_profile(GOOD.replace("memory_gib = 16.0", "memory_gb = 16.0"), "toy.toml")
    assert profile.device.build("toy").memory_bytes == 16e9


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("memory_gib = 16.0", "", "toy.toml: device: give exactly one of memory_gib and memory_gb"),
        (
            "memory_gib = 16.0",
            "memory_gib = 16\nmemory_gb = 16",
            "toy.toml: device: give exactly one of memory_gib and memory_gb",
        ),
        ("memory_gib = 16.0", "memory_gib = -1", "toy.toml: device.memory_gib = -1: Input should be greater than 0"),
        ("memory_gib = 16.0", "memory_gib = inf", "toy.toml: device.memory_gib = inf: Input should be a finite number"),
        (
            "memory_gib = 16.0",
            'memory_gib = "16"',
            "toy.toml: device.memory_gib = '16': Input should be a valid number",
        ),
        (
            "memory_gib = 16.0",
            "memory_gib = true",
            "toy.toml: device.memory_gib = True: Input should be a valid number",
        ),
        ("memory_gib = 16.0", "memory_gib = 16\nmemory = 16", "toy.toml: device.memory = 16: unknown key"),
        ("launch_overhead_us = 2.0", "", "toy.toml: device.launch_overhead_us: required key is missing"),
        (
            "num_compute_units = 10",
            "num_compute_units = 1.5",
            "toy.toml: device.num_compute_units = 1.5: Input should be a valid integer",
        ),
        (
            "sustained_fraction = 0.9\nlatency_us = 5.0",
            "sustained_fraction = 90\nlatency_us = 5.0",
            "toy.toml: levels[1].sustained_fraction = 90: Input should be less than or equal to 1",
        ),
        (
            'evidence = "datasheet"',
            'evidence = "guess"',
            "toy.toml: evidence = 'guess': Input should be 'datasheet' or 'measured'",
        ),
        (
            'name = "toy"',
            'name = "My Toy"',
            "toy.toml: name = 'My Toy': String should match pattern '^[a-z0-9][a-z0-9_-]*$'",
        ),
        ('name = "node"', 'name = "box"', "toy.toml: one level must be called 'node', got box, network"),
        ('name = "network"', 'name = "node"', "toy.toml: level names must differ, got node, node"),
        (
            "num_devices = 4",
            "",
            "toy.toml: num_devices of level 'node' is missing; only the outermost level may leave it out",
        ),
        (
            "gb_per_s = 10.0",
            "gb_per_s = 10.0\nnum_devices = 6",
            "toy.toml: num_devices of level 'network' (6) must be a multiple of 4",
        ),
        ("[128, 64]", "[128]", "toy.toml: device.gemm_tile: List should have at least 2 items after validation, not 1"),
    ],
)
def test_one_line_per_fault(old: str, new: str, line: str) -> None:
    (got,) = errors(old, new)
    assert got.startswith(line)


def test_inner_levels_nest() -> None:
    card = '[[levels]]\nname = "card"\nnum_devices = 3\ngb_per_s = 1.0\nsustained_fraction = 0.8\nlatency_us = 1.0\n\n'
    (got,) = errors('[[levels]]\nname = "node"', card + '[[levels]]\nname = "node"')
    assert got == "toy.toml: num_devices of level 'node' (4) must be a larger multiple of 3"


def test_a_device_without_any_peak() -> None:
    (got,) = errors("peak_bf16_tflop_per_s = 100", "")
    assert got.startswith("toy.toml: device: give at least one of peak_fp64_tflop_per_s, peak_fp32_tflop_per_s")


def test_all_faults_at_once() -> None:
    got = errors(
        "memory_gb_per_s = 1000.0\nmemory_sustained_fraction = 0.8",
        "memory_gb_per_s = 0\nmemory_sustained_fraction = 2",
    )
    assert len(got) == 2
    assert got[0].startswith("toy.toml: device.memory_gb_per_s = 0: ")
    assert got[1].startswith("toy.toml: device.memory_sustained_fraction = 2: ")


def test_broken_toml_says_where() -> None:
    (got,) = errors("num_compute_units = 10", "num_compute_units = = 10")
    assert got == "toy.toml: not valid TOML: Invalid value (at line 9, column 21)"
