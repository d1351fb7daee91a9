from __future__ import annotations

import pytest

from hardware_profiles.cluster import Links, Mesh, Switch
from hardware_profiles.errors import ProfileError
from tests.hardware_profiles.faults import errors, profile

LINKS = """
[[node.links]]
between = [0, 1]
gb_per_s = 200.0
[[node.links]]
between = [2, 3]
gb_per_s = 200.0
[[node.links]]
between = [1, "bridge"]
gb_per_s = 50.0
collective_fraction = 0.5
[[node.links]]
between = ["bridge", 3]
gb_per_s = 50.0
"""


def fabric(*lines: str, links: str = "") -> tuple[str, str]:
    return 'fabric = "switch"\ngb_per_s = 100.0\n', "\n".join(lines) + "\n"


def with_links(text: str = LINKS) -> list[tuple[str, str]]:
    return [('fabric = "switch"\ngb_per_s = 100.0\n', 'fabric = "links"\n'), ("[nic]", f"{text}\n[nic]")]


def test_a_switch() -> None:
    node = profile().node.build(4)
    assert node.fabric == Switch(bytes_per_s=100e9, reduce_fraction=0.0)
    assert (node.num_devices, node.latency_s, node.collective_fraction, node.send_fraction) == (4, 1e-6, 0.8, 0.85)
    both = "send_fraction = 0.85\nswitch_reduce_fraction = 0.7\nswitch_reduce_across_fraction = 0.6"
    reducing = profile(("send_fraction = 0.85", both)).node.build(4)
    assert reducing.fabric == Switch(bytes_per_s=100e9, reduce_fraction=0.7, reduce_across_fraction=0.6)
    (got,) = errors(("send_fraction = 0.85", both.rpartition("\n")[0]))
    assert got.startswith("toy.toml: node: switch_reduce_fraction (in the node) and switch_reduce_across_fraction")


def test_a_full_mesh_and_a_ring() -> None:
    assert profile(fabric('fabric = "full-mesh"', "link_gb_per_s = 28.0")).node.build(4).fabric == Mesh(
        bytes_per_s=28e9
    )
    ring = profile(fabric('fabric = "ring"', "link_gb_per_s = 28.0")).node
    whole, arc = ring.build(4).fabric, ring.build(3).fabric
    assert isinstance(whole, Links)
    assert isinstance(arc, Links)
    assert [link.between for link in whole.links] == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert [link.between for link in arc.links] == [(0, 1), (1, 2)]
    assert {link.bytes_per_s for link in whole.links} == {28e9}


def test_explicit_links_join_devices_and_switches() -> None:
    node = profile(*with_links()).node.build(4)
    assert isinstance(node.fabric, Links)
    assert [link.between for link in node.fabric.links] == [(0, 1), (2, 3), (1, "bridge"), ("bridge", 3)]
    assert [link.collective_fraction for link in node.fabric.links] == [0.8, 0.8, 0.5, 0.8]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("[0, 1]", "[0, 4]", "links[0].between = [0, 4]: device 4 does not exist, the node has 0 to 3"),
        ("[0, 1]", "[1, 1]", "links[0].between = [1, 1]: a link joins two different ends"),
        ("[0, 1]", "[1, 3]", "no link reaches device 0"),
        ('["bridge", 3]', '["bridge", 0]', "the links do not join device 2, 3 with device 0"),
        ("gb_per_s = 200.0", "gb_per_s = -1", "node.links[0].gb_per_s = -1: must be 0.001 to 8000 GB/s"),
        ("[0, 1]", "[0, -1]", "links[0].between = [0, -1]: device -1 does not exist, the node has 0 to 3"),
    ],
)
def test_links_reach_every_device(old: str, new: str, line: str) -> None:
    got = errors(*with_links(LINKS.replace(old, new, 1)))
    assert any(line in each for each in got), got


def test_a_part_of_a_node_must_be_joined_by_its_own_links() -> None:
    text = LINKS.replace("[0, 1]", "[0, 3]")
    node = profile(*with_links(text)).node
    with pytest.raises(ProfileError, match="3 devices of a node of 4: the links do not join device 1, 2 with device 0"):
        node.build(3)


def test_at_most_as_many_as_can_be_cut_every_way() -> None:
    many = "".join(f'[[node.links]]\nbetween = [{i % 4}, "s{i}"]\ngb_per_s = 1.0\n' for i in range(13))
    assert "at most 16 can be listed" in errors(*with_links(LINKS + many))[0]


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (("fabric = 'torus'", "gb_per_s = 1.0"), "node"),
        (("fabric = 'full-mesh'", "gb_per_s = 1.0"), "node.link_gb_per_s: required key is missing"),
        (("fabric = 'switch'", "link_gb_per_s = 1.0"), "node.gb_per_s: required key is missing"),
        (("gb_per_s = 1.0",), "node"),
    ],
)
def test_every_fabric_has_its_own_keys(lines: tuple[str, ...], line: str) -> None:
    assert errors(fabric(*lines))[0].startswith(f"toy.toml: {line}")
