from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.cluster import Cluster, Links, Mesh, Nic
from hardware_profiles.load import load_cluster
from hardware_profiles.rates import fullest_path
from hardware_profiles.topology import boundary, group
from tests.hardware_profiles.pictures import TOY, links, with_fabric

TOY_4X4 = load_cluster(f"{TOY}:4x4")


def nic(cluster: Cluster, **changes: object) -> Cluster:
    machines = []
    for each in cluster.machines:
        assert each.nic is not None
        machines.append(replace(each, nic=replace(each.nic, **changes)))  # type: ignore[arg-type]
    return replace(cluster, machines=tuple(machines))


def network(cluster: Cluster, **changes: object) -> Cluster:
    return replace(cluster, network=(replace(cluster.network[0], **changes),))  # type: ignore[arg-type]


def rate(cluster: Cluster, size: int, stride: int, level: int = -1) -> float:
    return group(cluster, size=size, stride=stride).levels[level].bytes_per_s / 1e9


def test_behind_a_switch_a_member_has_its_own_link() -> None:
    node, above = group(TOY_4X4, size=16, stride=1).levels
    assert (node.bytes_per_s, node.exchange_bytes_per_s) == (pytest.approx(80e9), pytest.approx(80e9))
    assert above.bytes_per_s == pytest.approx(9e9)
    assert above.latency_s == pytest.approx(3e-6)
    assert node.limit == "own link of 100 GB/s to the switch, 80% sustained"
    assert above.limit == "10.0 GB/s of 4 cards of 10.0 GB/s for 4 devices, 90% sustained"


def test_a_switch_reduces_where_the_profile_says_so() -> None:
    assert group(TOY_4X4, size=4, stride=1).levels[0].reduce_bytes_per_s == 0
    h100 = load_cluster("h100-sxm", 8)
    assert 0 < group(h100, size=8, stride=1).levels[0].reduce_bytes_per_s <= 450e9


def test_a_full_mesh_gives_a_small_group_few_links() -> None:
    machines = TOY_4X4.machines[0]
    mesh = replace(TOY_4X4, machines=(replace(machines, node=replace(machines.node, fabric=Mesh(bytes_per_s=30e9))),))
    assert [rate(mesh, size, 1) for size in (2, 4)] == pytest.approx([30 * 0.8, 90 * 0.8])
    assert group(mesh, size=2, stride=1).levels[0].limit == "1 of 3 links of 30.0 GB/s, 80% sustained"


def test_pairs_of_devices_differ_over_explicit_links() -> None:
    cards = with_fabric(links((0, 1, 200.0), (2, 3, 200.0), (0, 2, 50.0), (1, 3, 50.0)), "4x4")
    assert rate(cards, 2, 1) == pytest.approx(200)
    assert rate(cards, 2, 2) == pytest.approx(50)
    whole = group(cards, size=4, stride=1).levels[0]
    assert whole.bytes_per_s == pytest.approx(100e9)
    assert whole.limit in ("links into {0, 1} carry 100 GB/s sustained", "links into {2, 3} carry 100 GB/s sustained")


def test_devices_of_one_card_contend_when_their_groups_differ() -> None:
    shared = nic(TOY_4X4, attached=((0, 1), (2, 3)), bytes_per_s=20e9, collective_fraction=0.9, contended_fraction=0.4)
    assert rate(shared, 16, 1) == pytest.approx(10 * 0.9)
    assert rate(shared, 4, 4) == pytest.approx(10 * 0.4)
    assert "cards shared by several groups" in group(shared, size=4, stride=4).levels[0].limit
    # Groups {0, 1} and {2, 3} of every node have a card each.
    assert rate(shared, 8, 2) == pytest.approx(10 * 0.4)
    assert group(shared, size=8, stride=1).levels[1].bytes_per_s == pytest.approx(9e9)


def test_sends_over_explicit_links_share_what_their_pairs_share() -> None:
    """Two devices behind each switch: both pairs of neighbouring stages cross the same bridge."""
    box = with_fabric(
        links(*((d, "left" if d < 2 else "right", 30.0) for d in range(4)), ("left", "right", 20.0)), "1x4"
    )
    assert boundary(box, stride=2, index=0).levels[0].bytes_per_s == pytest.approx(10e9 * 0.85)
    assert boundary(box, stride=1, index=0).levels[0].bytes_per_s == pytest.approx(30e9 * 0.85)
    assert boundary(box, stride=1, index=1).levels[0].bytes_per_s == pytest.approx(20e9 * 0.85)
    assert boundary(box, stride=1).levels[0].bytes_per_s == pytest.approx(20e9 * 0.85)


def test_a_send_leaves_by_the_worst_card() -> None:
    uneven = nic(TOY_4X4, attached=((0,), (1, 2, 3)))
    assert boundary(uneven, stride=4, index=0).levels[0].bytes_per_s == pytest.approx(10e9 / 3 * 0.95)


def test_the_worst_group_counts_where_cards_differ() -> None:
    uneven = nic(TOY_4X4, attached=((0,), (1, 2, 3)), collective_fraction=1.0, contended_fraction=1.0)
    assert rate(uneven, 4, 4) == pytest.approx(10 / 3)
    assert rate(uneven, 16, 1) == pytest.approx((10 + 3 * 10 / 3) / 4)


SPINE = '\n[[network]]\nname = "spine"\nnum_nodes = 8\nlatency_us = 1.0\nrouting = "sprayed"\n'


def spine(folder: Path, *lines: str, core: str = "") -> str:
    """The toy with leaves of four nodes under a spine, and perhaps a core above."""
    path = folder / "spine.toml"
    text = TOY.read_text() + "num_nodes = 4\n" + SPINE + "\n".join(lines) + "\n" + core
    path.write_text(text)
    return str(path)


def test_uplinks_are_shared_by_all_devices_below(tmp_path: Path) -> None:
    path = spine(tmp_path, "oversubscription = 4.0")
    assert rate(load_cluster(f"{path}:8x4"), 2, 16) == pytest.approx(9 / 4)
    assert rate(load_cluster(f"{path}:8x4"), 4, 4) == pytest.approx(9)
    level = group(load_cluster(f"{path}:8x4"), size=2, stride=16).levels[0]
    assert level.latency_s == pytest.approx(4e-6)
    assert level.limit.endswith("uplinks of 40.0 GB/s to spine shared by 16 devices")
    # Half of the devices of each node share the same uplinks, a quarter are limited by their cards.
    assert rate(load_cluster(f"{path}:8x2"), 2, 8) == pytest.approx(9 / 2)
    assert rate(load_cluster(f"{path}:8x1"), 2, 4) == pytest.approx(9)
    path = spine(tmp_path, "uplink_gb_per_s = 32.0")
    assert rate(load_cluster(f"{path}:8x4"), 2, 16) == pytest.approx(2 * 0.9)


def test_oversubscription_adds_up_over_levels(tmp_path: Path) -> None:
    core = SPINE.replace("spine", "core").replace("num_nodes = 8", "num_nodes = 16") + "oversubscription = 3.0\n"
    path = spine(tmp_path, "oversubscription = 2.0", core=core)
    assert rate(load_cluster(f"{path}:16x4"), 2, 32) == pytest.approx(9 / 6)
    assert rate(load_cluster(f"{path}:16x4"), 2, 16) == pytest.approx(9 / 2)


def test_the_fullest_path_against_throwing_flows() -> None:
    source = random.Random(7)
    for flows, paths in ((8, 8), (64, 16), (256, 16)):
        fullest = []
        for _ in range(4000):
            load = [0] * paths
            for _ in range(flows):
                load[source.randrange(paths)] += 1
            fullest.append(max(load))
        # Poisson loads are a little more uneven than a fixed number of flows.
        assert 0.98 <= fullest_path(flows, paths) / (sum(fullest) / len(fullest)) <= 1.17


def test_hashing_costs_what_spraying_does_not(tmp_path: Path) -> None:
    hashed = 'routing = "single-path"\nnum_paths = 8\nflows_per_device = {}'

    def across(flows: int, per_node: int = 4) -> float:
        path = Path(spine(tmp_path, "oversubscription = 1.0"))
        spines = path.read_text().rpartition('routing = "sprayed"')
        path.write_text(spines[0] + hashed.format(flows) + spines[2])
        return rate(load_cluster(f"{path}:8x{per_node}"), 2, 4 * per_node)

    # 16 flows of 10 GB/s onto eight paths of 20: the fullest holds E of them.
    assert across(1) == pytest.approx(9 * 2 / fullest_path(16, 8))
    assert across(1) < across(4) < across(64) < 9
    # Four devices below cannot fill a path each: only what falls on one path is lost.
    assert across(1, per_node=1) == pytest.approx(9 * min(1, 2 / fullest_path(4, 8)))
    assert across(1, per_node=1) > across(1)
    assert fullest_path(16, 1) == 16


def test_rails_are_left_only_by_groups_that_lie_differently_in_each_node() -> None:
    rails = network(load_cluster(f"{TOY}:3x4"), rails=True)
    aligned, askew = (group(rails, size=size, stride=stride).levels[-1] for size, stride in ((3, 4), (4, 3)))
    assert aligned.on_rails
    assert not askew.on_rails
    assert aligned.forward_bytes_per_s == pytest.approx(85e9)
    assert group(TOY_4X4, size=4, stride=4).levels[0].forward_bytes_per_s == 0


@given(
    st.sampled_from(["h100-sxm:4x8", "frontier:4x8", "ascend-910b:4x8", "mi300x:4x8", "pcie-box:1x8"]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 2, 4]),
)
def test_never_more_than_the_links_of_a_device(name: str, size: int, stride: int) -> None:
    cluster = load_cluster(name)
    if size * stride > cluster.num_devices:
        return
    node = cluster.machines[0].node
    most = {
        "Switch": lambda: node.fabric.bytes_per_s,  # type: ignore[union-attr]
        "Mesh": lambda: node.fabric.bytes_per_s * (node.num_devices - 1),  # type: ignore[union-attr]
        "Links": lambda: max(
            sum(link.bytes_per_s for link in node.fabric.links if device in link.between)  # type: ignore[union-attr]
            for device in range(node.num_devices)
        ),
    }[type(node.fabric).__name__]()
    cards: Nic | None = cluster.machines[0].nic
    for level in group(cluster, size=size, stride=stride).levels:
        if level.name == "node":
            assert 0 < level.bytes_per_s <= most * (1 + 1e-9)
            assert 0 < level.exchange_bytes_per_s <= most * (1 + 1e-9)
        else:
            assert cards is not None
            share = len(cards.attached) * cards.bytes_per_s / min(node.num_devices, len(cards.attached))
            assert 0 < level.bytes_per_s <= share


@given(
    st.sampled_from(["h100-sxm:1x8", "frontier:1x8", "ascend-910b:1x8", "pcie-box:1x8"]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 2, 4]),
)
def test_counting_the_devices_of_a_node_backwards_changes_nothing(name: str, size: int, stride: int) -> None:
    cluster = load_cluster(name)
    if size * stride > 8:
        return
    machines = cluster.machines[0]
    fabric = machines.node.fabric
    if isinstance(fabric, Links):
        turned = (
            replace(link, between=tuple(7 - end if isinstance(end, int) else end for end in link.between))
            for link in fabric.links
        )
        fabric = Links(links=tuple(turned))
    backwards = replace(cluster, machines=(replace(machines, node=replace(machines.node, fabric=fabric)),))
    one, other = (group(each, size=size, stride=stride).levels[0] for each in (cluster, backwards))
    assert one.bytes_per_s == pytest.approx(other.bytes_per_s)
    assert one.exchange_bytes_per_s == pytest.approx(other.exchange_bytes_per_s)


@pytest.mark.parametrize("name", ["h100-sxm:1x8", "mi300x:1x8"])
def test_where_all_links_are_equal_it_does_not_matter_who_is_in_a_group(name: str) -> None:
    cluster = load_cluster(name)
    for size in (2, 4):
        strides = [stride for stride in (1, 2, 4) if size * stride <= 8]
        levels = [group(cluster, size=size, stride=stride).levels[0] for stride in strides]
        assert len({level.bytes_per_s for level in levels}) == 1
