"""``[collectives]``, ``[nic]`` and ``[[network]]`` of a profile file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from costmodels.units import GB, MICRO
from hardware_profiles.cluster import Library, Nic
from hardware_profiles.figures import Bandwidth, CardBandwidth, Count, Fraction, Hop, Latency, Name, Ratio, Strict


class CollectivesSection(Strict):
    """``[collectives]``: the communication library, whose formulas are in `costmodels.communication`."""

    library: Literal["nccl", "rccl", "hccl", "gloo", "mpi"]
    algorithms: Annotated[
        list[Literal["ring", "tree", "halving-doubling", "hierarchical", "nvls", "sharp"]], Field(min_length=1)
    ]
    protocols: Annotated[list[Literal["ll", "simple", "hockney"]], Field(min_length=1)]
    launch_us: Latency
    copy_gb_per_s: Bandwidth
    compute_slowdown: Ratio

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "ring" not in self.algorithms:
            raise ValueError("algorithms must contain 'ring', the one that every collective has")
        if not {"simple", "hockney"} & set(self.protocols):
            raise ValueError("protocols must contain 'simple' or 'hockney', for large messages")
        return self

    def build(self) -> Library:
        return Library(
            name=self.library,
            algorithms=frozenset(self.algorithms),
            protocols=frozenset(self.protocols),
            launch_s=self.launch_us.value * MICRO,
            copy_bytes_per_s=self.copy_gb_per_s.value * GB,
            compute_slowdown=self.compute_slowdown.value,
        )


class NicSection(Strict):
    """``[nic]``: the network cards of a node."""

    count: Count
    gb_per_s: CardBandwidth
    latency_us: Hop
    collective_fraction: Fraction
    send_fraction: Fraction
    contended_fraction: Fraction | None = None
    attached: list[Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]] | None = None

    def cards(self, num_devices: int) -> list[list[int]]:
        """Devices of every card of a node with ``num_devices``; `ValueError` with the rule that is broken."""
        if self.attached is not None:
            if len(self.attached) != self.count:
                raise ValueError(f"attached lists {len(self.attached)} cards, count is {self.count}")
            if any(len(set(card)) < len(card) for card in self.attached):
                raise ValueError("attached names a device twice on one card")
            beyond = sorted({device for card in self.attached for device in card if device >= num_devices})
            if beyond:
                raise ValueError(f"attached: device {beyond[0]} does not exist, the node has 0 to {num_devices - 1}")
            missing = sorted(set(range(num_devices)) - {device for card in self.attached for device in card})
            if missing:
                raise ValueError(f"attached: device {', '.join(map(str, missing))} has no card")
            return self.attached
        if num_devices % self.count and self.count % num_devices:
            raise ValueError(
                f"count ({self.count}) must divide the node's devices ({num_devices}) or be a multiple of them; "
                "otherwise list the devices of each card in attached"
            )
        per_card, per_device = max(1, num_devices // self.count), max(1, self.count // num_devices)
        return [[card // per_device * per_card + i for i in range(per_card)] for card in range(self.count)]

    def check(self, num_devices: int) -> None:
        """`ValueError` where the cards do not fit a node of ``num_devices``."""
        shared = any(len(card) > 1 for card in self.cards(num_devices))
        if shared and self.contended_fraction is None:
            raise ValueError("contended_fraction is missing: a card serves more than one device")

    def build(self, node_devices: int, num_devices: int) -> Nic:
        """The cards of the first ``num_devices`` of a node of ``node_devices``."""
        cards = ([device for device in card if device < num_devices] for card in self.cards(node_devices))
        return Nic(
            bytes_per_s=self.gb_per_s.value * GB,
            latency_s=self.latency_us.value * MICRO,
            collective_fraction=self.collective_fraction.value,
            send_fraction=self.send_fraction.value,
            contended_fraction=(self.contended_fraction or self.collective_fraction).value,
            attached=tuple(tuple(card) for card in cards if card),
        )


class NetworkSection(Strict):
    """``[[network]]``: a level above the node, innermost first."""

    name: Name
    num_nodes: Annotated[int, Field(ge=2)] | None = None
    latency_us: Latency
    oversubscription: Ratio | None = None
    uplink_gb_per_s: Bandwidth | None = None
    rails: bool = False
    routing: Literal["sprayed", "single-path"]
    num_paths: Count | None = None
    flows_per_device: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        hashed = self.routing == "single-path"
        if hashed != (self.num_paths is not None) or hashed != (self.flows_per_device is not None):
            raise ValueError(
                "routing = 'single-path' needs num_paths (equal uplinks of one unit below) and flows_per_device "
                "(connections that are hashed apart); 'sprayed' takes neither"
            )
        if self.oversubscription is not None and self.uplink_gb_per_s is not None:
            raise ValueError("give one of oversubscription and uplink_gb_per_s, not both")
        return self
