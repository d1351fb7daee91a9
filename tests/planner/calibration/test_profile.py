from __future__ import annotations

from pathlib import Path

import pytest

from hardware_profiles.load import load_cluster, load_profile
from hardware_profiles.schema import Profile
from planner.calibration.profile import FRACTIONS, Refinement, profile_text, refine


def base() -> Profile:
    found = load_profile("h100-sxm")
    assert isinstance(found, Profile)
    return found


def test_fractions_are_divided_and_say_where_they_come_from(tmp_path: Path) -> None:
    by = {"gemm": Refinement(1.25, "measured", "Fitted to 3 runs"), "network": Refinement(2.0, "derived", "Shipped")}
    refined, cut = refine(base(), by, name="mine")
    assert cut == ()
    path = tmp_path / "mine.toml"
    path.write_text(profile_text(refined, base(), ("A head",)))
    read = load_profile(str(path))
    assert isinstance(read, Profile)
    efficiency, plain = read.device.efficiency, base().device.efficiency
    assert efficiency.gemm.value == pytest.approx(plain.gemm.value / 1.25, rel=1e-3)
    assert (efficiency.gemm.evidence, efficiency.gemm.source) == ("measured", "Fitted to 3 runs")
    assert efficiency.attention_forward == plain.attention_forward
    assert read.nic is not None and base().nic is not None
    assert read.nic.collective_fraction.value == pytest.approx(base().nic.collective_fraction.value / 2, rel=1e-3)
    assert load_cluster(f"{path}:2x8").num_devices == 16


def test_what_is_as_it_was_stands_in_the_base() -> None:
    refined, _ = refine(base(), {"gemm": Refinement(1.25, "measured", "Fitted")}, name="mine")
    text = profile_text(refined, base(), ())
    assert 'base = "h100-sxm"' in text and "[device]" in text
    assert "[node]" not in text and "[nic]" not in text and "[[network]]" not in text


def test_no_fraction_is_above_one() -> None:
    refined, cut = refine(base(), {"attention": Refinement(0.5, "measured", "Fitted")}, name="mine")
    assert cut == ("device.efficiency.attention_forward",)
    assert refined.device.efficiency.attention_forward.value == 1
    assert refined.device.efficiency.attention_backward.value < 1


@pytest.mark.parametrize("name", ["mi250x", "gb200-nvl72", "ascend-910b", "cpu-gloo"])
def test_every_kind_of_machine_can_be_refined(name: str) -> None:
    found = load_profile(name)
    assert isinstance(found, Profile)
    refined, _ = refine(found, {key: Refinement(1.1, "measured", "Fitted") for key in FRACTIONS}, name="mine")
    assert refined.name == "mine"
    profile_text(refined, found, ())
