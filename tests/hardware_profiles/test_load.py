from __future__ import annotations

from pathlib import Path

import pytest

from hardware_profiles.errors import ProfileError, UnknownNameError
from hardware_profiles.load import load_cluster, load_profile, names
from hardware_profiles.schema import MixedProfile, Profile
from tests.hardware_profiles.faults import GOOD

PROFILES = {name: load_profile(name) for name in names()}


def shape(hardware: str, num_devices: int | None = None) -> list[tuple[str, int]]:
    cluster = load_cluster(hardware, num_devices)
    return [("node", cluster.devices_per_node), *((level.name, level.num_devices) for level in cluster.network)]


def test_packaged_names() -> None:
    assert names() == (
        "a100-40gb", "a100-80gb", "a100-pcie", "a800-80gb", "ascend-910a", "ascend-910b", "atlas-800t-a2", "b200-sxm",
        "b300-sxm", "cpu-gloo", "dgx-a100", "dgx-h100", "frontier", "gb200-nvl72", "gb300-nvl72", "gh200-96gb",
        "h100-96gb", "h100-pcie", "h100-sxm", "h200-sxm", "h800-sxm", "mi250x", "mi300x", "pcie-box", "sn40l",
        "two-islands",
    )  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_every_packaged_figure_says_where_it_comes_from(name: str) -> None:
    profile = PROFILES[name]
    assert profile.name == name
    figures = profile.figures()
    assert figures
    for path, figure in figures.items():
        assert figure.evidence, path
        assert figure.source, path
        assert len(figure.source) <= 250, path


@pytest.mark.parametrize("name", [name for name, profile in PROFILES.items() if isinstance(profile, Profile)])
def test_every_packaged_profile_is_a_cluster(name: str) -> None:
    profile = PROFILES[name]
    assert isinstance(profile, Profile)
    whole = load_cluster(name, profile.node.num_devices)
    assert whole.num_devices == profile.node.num_devices
    assert whole.evidence == profile.evidence
    if profile.network:
        assert load_cluster(name, 2 * profile.node.num_devices).num_nodes == 2


@pytest.mark.parametrize(
    ("hardware", "num_devices", "levels"),
    [
        ("h100-sxm:8x8", None, [("node", 8), ("network", 64)]),
        ("h100-sxm:8x8", 64, [("node", 8), ("network", 64)]),
        ("H100-SXM:2x4", None, [("node", 4), ("network", 8)]),
        ("h100-sxm", 8, [("node", 8)]),
        ("h100-sxm", 3, [("node", 3)]),
        ("h100-sxm", 1, [("node", 1)]),
        ("h100-sxm", 16, [("node", 8), ("network", 16)]),
        ("h100-sxm:4x1", None, [("node", 1), ("network", 4)]),
        ("mi250x:16x8", None, [("node", 8), ("network", 128)]),
        ("cpu-gloo", 5, [("node", 5)]),
    ],
)
def test_levels_of_a_cluster(hardware: str, num_devices: int | None, levels: list[tuple[str, int]]) -> None:
    assert shape(hardware, num_devices) == levels


def test_names_and_sizes() -> None:
    cluster = load_cluster("H100-SXM", 16)
    assert (cluster.name, cluster.num_devices, cluster.devices_per_node) == ("h100-sxm:2x8", 16, 8)


@pytest.mark.parametrize(
    ("hardware", "num_devices", "message"),
    [
        (
            "h100-sxm",
            None,
            "h100-sxm: how many devices? Give their number, or write NAME:NODESxDEVICES_PER_NODE, e.g. h100-sxm:8x8",
        ),
        (
            "h100-sxm:8",
            None,
            "h100-sxm:8: '8' is not a cluster shape; write NAME:NODESxDEVICES_PER_NODE, e.g. h100-sxm:8x8",
        ),
        (
            "h100-sxm:",
            None,
            "h100-sxm:: '' is not a cluster shape; write NAME:NODESxDEVICES_PER_NODE, e.g. h100-sxm:8x8",
        ),
        ("h100-sxm:0x8", None, "h100-sxm:0x8: nodes (0) and devices per node (8) must be at least 1"),
        ("h100-sxm:2x16", None, "h100-sxm:2x16: devices per node (16) may not exceed the node of h100-sxm (8)"),
        ("h100-sxm:2x8", 8, "h100-sxm:2x8: 2 x 8 is 16 devices, but 8 were asked for"),
        ("h100-sxm", 12, "h100-sxm: number of devices (12) must be at most one node (8) or a multiple of it"),
        ("h100-sxm", 0, "h100-sxm: number of devices (0) must be at least 1"),
        (
            "cpu-gloo:2x2",
            None,
            "cpu-gloo:2x2: 2 nodes, but profile cpu-gloo has no [nic] and [[network]] to join them",
        ),
        ("h100-sxm@left", 8, "h100-sxm@left: h100-sxm is not a mixed cluster and has no group 'left'"),
        ("nowhere/x.toml", 8, f"nowhere/x.toml: no such profile file; packaged profiles: {', '.join(names())}"),
    ],
)
def test_errors_name_rule_and_numbers(hardware: str, num_devices: int | None, message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_cluster(hardware, num_devices)
    assert str(caught.value) == message


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown hardware 'h10-sxm'\. Did you mean 'h100-sxm'\? Known: a100-40gb"
    ):
        load_cluster("h10-sxm", 8)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert shape(f"{path}:3x4") == [("node", 4), ("network", 12)]
    assert load_cluster(str(path), 8).name == "toy:2x4"
    with pytest.raises(ProfileError, match=r"mine\.toml:7: '7' is not a cluster shape"):
        load_cluster(f"{path}:7")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_cluster(f"{tmp_path}/", 8)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match="cannot be read"):
        load_cluster(str(path), 8)


def test_a_file_may_stand_on_a_packaged_profile(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nbase = "h100-sxm"\n[nic]\ncount = 4\ngb_per_s = 25.0\nlatency_us = 3.0\n'
        "collective_fraction = 0.9\nsend_fraction = 0.9\ncontended_fraction = 0.8\n"
    )
    mine, base = load_cluster(f"{path}:2x8"), load_cluster("h100-sxm:2x8")
    assert mine.machines[0].node == base.machines[0].node
    assert mine.machines[0].nic != base.machines[0].nic
    path.write_text('name = "mine"\nbase = "h100"\n')
    with pytest.raises(UnknownNameError, match="Did you mean"):
        load_cluster(f"{path}:2x8")
    path.write_text('name = "mine"\nbase = "two-islands"\n')
    with pytest.raises(ProfileError, match="base = 'two-islands': a mixed cluster cannot be a base"):
        load_cluster(f"{path}:2x8")


def test_a_group_of_a_mixed_cluster_is_a_cluster_of_its_own() -> None:
    mixed = PROFILES["two-islands"]
    assert isinstance(mixed, MixedProfile)
    for section in mixed.groups:
        part = load_cluster(f"two-islands@{section.name}")
        assert part.num_nodes == section.num_nodes
        assert part.name == f"two-islands@{section.name}:{section.num_nodes}x{part.devices_per_node}"
        assert load_cluster(f"two-islands@{section.name}:1x4").num_devices == 4
    with pytest.raises(UnknownNameError, match=f"unknown group of two-islands 'nobody'.*{mixed.groups[0].name}"):
        load_cluster("two-islands@nobody")
    first = mixed.groups[0]
    with pytest.raises(ProfileError, match=f"{first.num_nodes + 1} nodes do not fit: group '{first.name}' has"):
        load_cluster(f"two-islands@{first.name}:{first.num_nodes + 1}x8")
