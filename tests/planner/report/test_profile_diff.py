from __future__ import annotations

from pathlib import Path

import pytest

from hardware_profiles.schema import Profile, parse_profile
from planner.report import profile_diff

TOY = (Path(__file__).parents[2] / "hardware_profiles" / "toy.toml").read_text()


def toy(**changes: str) -> Profile:
    """The toy profile; every keyword is a key of its file and the line that takes its place."""
    lines = [changes.pop(line.split(" =")[0], line) for line in TOY.splitlines()]
    assert not changes
    profile = parse_profile("\n".join(lines), "toy.toml")
    assert isinstance(profile, Profile)
    return profile


def test_equal_profiles_have_no_difference() -> None:
    found = profile_diff.compare(toy(), toy(name='name = "other"'))
    assert profile_diff.render(found, width=100) == "toy and other: no difference\n"


def test_evidence_is_no_difference() -> None:
    told = toy(launch_us='launch_us = { value = 4.0, evidence = "measured", source = "us" }')
    assert profile_diff.compare(toy(), told).figures == ()


def test_figures_have_their_ratio() -> None:
    found = profile_diff.compare(toy(), toy(memory_gb_per_s="memory_gb_per_s = 2500", gemm="gemm = 0.45"))
    ratios = {pair.path: pair.ratio for pair in found.figures}
    assert ratios == {"device.memory_gb_per_s": 2.5, "device.efficiency.gemm": pytest.approx(0.5)}
    text = profile_diff.render(found, width=100)
    assert "device.memory_gb_per_s 1000 GB/s 2500 GB/s   2.5" in text
    assert "device.efficiency.gemm 90%       45%         0.5" in text


def test_a_figure_of_nothing_has_no_ratio() -> None:
    found = profile_diff.compare(toy(), toy(latency_us="latency_us = 2.0"))
    assert [(pair.path, pair.ratio) for pair in found.figures] == [("node.latency_us", 2.0)]
    zero = parse_profile(TOY, "toy.toml")
    some = parse_profile(TOY.replace("latency_us = 0\n", "latency_us = 0.5\n"), "toy.toml")
    (pair,) = profile_diff.compare(zero, some).figures
    assert (pair.path, pair.ratio) == ("network[0].latency_us", None)
    assert "ratio" not in profile_diff.render(profile_diff.compare(zero, some), width=100)
    both = parse_profile(TOY.replace("latency_us = 0\n", "latency_us = 0.5\n").replace("0.95", "0.475"), "toy.toml")
    rows = profile_diff.render(profile_diff.compare(zero, both, ("a", "b")), width=100).splitlines()
    assert rows[0].split() == ["figure", "a", "b", "ratio"]
    assert {row.split()[0]: row.split()[-1] for row in rows[1:]} == {
        "nic.send_fraction": "0.5",
        "network[0].latency_us": "-",
    }


def test_structure_and_what_only_one_has() -> None:
    mesh = parse_profile(TOY.replace('fabric = "switch"\ngb_per_s', 'fabric = "full-mesh"\nlink_gb_per_s'), "toy.toml")
    found = profile_diff.compare(toy(), mesh)
    assert [(pair.path, pair.first, pair.second) for pair in found.structure] == [
        ("node.fabric", "switch", "full-mesh")
    ]
    assert set(found.only_first) == {"node.gb_per_s"}
    assert set(found.only_second) == {"node.link_gb_per_s"}
    content = profile_diff.to_json(found)
    assert content["only_second"] == {"node.link_gb_per_s": 100.0}
    assert content["structure"] == [{"path": "node.fabric", "first": "switch", "second": "full-mesh"}]
    text = profile_diff.render(found, width=80)
    assert "only in toy\nnode.gb_per_s 100 GB/s" in text


def test_long_lists_wrap() -> None:
    more = toy(algorithms='algorithms = ["ring", "tree", "nvls", "sharp", "hierarchical"]')
    text = profile_diff.render(profile_diff.compare(toy(), more), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "hierarchical" in "".join(text.split())
