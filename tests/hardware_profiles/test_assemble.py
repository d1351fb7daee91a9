from __future__ import annotations

from pathlib import Path

import pytest

from hardware_profiles.errors import ProfileError
from hardware_profiles.load import load_cluster
from hardware_profiles.topology import boundary, group
from tests.hardware_profiles.faults import GOOD
from tests.hardware_profiles.pictures import TOY

LEAF = "num_nodes = 4\n"
SPINE = '\n[[network]]\nname = "spine"\nlatency_us = 1.0\noversubscription = 2.0\nrouting = "sprayed"\n'
MIXED = """
name = "mixed"
[[groups]]
name = "left"
hardware = "{toy}"
num_nodes = 4
[[groups]]
name = "right"
hardware = "{other}"
num_nodes = 2
[groups.nic]
count = 2
gb_per_s = 5.0
latency_us = 9.0
collective_fraction = 0.5
send_fraction = 0.5
contended_fraction = 0.4
[[network]]
name = "wan"
latency_us = 100.0
uplink_gb_per_s = 8.0
routing = "sprayed"
"""


def levels(hardware: str) -> list[tuple[str, int]]:
    return [(level.name, level.num_devices) for level in load_cluster(hardware).network]


def mixed(folder: Path, **changes: str) -> str:
    other = folder / "other.toml"
    text = GOOD
    for old, new in changes.items():
        text = text.replace(old.replace("_is_", " = "), new)
    other.write_text(text.replace('name = "toy"', 'name = "other"'))
    path = folder / "mixed.toml"
    path.write_text(MIXED.format(toy=TOY, other=other))
    return str(path)


def test_levels_that_join_nothing_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "spine.toml"
    path.write_text(GOOD + LEAF + SPINE)
    assert levels(f"{path}:8x4") == [("network", 16), ("spine", 32)]
    assert levels(f"{path}:8x2") == [("network", 8), ("spine", 16)]
    assert levels(f"{path}:4x4") == [("network", 16)]
    assert levels(f"{path}:2x4") == [("network", 8)]
    assert levels(f"{path}:1x4") == []
    assert [level.uplink_devices for level in load_cluster(f"{path}:8x4").network] == [4, 16]
    # The last leaf holds two nodes of four.
    assert levels(f"{path}:6x4") == [("network", 16), ("spine", 24)]
    path.write_text(GOOD + LEAF)
    with pytest.raises(ProfileError, match="8 nodes do not fit: the outermost level 'network' of profile toy joins 4"):
        load_cluster(f"{path}:8x4")


def test_the_fingerprint_depends_on_content_and_size_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(GOOD)
    two.write_text("# a comment\n" + GOOD.replace("16.0", "16.00"))
    same = load_cluster(str(one), 8).fingerprint
    assert len(same) == 64
    assert load_cluster(str(two), 8).fingerprint == load_cluster(f"{one}:2x4").fingerprint == same
    assert load_cluster(str(one), 12).fingerprint != same
    two.write_text(GOOD.replace("16.0", "17.0"))
    assert load_cluster(str(two), 8).fingerprint != same


def test_a_mixed_cluster_counts_on_the_weakest_figure_of_each_kind(tmp_path: Path) -> None:
    path = mixed(tmp_path, memory_gib_is_16="memory_gib = 8 #", launch_overhead_us_is_2="launch_overhead_us = 9 #")
    cluster = load_cluster(path)
    assert (cluster.name, cluster.num_devices, cluster.num_nodes) == ("mixed:6x4", 24, 6)
    assert cluster.device.memory_bytes == 8 * 2**30
    assert cluster.device.peak("bfloat16") == 100e12
    assert cluster.device.launch_overhead_s == pytest.approx(9e-6)
    assert [(m.name, m.first_device, m.num_devices) for m in cluster.machines] == [("left", 0, 16), ("right", 16, 8)]
    nics = [m.nic for m in cluster.machines]
    assert [nic.bytes_per_s for nic in nics if nic] == [10e9, 5e9]


def test_its_groups_are_joined_by_units_that_lie_in_one_of_them(tmp_path: Path) -> None:
    cluster = load_cluster(mixed(tmp_path))
    # Four nodes and two: two divide both. The uplink is shared by the sixteen devices of the larger group.
    assert [(level.name, level.num_devices) for level in cluster.network] == [("group", 8), ("wan", 24)]
    assert [[level.name for level in machines.inside] for machines in cluster.machines] == [["network"], ["network"]]
    assert cluster.network[-1].uplink_devices == 16
    assert cluster.network[-1].uplink_bytes_per_s == 8e9


def test_a_mixed_cluster_has_the_size_of_its_file(tmp_path: Path) -> None:
    path = mixed(tmp_path)
    assert load_cluster(path, 24) == load_cluster(path)
    assert load_cluster(f"{path}:6x4") == load_cluster(path)
    for hardware, num_devices, asked in ((f"{path}:2x4", None, "2x4"), (path, 8, "8 devices")):
        with pytest.raises(ProfileError, match=f"{asked} asked for, but the file describes 6x4; name a group"):
            load_cluster(hardware, num_devices)


def test_nodes_of_different_sizes_are_planned_one_group_at_a_time(tmp_path: Path) -> None:
    path = mixed(tmp_path, num_devices_is_4="num_devices = 2", count_is_4="count = 2")
    with pytest.raises(ProfileError, match=r"have as many devices \(left 4, right 2\); plan one group, e\.g\. .*@left"):
        load_cluster(path)
    assert load_cluster(f"{path}@right").num_devices == 4


def test_a_group_may_not_be_mixed_itself(tmp_path: Path) -> None:
    path = tmp_path / "nested.toml"
    path.write_text(MIXED.format(toy=TOY, other="two-islands"))
    with pytest.raises(ProfileError, match="group 'right': two-islands is itself a mixed cluster"):
        load_cluster(str(path))


def test_cards_of_a_group_fit_its_machines(tmp_path: Path) -> None:
    path = tmp_path / "cards.toml"
    path.write_text(MIXED.format(toy=TOY, other=TOY).replace("count = 2", "count = 3"))
    with pytest.raises(ProfileError, match=r"group 'right': nic: count \(3\) must divide the node's devices \(4\)"):
        load_cluster(str(path))


def test_what_slows_a_group_down_inside_counts_in_the_whole(tmp_path: Path) -> None:
    """Leaves of two nodes whose uplinks carry a tenth of their cards, in one of two groups."""
    other = tmp_path / "other.toml"
    slow = SPINE.replace("oversubscription = 2.0", "oversubscription = 10.0").replace(
        "latency_us = 1.0", "latency_us = 8.0"
    )
    other.write_text(GOOD.replace('name = "toy"', 'name = "other"') + "num_nodes = 2\n" + slow)
    path = tmp_path / "mixed.toml"
    text = MIXED.format(toy=TOY, other="other.toml").replace("num_nodes = 2", "num_nodes = 4")
    path.write_text(text[: text.index("[groups.nic]")] + text[text.index("[[network]]") :])
    whole, alone = load_cluster(str(path)), load_cluster(f"{path}@right")
    slow_level, level = (group(each, size=2, stride=8).levels[-1] for each in (alone, whole))
    assert slow_level.bytes_per_s == pytest.approx(0.9e9)
    assert level.bytes_per_s == pytest.approx(slow_level.bytes_per_s)
    assert level.latency_s == slow_level.latency_s == pytest.approx(11e-6)
    assert group(whole, size=2, stride=16).levels[-1].latency_s == pytest.approx(103e-6)


def test_a_boundary_inside_a_group_is_that_groups(tmp_path: Path) -> None:
    cluster = load_cluster(mixed(tmp_path))
    rates = [boundary(cluster, stride=4, index=i).levels[0].bytes_per_s for i in (0, 4)]
    assert rates == pytest.approx([10e9 * 0.95, 2.5e9 * 0.5])


def test_groups_have_a_protocol_and_a_dtype_in_common(tmp_path: Path) -> None:
    path = mixed(tmp_path, **{'protocols_is_["ll", "simple"]': 'protocols = ["ll", "hockney"]'})
    with pytest.raises(
        ProfileError, match=r"no protocol for large messages in common \(nccl: ll, simple; nccl: hockney, ll"
    ):
        load_cluster(path)
    path = mixed(tmp_path, peak_bf16_tflop_per_s_is_100="peak_fp16_tflop_per_s = 100 #")
    with pytest.raises(ProfileError, match="no dtype has a peak on all of toy, other"):
        load_cluster(path)


def test_the_library_of_a_mixed_cluster_is_the_slowest(tmp_path: Path) -> None:
    path = mixed(
        tmp_path, compute_slowdown_is_1="compute_slowdown = 1.3 #", copy_gb_per_s_is_500="copy_gb_per_s = 200 #"
    )
    library = load_cluster(path).library
    assert (library.compute_slowdown, library.copy_bytes_per_s) == (1.3, 200e9)


def test_machines_without_cards_cannot_be_mixed(tmp_path: Path) -> None:
    path = tmp_path / "boxes.toml"
    text = MIXED.format(toy=TOY, other="pcie-box")
    path.write_text(text[: text.index("[groups.nic]")] + text[text.index("[[network]]") :])
    with pytest.raises(
        ProfileError, match=r"group 'right': pcie-box has no \[nic\] and \[\[network\]\] to be joined by"
    ):
        load_cluster(str(path))


def test_a_group_of_one_node_has_cards(tmp_path: Path) -> None:
    path = tmp_path / "ones.toml"
    path.write_text(
        MIXED.format(toy=TOY, other=TOY).replace("num_nodes = 4", "num_nodes = 1").replace("= 2\n[g", "= 1\n[g")
    )
    cluster = load_cluster(str(path))
    assert [level.name for level in cluster.network] == ["wan"]
    assert group(cluster, size=2, stride=4).levels[0].bytes_per_s == pytest.approx(2e9 * 0.4)
