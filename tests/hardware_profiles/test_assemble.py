from __future__ import annotations

from pathlib import Path

import pytest

from hardware_profiles.errors import ProfileError
from hardware_profiles.load import load_cluster
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
    with pytest.raises(
        ProfileError, match=r"level 'spine' with 6 nodes must be a multiple of the level inside it \(4\)"
    ):
        load_cluster(f"{path}:6x4")
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
    path = mixed(tmp_path, memory_gib_is_16="memory_gib = 8", launch_overhead_us_is_2="launch_overhead_us = 9")
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
