"""The picture of a machine that every price is computed from: frozen values in SI units, no input/output.

A cluster is nodes of devices. Inside a node the devices meet over a `Switch`, a `Mesh` or explicit `Links`; between
nodes every device has its share of a network card and climbs as many `NetworkLevel` s as lie between it and its
partner. `hardware_profiles.topology` turns this into the `Group` that the collectives' formulas see.
"""

from __future__ import annotations

from dataclasses import dataclass

from hardware_profiles.errors import UnknownNameError

NODE, GROUP = "node", "group"
"""Names of the level inside a machine, and of that inside the groups of a mixed cluster."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Part of the hardware's rate that each class of operation reaches when it is large.

    The rest of each curve is a formula of `costmodels.compute`: tiles and waves for products, launches and bytes for
    all.
    """

    gemm: float
    """Of the peak: the best large matrix product of half precision (bfloat16, float16)."""
    gemm_fp32: float
    """The same of float64, float32 and tfloat32."""
    gemm_fp8: float
    gemm_fp4: float
    gemm_sustained: float
    """Of those rates: what the power limit leaves of them once products run for milliseconds."""
    grouped_gemm: float
    """Of the peak: the experts' product, many matrices in one kernel."""
    attention_forward: float
    """Of the peak: fused causal attention on long sequences, over the FLOP it executes."""
    attention_backward: float
    attention_flash2: float
    """Of those two: FlashAttention-2, where they are of a later kernel."""
    pointwise: float
    """Of the memory bandwidth: kernels that stream."""
    norm: float
    """Of the memory bandwidth: kernels that reduce over rows."""
    optimizer: float
    """Of the memory bandwidth: the fused optimizer step."""

    def product(self, dtype: str) -> float:
        """Part of the peak of a torch dtype that its products reach."""
        fraction: float = getattr(self, gemm_family(dtype))
        return fraction


def gemm_family(dtype: str) -> str:
    """The field of `Efficiency` that speaks of products of a torch dtype."""
    for start, name in _GEMM_FAMILIES:
        if dtype.startswith(start):
            return name
    return "gemm"


_GEMM_FAMILIES = (
    ("float64", "gemm_fp32"), ("float32", "gemm_fp32"), ("tfloat32", "gemm_fp32"),
    ("float8", "gemm_fp8"), ("float4", "gemm_fp4"),
)  # fmt: skip
"""(beginning of the dtype's name, field)."""


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A further memory of a device, beside the one that training state lives in."""

    name: str
    memory_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Host:
    """A device's share of the machine that holds it."""

    link_bytes_per_s: float
    """Copies between host and device, per direction, while all devices copy."""
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one entry of ``torch.cuda.device_count()`` can do (an MI250X card is two devices)."""

    name: str
    """Profile's name of the device, e.g. ``h100-sxm``."""
    peak_flop_per_s: tuple[tuple[str, float], ...]
    """Dense peak by torch dtype name (``bfloat16``, ``float16``, ``float32`` (the rate used for float32 matmul)).

    Pairs, not a mapping, so that a device can be a cache key; read it through `peak`."""
    memory_bytes: int
    """Device memory that a process can allocate: what ``torch.cuda.mem_get_info`` reports as total."""
    memory_bytes_per_s: float
    """Datasheet bandwidth of device memory."""
    num_compute_units: int
    """SMs, compute units or AI cores: what a wave of GEMM tiles is spread over."""
    gemm_tile: tuple[int, int]
    """Rows and columns of output that one compute unit works on at a time."""
    efficiency: Efficiency
    launch_overhead_s: float
    """Device time lost between two kernels of one stream."""
    call_s: float | None = None
    """Host time per ATen call of a training program; ``None`` where nobody measured it."""
    tiers: tuple[Tier, ...] = ()
    host: Host | None = None
    mtbf_s: float | None = None
    """Mean time between failures of one device."""
    price_usd_per_hour: float | None = None

    def peak(self, dtype: str) -> float:
        """Dense peak in FLOP/s for a torch dtype name; `UnknownNameError` lists the dtypes that the profile has."""
        for name, flop_per_s in self.peak_flop_per_s:
            if name == dtype:
                return flop_per_s
        raise UnknownNameError(f"dtype for device {self.name!r}", dtype, (name for name, _ in self.peak_flop_per_s))


@dataclass(frozen=True, kw_only=True)
class Library:
    """How the communication library behaves: which ways it knows, and what a collective costs beside the wire."""

    name: str
    algorithms: frozenset[str]
    """Of ``ring``, ``tree``, ``halving-doubling``, ``hierarchical``, ``nvls``, ``sharp`` (`costmodels.algorithms`)."""
    protocols: frozenset[str]
    """Of ``ll``, ``simple``, ``hockney`` (`costmodels.communication`)."""
    launch_s: float
    """Fixed part of a collective's time."""
    copy_bytes_per_s: float
    """Rate at which a member copies its own share inside its memory."""
    compute_slowdown: float
    """Factor on the time of kernels that run while a collective runs."""

    @property
    def host_driven(self) -> bool:
        """Whether devices are processors that compute, communicate and run the program, one after the other."""
        return self.name == "gloo"


Vertex = int | str
"""An end of a link: a device of the node by number, a switch or bridge by name."""

MAX_VERTICES = 16
"""Ends that explicit links may join: `hardware_profiles.links` tries every cut between them."""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """Every device has one link into a switch that blocks nothing."""

    bytes_per_s: float
    """Per device and direction."""
    reduce_fraction: float = 0.0
    """Part of ``bytes_per_s`` that an all-reduce reaches inside the switch (NVLink SHARP); 0: it cannot reduce."""
    reduce_across_fraction: float = 0.0
    """The same where the group goes on over the network."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Every pair of devices has a link of its own (Ascend HCCS, MI300X)."""

    bytes_per_s: float
    """Per link and direction."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link between two ends."""

    between: tuple[Vertex, Vertex]
    bytes_per_s: float
    """Per direction."""
    collective_fraction: float
    """Part of it that large collectives reach."""
    send_fraction: float
    """Part of it that a transfer between two devices reaches."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """Explicit links, where pairs of devices differ (MI250X, PCIe trees, rings)."""

    links: tuple[Link, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine: devices and what joins them."""

    num_devices: int
    fabric: Switch | Mesh | Links
    latency_s: float
    """One hop of a small message between two devices inside a running collective."""
    collective_fraction: float
    """Part of the links that large collectives reach."""
    send_fraction: float
    """Part of the links that a transfer from one device to another reaches."""


@dataclass(frozen=True, kw_only=True)
class Nic:
    """The network cards of a node."""

    bytes_per_s: float
    """Per card and direction."""
    latency_s: float
    """One hop of a small message between two nodes inside a running collective."""
    collective_fraction: float
    send_fraction: float
    contended_fraction: float
    """``collective_fraction`` where the devices of a card are in different groups, each with traffic of its own."""
    attached: tuple[tuple[int, ...], ...]
    """Devices of the node by card; a card without a device is not listed."""


@dataclass(frozen=True, kw_only=True)
class NetworkLevel:
    """A level of the network above the node, e.g. the leaf switches, the spine, or the link between two islands."""

    name: str
    num_devices: int
    """Devices that one unit of this level joins."""
    latency_s: float
    """Added to the card's latency."""
    uplink_bytes_per_s: float
    """Capacity of a unit of the level below (a node, at the first) into this level."""
    uplink_devices: int
    """Devices that share it: those of the unit below."""
    rails: bool = False
    """One switch per device index of the node: other indices are reached through the node."""
    num_paths: int | None = None
    """Equal uplinks of a unit below that flows are hashed onto, each flow staying on one; None: flows are sprayed."""
    flows_per_device: int = 1


@dataclass(frozen=True, kw_only=True)
class Machines:
    """A number of equal nodes, with consecutive ranks."""

    name: str
    device: Device
    node: Node
    nic: Nic | None
    first_device: int
    num_devices: int
    inside: tuple[NetworkLevel, ...] = ()
    """Levels that join these nodes only, in a mixed cluster: what leaves a node may have to cross them all."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes and the levels that join them; more than one entry of ``machines`` is a mixed cluster."""

    name: str
    """``<profile>:<nodes>x<devices per node>``, e.g. ``h100-sxm:8x8``."""
    device: Device
    """The device; of a mixed cluster the weakest figures of all of them."""
    machines: tuple[Machines, ...]
    network: tuple[NetworkLevel, ...]
    """Innermost first; empty for a single node, otherwise the last level holds all devices."""
    library: Library
    evidence: str
    """The weakest evidence of the figures: ``measured``, ``datasheet`` or ``derived``."""
    fingerprint: str
    """SHA-256 (hex) of the profile's content and of the shape: equal pictures, equal plans."""

    @property
    def num_devices(self) -> int:
        return sum(machines.num_devices for machines in self.machines)

    @property
    def devices_per_node(self) -> int:
        return self.machines[0].node.num_devices

    @property
    def num_nodes(self) -> int:
        return self.num_devices // self.devices_per_node


@dataclass(frozen=True, kw_only=True)
class GroupLevel:
    """What one level means to one process group."""

    name: str
    fan: int
    """Sub-groups of this group that meet at this level (product over the levels = group size)."""
    bytes_per_s: float
    """Sustained bandwidth per *member* crossing this level, while all groups of the axis communicate."""
    exchange_bytes_per_s: float
    """The same for an all-to-all, in which distant members exchange as much as near ones."""
    latency_s: float
    reduce_bytes_per_s: float = 0.0
    """The same for an all-reduce inside the switch; 0 where the switch does not reduce."""
    forward_bytes_per_s: float = 0.0
    """Where the level is made of rails: rate inside the node at which traffic between rails is forwarded; else 0."""
    on_rails: bool = True
    """Every hop of a ring stays on its rail."""
    limit: str = ""
    """What the bandwidth is limited by, with its numbers."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A process group of one mesh axis, as the collectives see it: levels innermost first, without those of fan 1."""

    size: int
    levels: tuple[GroupLevel, ...]
    library: Library
