"""Published words about machines give the cluster that they describe."""

from __future__ import annotations

import pytest

from costmodels.units import GB
from hardware_profiles.cluster import Cluster
from hardware_profiles.errors import ProfileError, UnknownNameError
from planner.validation.clusters import Machine, cluster_of

VTRAIN = "A100 in 8-GPU nodes, 4x200 Gb/s HDR = 800 Gb/s per node (inter_node_bandwidth 800 in config)"
TWO_DEVICES = "InfiniBand 200 Gb/s (header, A800); H100 network not stated here (400 Gb/s in the 70B README)"
NEBIUS = (
    "NVLink4 + 8x400 Gb/s InfiniBand NICs per node, GPUDirect RDMA; measured NCCL all-reduce 468/442/46.3 GB/s "
    "(8 GPU / 16 GPU / 2 GPU one NIC, 1 GiB)"
)
HCCS = "8x HCCS full mesh (196 GB/s per direction per NPU in msmodeling), 200 GbE RoCE per NPU"


def machine(
    hardware: str,
    interconnect: str | None = None,
    note: str | None = None,
    *,
    gpus: int = 16,
    gpus_per_node: int | None = None,
) -> Machine:
    return cluster_of(hardware, interconnect=interconnect, note=note, gpus=gpus, gpus_per_node=gpus_per_node)


def cards(cluster: Cluster) -> tuple[int, float]:
    """Cards of a node and GB/s of all of them."""
    nic = cluster.machines[0].nic
    assert nic is not None
    return len(nic.attached), len(nic.attached) * nic.bytes_per_s / GB


@pytest.mark.parametrize(
    ("hardware", "interconnect", "note", "expected"),
    [
        # Every wording of the published rows, as it stands there.
        ("A100-80GB-SXM", "1600 Gbps node-node RoCE", None, (8, 200)),
        ("A100-80GB-SXM", "4 * 100Gb RoCE per node", None, (4, 50)),
        ("A100-80GB-SXM", "400 Gb/s per node", None, (8, 50)),
        ("A100-40GB-SXM", "4x HDR InfiniBand per node (paper, from memory)", None, (4, 100)),
        ("H100-80GB-SXM", "800 Gb/s per node", None, (8, 100)),
        ("Ascend-910B (Atlas 900 A2 PODc)", HCCS, None, (8, 200)),
        ("A800-80GB-SXM", "InfiniBand 200 Gb/s (as printed)", None, (8, 200)),
        ("H800-80GB-SXM", "InfiniBand 200 Gb/s (as printed)", None, (8, 200)),
        ("A800-80GB-SXM", TWO_DEVICES, None, (8, 200)),
        ("H100-80GB-SXM", TWO_DEVICES, None, (8, 400)),
        ("H100-80GB-SXM", "InfiniBand 400 Gb/s", None, (8, 400)),
        (
            "MI250X (GCD)",
            "Infinity Fabric in the node; 4x200 Gb/s Slingshot-11 per node (LUMI docs)",
            None,
            (4, 100),
        ),
        (
            "A100-80GB-SXM",
            "NVLink in the node; 800 Gb/s per node between nodes (config inter_node_bandwidth 800)",
            VTRAIN,
            (8, 100),
        ),
        ("H100-96GB-SXM(HBM2e,500W)", "NVLink intra, 400 Gb/s RDMA per GPU inter", None, (8, 400)),
        ("A100-80GB-SXM", "NVLink3 intra; 4x Omni-Path (100 Gb/s each) per node inter", None, (4, 50)),
        ("A100-80GB-SXM", "NVLink3/NVSwitch intra; 8x200Gb/s HDR IB inter (from memory)", None, (8, 200)),
        ("H100-80GB-SXM", NEBIUS, None, (8, 400)),
        ("H100-80GB-SXM", "NVLink4; 8x400 Gb/s IB per node", None, (8, 400)),
        ("H100-80GB-SXM", "NVLink4; 8x400 Gb/s InfiniBand per node (README)", None, (8, 400)),
        ("H100-80GB-SXM", "NVLink4; IB rate not stated", None, (8, 400)),
        ("B200-SXM", "NVLink5", None, (8, 400)),
        ("A100-80GB-SXM", "not stated", None, (8, 200)),
        ("A100-80GB-SXM", None, None, (8, 200)),
        # Notes, where they alone say something.
        ("A100-80GB-SXM", None, VTRAIN, (4, 100)),
        ("A100-80GB-SXM", None, "Jean Zay, 8x A100-80GB per node, NVLink, 4 Omni-Path links per node", (4, 50)),
        ("H200-141GB-SXM", None, "8x H200 NVLink, CX-7 400 Gb/s per GPU", (8, 400)),
        ("A100-80GB-SXM", None, "each server 8 GPUs, 200 Gb/s NICs (paper, from memory)", (8, 200)),
        ("A100-80GB-SXM", None, "DGX A100; 8 HDR 200Gb/s IB HCAs per node is from the paper", (8, 200)),
        ("GH200-96GB", None, "CSCS Clariden (Alps), 4 GH200 per node, Slingshot 11 (from memory)", (4, 100)),
        ("H800-80GB-SXM", None, "H800 has NVLink cut to 400 GB/s (from memory); inter-node not stated", (8, 400)),
        # Others that must not be misread.
        ("H100-80GB-SXM", "3.2 Tbps EFA per node", None, (8, 400)),
        ("H100-80GB-SXM", "3200 Gbps", None, (8, 400)),
        ("H100-80GB-SXM", "9x400 Gb/s per node", None, (8, 450)),
        ("H100-80GB-SXM", "something else altogether", "80GB each", (8, 400)),
    ],
)
def test_the_network_that_words_state(
    hardware: str, interconnect: str | None, note: str | None, expected: tuple[int, float]
) -> None:
    cluster = machine(hardware, interconnect, note, gpus=16).cluster
    assert cards(cluster) == pytest.approx(expected)
    assert cluster.network[0].uplink_bytes_per_s / GB == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("hardware", "interconnect", "parts"),
    [
        ("A100-80GB-SXM", "1600 Gbps node-node RoCE", []),
        ("MI250X (GCD)", "4x200 Gb/s Slingshot-11 per node", []),
        ("A100-80GB-SXM", None, ["network not stated: 8 cards of 25 GB/s, as a100-80gb has"]),
        ("A100-80GB-SXM", "InfiniBand 200 Gb/s (as printed)", ["number of cards not stated: 8"]),
        (
            "A100-80GB-SXM",
            "4 * 100Gb RoCE per node",
            ["cards of 12.5 GB/s: latency and fractions of a100-80gb", "4 cards for 8 devices: nothing is lost"],
        ),
        ("A100-80GB-SXM", "8x200Gb/s HDR IB (from memory)", ["network recalled"]),
        ("A100-SXM", "1600 Gbps node-node RoCE", ["memory of the A100 not stated: 80 GB"]),
    ],
)
def test_what_is_left_open_is_said(hardware: str, interconnect: str | None, parts: list[str]) -> None:
    found = machine(hardware, interconnect).assumptions
    assert len(found) == len(parts)
    assert all(text.startswith(part) for text, part in zip(found, parts, strict=True))


@pytest.mark.parametrize(
    ("hardware", "gpus", "gpus_per_node", "name"),
    [
        ("A100-80GB-SXM", 384, 8, "a100-80gb:48x8"),
        ("A100-80GB-SXM", 2520, None, "a100-80gb:315x8"),
        ("A100-SXM", 2, 2, "a100-80gb:1x2"),
        ("A800-80GB-SXM", 3, None, "a800-80gb:1x3"),
        ("H100-80GB-SXM", 4, 8, "h100-sxm:1x4"),
        ("H100-80GB-SXM", 8, 4, "h100-sxm:2x4"),
        ("H100-80GB-SXM", 32, 16, "h100-sxm:4x8"),
        ("GH200-96GB", 128, 4, "gh200-96gb:32x4"),
        # A tray is not a node of NVLink, and a rack is rarely filled.
        ("GB200-NVL72", 64, 4, "gb200-nvl72:1x64"),
        ("GB300-NVL72", 256, None, "gb300-nvl72:4x64"),
        ("A800-80GB-SXM", 12, None, "a800-80gb:2x6"),
        ("A800-80GB-SXM", 11, None, "a800-80gb:11x1"),
    ],
)
def test_devices_are_dealt_over_nodes(hardware: str, gpus: int, gpus_per_node: int | None, name: str) -> None:
    found = machine(hardware, gpus=gpus, gpus_per_node=gpus_per_node)
    assert (found.cluster.name, found.cluster.num_devices) == (name, gpus)


def test_nodes_that_are_not_whole_are_an_assumption() -> None:
    assert "12 devices over nodes of 8: 2 nodes of 6" in machine("A800-80GB-SXM", gpus=12).assumptions
    assert "nodes of 16 devices: taken as nodes of 8" in machine("H100-80GB-SXM", gpus_per_node=16).assumptions
    assert machine("A800-80GB-SXM", gpus=3).assumptions == ()


def test_a_smaller_node_has_its_own_cards_and_a_part_of_one_only_those_of_its_devices() -> None:
    four = machine("A100-40GB-SXM", "4x HDR InfiniBand per node", gpus=16, gpus_per_node=4).cluster
    assert cards(four) == (4, 100)
    half = machine("MI250X (GCD)", "4x200 Gb/s per node", gpus=8, gpus_per_node=4).cluster
    assert cards(half) == (4, 100)
    part = machine("H100-80GB-SXM", NEBIUS, gpus=8, gpus_per_node=4).cluster
    assert cards(part) == (4, 200)
    assert part.network[0].uplink_bytes_per_s == 400 * GB


def test_the_cards_of_a_tray_are_those_of_its_devices() -> None:
    rack = machine("GB200-NVL72", "4x800 Gb/s per node", gpus=144, gpus_per_node=4).cluster
    assert (rack.devices_per_node, cards(rack)) == (72, (72, 7200))
    assert machine("GB300-NVL72", "3200 Gb/s per node", gpus=144).assumptions == ()


def test_only_machines_of_several_nodes_have_a_network() -> None:
    found = machine("A100-80GB-SXM", "4 * 100Gb RoCE per node", gpus=8)
    assert found.assumptions == () and found.cluster.machines[0].nic is None


def test_errors_name_what_is_known() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown hardware of a measurement 'H100'.*Known: .*A100-40GB-SXM"):
        machine("H100")
    with pytest.raises(ProfileError, match=r"number of devices \(0\) must be at least 1"):
        machine("B200-SXM", gpus=0)
