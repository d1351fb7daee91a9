from __future__ import annotations

from pathlib import Path

import pytest

from hardware_profiles.figures import Figure
from hardware_profiles.load import load_profile, names
from hardware_profiles.schema import Profile
from planner.report import profile_values

TOY = str(Path(__file__).parents[2] / "hardware_profiles" / "toy.toml")


@pytest.mark.parametrize("name", names())
def test_the_figures_are_those_that_the_profile_counts(name: str) -> None:
    profile = load_profile(name)
    assert set(profile_values.figures(profile)) >= set(profile.figures())


@pytest.mark.parametrize(
    ("path", "value", "label", "shown"),
    [
        ("device.memory_gb_per_s", 3350.0, "memory bandwidth", "3350 GB/s"),
        ("node.gb_per_s", 64.5, "bandwidth", "64.5 GB/s"),
        ("device.memory_gib", 79.1, "memory", "79.1 GiB"),
        ("device.memory_gb", 80.0, "memory", "80 GB"),
        ("device.peak_bf16_tflop_per_s", 989.0, "peak bf16", "989 TFLOP/s"),
        ("network[0].latency_us", 0.35, "latency", "0.35 us"),
        ("device.price_usd_per_hour", 3.99, "price", "3.99 USD/h"),
        ("device.mtbf_hours", 50676.0, "mtbf", "50676 h"),
        ("device.efficiency.gemm", 1.0, "gemm", "100%"),
        ("nic.collective_fraction", 0.956, "collective fraction", "95.6%"),
        ("network[1].oversubscription", 1.75, "oversubscription", "1.75"),
        ("device.num_compute_units", 132, "compute units", "132"),
    ],
)
def test_keys_become_words_and_units(path: str, value: float, label: str, shown: str) -> None:
    assert profile_values.label(path) == label
    assert profile_values.shown(path, Figure(value=value)) == shown


def test_plain_values_in_words() -> None:
    assert profile_values.shown("network[0].rails", True) == "yes"
    assert profile_values.shown("nic.attached", [[0, 1], [2, 3]]) == "0-1, 2-3"
    assert profile_values.shown("collectives.algorithms", ["ring", "tree"]) == "ring, tree"


def test_the_peak_is_that_of_training() -> None:
    toy, npu = load_profile(TOY), load_profile("ascend-910a")
    assert isinstance(toy, Profile)
    assert isinstance(npu, Profile)
    assert profile_values.best_peak(toy) == ("bfloat16", 100e12)
    assert profile_values.best_peak(npu)[0] == "float16"
