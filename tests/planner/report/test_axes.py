from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodels.units import MIB
from hardware_profiles.load import load_cluster
from planner.errors import UsageError
from planner.plan import AXES
from planner.report import axes
from planner.report.axes import axes_json, axes_of, parse_axes, render_axes

TOY = str(Path(__file__).parents[2] / "hardware_profiles" / "toy.toml")
"""Nodes of 4 behind a switch, 100 GB/s at 80 %; a card of 10 GB/s per device, 90 % in collectives and 95 % in sends."""


def shown(cluster: str, mesh: str, width: int = 100) -> str:
    picture = load_cluster(cluster)
    return render_axes(picture, axes_of(picture, parse_axes(mesh)), width=width)


def test_axes_are_put_in_their_order() -> None:
    assert list(parse_axes("tp=8, dp_shard=4,pp=2").items()) == [("pp", 2), ("dp_shard", 4), ("tp", 8)]
    assert [name for name in axes.ORDER if name in AXES] == list(AXES)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("dp=4", "'dp' is not an axis: data parallelism has two, dp_shard"),
        ("xp=4", "unknown axis 'xp'; write for example --axes tp=8,dp_shard=4,pp=2 with axes of pp, dp_replicate,"),
        ("tp=0", "'tp=0' is not NAME=SIZE with a size of at least 1"),
        ("tp=2.5", "'tp=2.5' is not NAME=SIZE"),
        ("tp", "'tp' is not NAME=SIZE"),
        ("", "'' is not NAME=SIZE"),
        ("tp=2,pp=2,tp=4", "tp is given twice (2 and 4)"),
    ],
)
def test_what_is_no_mesh_is_refused(written: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_axes(written)
    assert said in str(caught.value)


def test_a_mesh_must_divide_the_devices() -> None:
    with pytest.raises(
        UsageError, match="a mesh of pp 2 x tp 3 has 6 ranks, which must divide the 8 devices of toy:2x4"
    ):
        axes_of(load_cluster(f"{TOY}:2x4"), parse_axes("tp=3,pp=2"))


def test_figures_are_those_worked_out_by_hand() -> None:
    cluster = load_cluster(f"{TOY}:4x4")
    pp, dp_shard, tp = axes_of(cluster, parse_axes("tp=4,dp_shard=2,pp=2"))
    assert [(axis.name, axis.size, axis.stride) for axis in (pp, dp_shard, tp)] == [
        ("pp", 2, 8),
        ("dp_shard", 2, 4),
        ("tp", 4, 1),
    ]
    levels = [axis.group.levels[0] for axis in (pp, dp_shard, tp)]
    assert [(level.name, level.fan) for level in levels] == [("network", 2), ("network", 2), ("node", 4)]
    assert [level.bytes_per_s for level in levels] == pytest.approx([10e9 * 0.95, 10e9 * 0.9, 100e9 * 0.8])
    assert [level.latency_s for level in levels] == pytest.approx([3e-6, 3e-6, 1e-6])
    (send,) = pp.calls
    assert send.seconds == pytest.approx(4e-6 + 3e-6 + 64 * MIB / 9.5e9)
    assert send.bus_bytes_per_s == pytest.approx(64 * MIB / send.seconds)


@pytest.mark.parametrize(("mesh", "n"), [("tp=2", 2), ("tp=4", 4), ("tp=16", 16)])
def test_bus_bandwidth_is_that_of_nccl_tests(mesh: str, n: int) -> None:
    (tp,) = axes_of(load_cluster(f"{TOY}:4x4"), parse_axes(mesh))
    reduce, gather = tp.calls
    assert reduce.bus_bytes_per_s * reduce.seconds == pytest.approx(64 * MIB * 2 * (n - 1) / n)
    assert gather.bus_bytes_per_s * gather.seconds == pytest.approx(64 * MIB * (n - 1) / n)
    slowest = min(level.bytes_per_s for level in tp.group.levels)
    assert gather.bus_bytes_per_s < (80e9 if n < 16 else 4 * slowest)


def test_an_axis_of_one_and_a_mesh_that_stands_there_twice() -> None:
    text = shown(f"{TOY}:2x4", "tp=4,pp=1")
    assert text.splitlines()[0] == "toy:2x4: 8 devices, mesh pp 1 x tp 4, 2 of these meshes side by side"
    assert next(line for line in text.splitlines() if line.startswith("pp")).split() == [
        *("pp", "1", "4", "no", "communication")
    ]


def test_stages_of_a_mesh_that_stands_there_twice_meet_in_their_own_node() -> None:
    cluster = load_cluster(f"{TOY}:2x4")
    (pp, _) = axes_of(cluster, parse_axes("pp=2,tp=2"))
    (level,) = pp.group.levels
    assert (level.name, level.bytes_per_s) == ("node", pytest.approx(100e9 * 0.85))
    (pp, _) = axes_of(cluster, parse_axes("pp=4,tp=2"))
    assert pp.group.levels[0].name == "network"


def test_a_row_per_axis_with_its_levels_below() -> None:
    lines = shown(f"{TOY}:4x4", "tp=8,dp_shard=2").splitlines()
    assert lines[2].split() == ["axis", "size", "stride", "level", "fan", "per", "rank", "hop", "because"]
    assert lines[3].split()[:8] == ["dp_shard", "2", "8", "network", "2", "9.00", "GB/s", "3.00"]
    node = next(i for i, line in enumerate(lines) if line.startswith("tp "))
    assert lines[node].split()[:9] == ["tp", "8", "1", "node", "4", "80.0", "GB/s", "1.00", "us"]
    assert lines[node].endswith("own link of 100 GB/s to the switch, 80% sustained")
    assert any(line.split()[:4] == ["network", "2", "9.00", "GB/s"] for line in lines[node + 1 :])


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_is_cut_at_any_width(width: int) -> None:
    text = shown("two-islands", "tp=4,dp_shard=8,pp=2", width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("uplink", "ethernet", "sustained", "groups"):
        assert word in text
    assert "\u2026" not in text


def test_tensor_parallel_groups_of_frontier_differ_and_say_why() -> None:
    """Two share a card's 150 GB/s; four and eight are cut where links leave a card; sixteen, at the network cards."""
    cluster = load_cluster("frontier:2x8")
    rates, reasons = [], []
    for size in (2, 4, 8, 16):
        (tp,) = axes_of(cluster, {"tp": size})
        rates.append(tp.group.levels[-1].bytes_per_s)
        reasons.append(tp.group.levels[-1].limit)
    assert all(max(a, b) / min(a, b) > 1.3 for i, a in enumerate(rates) for b in rates[:i])
    assert len(set(reasons)) == 4
    assert rates[0] == pytest.approx(200e9 * 0.75)
    # 25 GB/s cards for two devices each, 85 % in collectives.
    assert rates[3] == pytest.approx(25e9 / 2 * 0.85)
    assert "4 cards of 25.0 GB/s for 8 devices" in reasons[3]
    # Eight have more links out of a card than the four that are on two cards.
    assert rates[1] < rates[2] < rates[0]


def test_json_has_si_units() -> None:
    cluster = load_cluster(f"{TOY}:2x4")
    content = json.loads(json.dumps(axes_json(cluster, axes_of(cluster, {"dp_shard": 2, "tp": 4}))))
    assert (content["cluster"], content["num_devices"], content["message_bytes"]) == ("toy:2x4", 8, 64 * MIB)
    tp = content["axes"][1]
    assert (tp["name"], tp["size"], tp["stride"]) == ("tp", 4, 1)
    assert tp["levels"][0]["bytes_per_s"] == pytest.approx(80e9)
    assert {call["name"] for call in tp["calls"]} == {"all-reduce", "all-gather"}
