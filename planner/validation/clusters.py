"""The machine that a published measurement ran on: its name and its words about the network -> `Cluster`.

A name gives a packaged profile. The network between nodes is the row's own where its words state one, the profile's
otherwise; latency and fractions are always the profile's. Nothing is chosen by row: the rules below are all there is.
What the words leave open is said in `Machine.assumptions`.

Rates are found clause by clause (clauses end at ``;``, ``,`` and ``+`` outside of brackets). A clause about the inside
of the node (NVLink, HCCS, Infinity Fabric), about a device of another kind, or that says "not stated", tells nothing.
Networks count bits: ``GB/s`` is never taken for a network's rate.

    4x Omni-Path (100 Gb/s each) per node      4 cards of 12.5 GB/s
    1600 Gbps node-node RoCE                   200 GB/s, spread over the cards that the profile has
    400 Gb/s RDMA per GPU                      a card of 50 GB/s for every device
    InfiniBand 200 Gb/s                        as many cards of 25 GB/s as the profile has: an assumption
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from hardware_profiles.assemble import uniform_cluster
from hardware_profiles.cluster import Cluster
from hardware_profiles.errors import ProfileError, UnknownNameError
from hardware_profiles.figures import Figure
from hardware_profiles.load import load_profile, names
from hardware_profiles.network_sections import NicSection
from hardware_profiles.schema import Profile

_PROFILES: dict[str, tuple[str, str | None]] = {
    "A100-40GB-SXM": ("a100-40gb", None),
    "A100-80GB-SXM": ("a100-80gb", None),
    "A100-SXM": ("a100-80gb", "memory of the A100 not stated: 80 GB"),
    "A800-80GB-SXM": ("a800-80gb", None),
    "Ascend-910B (8 NPUs)": ("ascend-910b", "bin of the Ascend 910B not stated: 376 TFLOP/s"),
    "Ascend-910B (Atlas 800)": ("atlas-800t-a2", "bin of the Ascend 910B not stated: 313 TFLOP/s, as in Atlas 800T A2"),
    "Ascend-910B (Atlas 800T A2)": ("atlas-800t-a2", None),
    "Ascend-910B (Atlas 800T A2, 313T)": ("atlas-800t-a2", None),
    "Ascend-910B (Atlas 900 A2 PODc)": ("ascend-910b", None),
    "B200-SXM": ("b200-sxm", None),
    "B300-SXM": ("b300-sxm", None),
    "GB200-NVL72": ("gb200-nvl72", None),
    "GB300-NVL72": ("gb300-nvl72", None),
    "GH200-96GB": ("gh200-96gb", None),
    "H100-80GB-SXM": ("h100-sxm", None),
    "H100-96GB-SXM(HBM2e,500W)": ("h100-96gb", None),
    "H200-141GB-SXM": ("h200-sxm", None),
    "H800-80GB-SXM": ("h800-sxm", None),
    "MI250X (GCD)": ("mi250x", None),
    "MI300X": ("mi300x", None),
}
"""Published name -> profile, and what the name leaves open."""

_TRAYS = {"gb200-nvl72": 4, "gb300-nvl72": 4}
"""Devices of what their sources call a node: a tray, of which NVLink joins a whole rack."""

_RATE = re.compile(
    r"(?:(?<![\w-])(?P<count>\d+) ?(?:[x*] ?(?:[A-Z][\w-]*[ (]+)*|(?:[A-Z][\w-]*[ (]+)+))?"
    r"(?P<rate>\d+(?:\.\d+)?) ?(?P<unit>[GT])(?:b/s|bps|bit/s|bE|b\b)"
)
_FABRIC = re.compile(
    r"(?:(?<![\w-])(?P<count>\d+) ?x? ?)?\b(?P<fabric>EDR|HDR|NDR|XDR|Omni-Path|Slingshot(?=[- ]11))\b"
)
_FABRIC_GBIT_PER_S = {"EDR": 100, "HDR": 200, "NDR": 400, "XDR": 800, "Omni-Path": 100, "Slingshot": 200}
"""Of one card: InfiniBand's generations, Intel's Omni-Path 100, HPE's Slingshot 11."""
_CLAUSES = re.compile(r"[;,+](?![^(]*\))")
_NO_NETWORK = re.compile(r"NVLink|NVSwitch|HCCS|Infinity Fabric|xGMI|not stated|measured")
_DEVICES = re.compile(r"\b(?:[ABHV]\d{3}|G[BH]\d{3}|MI\d{3}X?|910[ABC])\b")
_PER_DEVICE = re.compile(r"(?:per |/)(?:GPU|NPU|GCD|device|accelerator)")
_PER_NODE = re.compile(r"(?:per |/)(?:node|server|host)|node-node|between nodes")
_FASTEST_CARD_GBIT_PER_S = 800


@dataclass(frozen=True)
class Machine:
    """A row's cluster, and in words what its source leaves open."""

    cluster: Cluster
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class StatedCards:
    """What words say about the network cards of a node."""

    gbit_per_s: float
    """Of one card where ``count`` is stated, otherwise of all that a card, a device or a node has."""
    count: int | None
    """Cards of a node, or of a device; None: not stated."""
    per: Literal["card", "device", "node"]
    recalled: bool = False
    """The row says that the figure is from memory."""


@functools.cache
def cluster_of(
    hardware: str, *, interconnect: str | None, note: str | None, gpus: int, gpus_per_node: int | None
) -> Machine:
    """The machine of a row with these fields: ``gpus`` devices, in nodes of ``gpus_per_node`` (None: the profile's).

    Devices that do not fill whole nodes are dealt out evenly: 12 over nodes of 8 are two nodes of 6. What only
    ``note`` states of the network counts where ``interconnect`` states nothing. Raises `UnknownNameError` with the
    known names, and `ProfileError` for a number of devices below 1 or a part of a node that its links do not join.
    """
    if hardware in names() and isinstance(load_profile(hardware), Profile):
        name, unsaid = hardware, None
    elif hardware in _PROFILES:
        name, unsaid = _PROFILES[hardware]
    else:
        raise UnknownNameError("hardware of a measurement", hardware, (*_PROFILES, *names()))
    if gpus < 1:
        raise ProfileError(f"{hardware}: number of devices ({gpus}) must be at least 1")
    profile = _profile(name)
    assumptions = [unsaid] if unsaid else []
    whole = profile.node.num_devices
    size = min(whole, gpus_per_node) if gpus_per_node and name not in _TRAYS else whole
    if gpus_per_node and gpus_per_node > whole:
        assumptions.append(f"nodes of {gpus_per_node} devices: taken as nodes of {whole}")
    nodes = next(nodes for nodes in range(math.ceil(gpus / size), gpus + 1) if gpus % nodes == 0)
    if nodes > 1 and nodes * size != gpus:
        assumptions.append(f"{gpus} devices over nodes of {size}: {nodes} nodes of {gpus // nodes}")
    if nodes > 1:
        stated = network_of(hardware, interconnect, note)
        if stated is not None and stated.per == "node" and name in _TRAYS:
            per_device = stated.gbit_per_s * (stated.count or 1) / (gpus_per_node or _TRAYS[name])
            stated = replace(stated, gbit_per_s=per_device, count=None, per="device")
        profile, more = _with_network(profile, stated, size)
        assumptions += more
    cluster = uniform_cluster(hardware, profile, nodes, gpus // nodes, name=name)
    return Machine(cluster, tuple(assumptions))


def network_of(hardware: str, *texts: str | None) -> StatedCards | None:
    """What the first text that states the network between nodes says of it, for this hardware; None: nothing does."""
    for text in filter(None, texts):
        for clause in _CLAUSES.split(text):
            others = [device for device in _DEVICES.findall(clause) if device not in hardware]
            if _NO_NETWORK.search(clause) or others:
                continue
            if found := _RATE.search(clause):
                gbit_per_s = float(found["rate"]) * (1000 if found["unit"] == "T" else 1)
            elif found := _FABRIC.search(clause):
                gbit_per_s = _FABRIC_GBIT_PER_S[found["fabric"]]
            else:
                continue
            count = int(found["count"]) if found["count"] else None
            return StatedCards(gbit_per_s, count, _per(clause, gbit_per_s, count), "from memory" in clause)
    return None


def _per(clause: str, gbit_per_s: float, count: int | None) -> Literal["card", "device", "node"]:
    if _PER_DEVICE.search(clause):
        return "device"
    if _PER_NODE.search(clause) or count or gbit_per_s > _FASTEST_CARD_GBIT_PER_S:
        return "node"
    return "card"


def _with_network(profile: Profile, stated: StatedCards | None, size: int) -> tuple[Profile, list[str]]:
    """The profile with the stated cards in nodes of ``size`` devices, and what is assumed for it.

    More cards than the row has devices to a node: the node is the profile's, used in part.
    """
    own = profile.nic
    assert own is not None, f"{profile.name} has no cards"
    if stated is None:
        return profile, [f"network not stated: {own.count} cards of {own.gb_per_s.value:g} GB/s, as {profile.name} has"]
    whole = profile.node.num_devices
    devices = whole if stated.per == "card" or (stated.per == "node" and (stated.count or 0) > size) else size
    spread = own.count if devices == whole else devices
    gb_per_s = stated.gbit_per_s / 8
    count = (stated.count or 1) * devices if stated.per == "device" else stated.count or spread
    if stated.per == "node" and stated.count is None:
        gb_per_s /= spread
    if devices % count and count % devices:
        count, gb_per_s = devices, count * gb_per_s / devices
    assumptions = ["network recalled by the collector of the row, not read"] if stated.recalled else []
    if stated.per == "card":
        assumptions.append(f"number of cards not stated: {count}, as {profile.name} has")
    if (devices, count, gb_per_s) == (whole, own.count, own.gb_per_s.value):
        return profile, assumptions
    if gb_per_s != own.gb_per_s.value:
        assumptions.append(f"cards of {gb_per_s:g} GB/s: latency and fractions of {profile.name}'s cards")
    if count < devices and own.contended_fraction is None:
        assumptions.append(f"{count} cards for {devices} devices: nothing is lost by sharing them")
    node = profile.node.model_copy(update={"num_devices": devices})
    return profile.model_copy(
        update={"node": node, "nic": _cards(own, count, gb_per_s, dealt=devices != whole)}
    ), assumptions


def _cards(own: NicSection, count: int, gb_per_s: float, *, dealt: bool) -> NicSection:
    """Other cards of the same kind; ``dealt``: evenly, also where the profile attaches as many of them otherwise."""
    rate = Figure[float](value=gb_per_s, evidence="derived", source="What the source of the measurement states")
    contended = own.contended_fraction or own.collective_fraction
    attached = own.attached if count == own.count and not dealt else None
    return own.model_copy(
        update={"count": count, "gb_per_s": rate, "contended_fraction": contended, "attached": attached}
    )


@functools.cache
def _profile(name: str) -> Profile:
    profile = load_profile(name)
    assert isinstance(profile, Profile), name
    return profile
