from __future__ import annotations

from pathlib import Path

import pytest

from hardware_profiles.errors import ProfileError, UnknownNameError
from hardware_profiles.load import load_cluster, load_profile, names

GOOD = Path(__file__).with_name("toy.toml").read_text(encoding="utf-8")


def shape(hardware: str, num_devices: int | None = None) -> list[tuple[str, int]]:
    return [(level.name, level.num_devices) for level in load_cluster(hardware, num_devices).levels]


def test_packaged_names() -> None:
    assert names() == ("a100-40gb", "a100-80gb", "ascend-910b", "cpu-gloo", "h100-sxm", "h200-sxm", "mi250x")


@pytest.mark.parametrize("name", names())
def test_every_packaged_profile_loads_under_its_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    cluster = load_cluster(name, 2)
    assert cluster.num_devices == 2
    assert cluster.device.peak("bfloat16") > 0
    assert cluster.evidence == profile.evidence


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
        ("mi250x:16x8", None, [("card", 2), ("node", 8), ("network", 128)]),
        ("mi250x", 2, [("card", 2), ("node", 2)]),
        ("mi250x", 1, [("node", 1)]),
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
        ("mi250x", 3, "mi250x: level 'node' with 3 devices must be a multiple of the level inside it (2)"),
        (
            "cpu-gloo:2x2",
            None,
            "cpu-gloo:2x2: 4 devices do not fit: the outermost level 'node' of profile cpu-gloo joins 2",
        ),
        ("nowhere/x.toml", 8, f"nowhere/x.toml: no such profile file; packaged profiles: {', '.join(names())}"),
    ],
)
def test_errors_name_rule_and_numbers(hardware: str, num_devices: int | None, message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_cluster(hardware, num_devices)
    assert str(caught.value) == message


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown hardware 'h100'\. Did you mean 'h100-sxm'\? Known: a100-40gb"):
        load_cluster("h100", 8)


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


def test_a_level_between_node_and_network(tmp_path: Path) -> None:
    rack = (
        '[[levels]]\nname = "rack"\nnum_devices = 16\ngb_per_s = 50.0\nsustained_fraction = 0.8\nlatency_us = 4.0\n\n'
    )
    path = tmp_path / "rack.toml"
    path.write_text(GOOD.replace('[[levels]]\nname = "network"', rack + '[[levels]]\nname = "network"'))
    assert shape(f"{path}:8x4") == [("node", 4), ("rack", 16), ("network", 32)]
    assert shape(f"{path}:8x2") == [("node", 2), ("rack", 8), ("network", 16)]
    assert shape(f"{path}:4x4") == [("node", 4), ("rack", 16)]
    assert shape(f"{path}:2x4") == [("node", 4), ("rack", 8)]
    assert shape(f"{path}:1x4") == [("node", 4)]
    with pytest.raises(
        ProfileError, match=r"level 'network' with 24 devices must be a multiple of the level inside it \(16\)"
    ):
        load_cluster(f"{path}:6x4")


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
