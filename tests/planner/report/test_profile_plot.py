from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from hardware_profiles.cluster import Tier
from hardware_profiles.load import load_cluster
from planner.errors import MissingPackageError
from planner.report import profile_plot

TOY = str(Path(__file__).parents[2] / "hardware_profiles" / "toy.toml")


def curves(svg: str) -> list[str]:
    kinds = ("roof:", "reached:", "all-reduce:", "all-gather:")
    ids = (element.get("id", "") for element in ET.fromstring(svg).iter())
    return [name for name in ids if name.startswith(kinds)]


def test_the_picture_is_xml_with_its_curves_and_always_the_same() -> None:
    pytest.importorskip("matplotlib")
    cluster = load_cluster(f"{TOY}:2x4")
    svg = profile_plot.render(cluster)
    assert curves(svg) == [
        *("roof:bfloat16:memory", "reached:bfloat16:memory"),
        *(f"all-{what}:{size}" for size in (2, 4, 8) for what in ("reduce", "gather")),
    ]
    assert svg == profile_plot.render(cluster)
    assert "toy:2x4" in svg
    assert "<dc:date>" not in svg


@pytest.mark.parametrize(("shape", "expected"), [("1x1", 0), ("1x2", 2), ("1x4", 4), ("8x1", 4)])
def test_collectives_are_drawn_for_the_groups_that_there_are(shape: str, expected: int) -> None:
    assert len(profile_plot.bandwidths(load_cluster(f"{TOY}:{shape}"))) == expected


def test_a_cluster_of_one_device_can_be_drawn() -> None:
    pytest.importorskip("matplotlib")
    assert len(curves(profile_plot.render(load_cluster(f"{TOY}:1x1")))) == 2


def test_roofs_are_those_of_the_profile() -> None:
    from dataclasses import replace

    device = load_cluster(f"{TOY}:1x4").device
    assert profile_plot.roofs(device)["roof:bfloat16:memory"] == (100e12, 1e12)
    assert profile_plot.roofs(device)["reached:bfloat16:memory"] == pytest.approx((90e12, 0.8e12))
    tiered = replace(device, tiers=(Tier(name="sram", memory_bytes=10, bytes_per_s=9e12),))
    assert len(profile_plot.roofs(tiered)) == 4


def test_large_messages_reach_the_links() -> None:
    rates = profile_plot.bandwidths(load_cluster(f"{TOY}:2x4"))
    assert len(profile_plot.MESSAGES_BYTES) == len(rates["all-gather:4"]) == 41
    assert profile_plot.MESSAGES_BYTES[0] == 1024
    assert profile_plot.MESSAGES_BYTES[-1] == 2**30
    assert 0.7 * 80e9 < rates["all-reduce:4"][-1] <= 80e9
    assert rates["all-reduce:4"] == sorted(rates["all-reduce:4"])


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imports = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return imports(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingPackageError) as caught:
        profile_plot.render(load_cluster(f"{TOY}:1x4"))
    assert 'pip install "meshwright[plot]"' in str(caught.value)
    assert caught.value.exit_code == 4
