from __future__ import annotations

import pytest

from tests.hardware_profiles.faults import errors, profile


def test_a_figure_is_a_number_or_says_where_it_comes_from() -> None:
    known = profile(
        ("memory_gib = 16.0", 'memory_gib = { value = 16.0, evidence = "datasheet", source = "the box" }')
    ).figures()
    assert known["device.memory_gib"].value == 16.0
    assert known["device.memory_gib"].evidence == "datasheet"
    assert known["device.memory_gib"].source == "the box"
    assert known["device.memory_gb_per_s"].evidence is None


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("memory_gib = 16.0", "memory_gib = -1", "device.memory_gib = -1: must be 0.001 to 8000 GiB or GB"),
        ("memory_gib = 16.0", "memory_gib = 0", "device.memory_gib = 0: must be 0.001 to 8000 GiB or GB"),
        ("memory_gib = 16.0", "memory_gib = inf", "device.memory_gib = inf: must be 0.001 to 8000 GiB or GB"),
        ("memory_gib = 16.0", "memory_gib = nan", "device.memory_gib = nan: must be 0.001 to 8000 GiB or GB"),
        # bytes/s, FLOP/s and seconds where GB/s, TFLOP/s and microseconds are meant
        ("= 1000.0", "= 1e12", "device.memory_gb_per_s = 1000000000000.0: must be 0.001 to 1e+06 GB/s"),
        ("= 100\n", "= 1e14\n", "device.peak_bf16_tflop_per_s = 100000000000000.0: must be 0.001 to 100000 TFLOP/s"),
        ("latency_us = 1.0", "latency_us = 1e-6", "node.latency_us = 1e-06: must be 0.01 to 1e+06 us"),
        ("latency_us = 1.0", "latency_us = 0", "node.latency_us = 0: must be 0.01 to 1e+06 us"),
        # MiB as nvidia-smi prints them, MB/s, seconds
        ("memory_gib = 16.0", "memory_gib = 81559", "device.memory_gib = 81559: must be 0.001 to 8000 GiB or GB"),
        ("gb_per_s = 10.0", "gb_per_s = 10000", "nic.gb_per_s = 10000: must be 0.001 to 800 GB/s"),
        ("launch_us = 4.0", "launch_us = 4e-6", "collectives.launch_us = 4e-06: must be 0, or 0.01 to 1e+06 us"),
        ("latency_us = 0\n", "latency_us = 1e-6\n", "network[0].latency_us = 1e-06: must be 0, or 0.01 to 1e+06 us"),
        ("gemm = 0.9", "gemm = 90", "device.efficiency.gemm = 90: must be 0.001 to 1 (a part of the whole)"),
        ("compute_slowdown = 1.0", "compute_slowdown = 0.9", "collectives.compute_slowdown = 0.9: must be 1 to 1000"),
        ("memory_gib = 16.0", 'memory_gib = "16"', "device.memory_gib = '16': Input should be a valid number"),
        ("memory_gib = 16.0", "memory_gib = true", "device.memory_gib = True: Input should be a valid number"),
        ("memory_gib = 16.0", "memory_gib = {}", "device.memory_gib.value: required key is missing"),
        (
            "memory_gib = 16.0",
            'memory_gib = { value = 16.0, evidence = "guess" }',
            "device.memory_gib.evidence = 'guess': Input should be 'measured', 'datasheet' or 'derived'",
        ),
        ("memory_gib = 16.0", "memory_gib = { value = 16.0, unit = 1 }", "device.memory_gib.unit = 1: unknown key"),
        (
            "num_compute_units = 10",
            "num_compute_units = 1.5",
            "device.num_compute_units = 1.5: Input should be a",
        ),
    ],
)
def test_faults_name_field_value_and_rule(old: str, new: str, line: str) -> None:
    (got,) = errors((old, new))
    assert got.startswith(f"toy.toml: {line}")
