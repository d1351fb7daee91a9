"""The picture of a machine that every price is computed from: frozen values, no input/output.

Units are SI inside (bytes, seconds, FLOP); every bandwidth is *per device and per direction, while all devices
communicate*, so that a price needs no further division for contention at the level itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from hardware_profiles.errors import UnknownNameError


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
    memory_sustained_fraction: float
    """Part of ``memory_bytes_per_s`` that a streaming kernel reaches."""
    num_compute_units: int
    """SMs, compute units or AI cores: what a wave of GEMM tiles is spread over."""
    gemm_tile: tuple[int, int]
    """Rows and columns of output that one compute unit works on at a time."""
    gemm_sustained_fraction: float
    """Part of the peak that the best large GEMM reaches."""
    attention_forward_fraction: float
    """Part of the peak that fused causal attention reaches forward on long sequences, over the FLOP it executes."""
    attention_backward_fraction: float
    """The same for its backward."""
    launch_overhead_s: float
    """Device time lost between two kernels of one stream."""

    def peak(self, dtype: str) -> float:
        """Dense peak in FLOP/s for a torch dtype name; `UnknownNameError` lists the dtypes that the profile has."""
        for name, flop_per_s in self.peak_flop_per_s:
            if name == dtype:
                return flop_per_s
        raise UnknownNameError(f"dtype for device {self.name!r}", dtype, (name for name, _ in self.peak_flop_per_s))


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of interconnect, e.g. ``node`` (NVLink) or ``network`` (InfiniBand)."""

    name: str
    num_devices: int
    """Devices that reach each other at this level (a multiple of the level inside it)."""
    bytes_per_s: float
    """Datasheet bandwidth per device and direction while all devices communicate."""
    sustained_fraction: float
    """Part of ``bytes_per_s`` that collectives approach as messages grow."""
    latency_s: float
    """Time of an empty message between two devices at this level."""
    switch_reduce_fraction: float = 0.0
    """Part of ``bytes_per_s`` that an all-reduce reaches inside the switch (NVLink SHARP); 0: no such switch."""
    full_mesh: bool = False
    """Every pair has its own link (Ascend HCCS), so a group has only the links between its own members."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A number of equal devices and the levels that join them, innermost first."""

    name: str
    """``<profile>:<nodes>x<devices per node>``, e.g. ``h100-sxm:8x8``."""
    device: Device
    levels: tuple[Level, ...]
    """Innermost first; the last level holds all ``num_devices``."""
    evidence: str
    """``datasheet`` or ``measured``: the weakest of the profile's figures."""
    fingerprint: str
    """SHA-256 (hex) of the profile's content and of the number of devices: equal pictures, equal plans."""

    @property
    def num_devices(self) -> int:
        return self.levels[-1].num_devices

    @property
    def devices_per_node(self) -> int:
        """Devices of the level called ``node``; all of them when a machine has a single level."""
        return next((level.num_devices for level in self.levels if level.name == "node"), self.num_devices)


@dataclass(frozen=True, kw_only=True)
class GroupLevel:
    """What one level means to one process group."""

    fan: int
    """Sub-groups of this group that meet at this level (product over the levels = group size)."""
    bytes_per_s: float
    """Sustained bandwidth per *member* crossing this level, its neighbours' links included (see topology)."""
    latency_s: float
    switch_reduce_bytes_per_s: float = 0.0
    """The same for an all-reduce inside the switch; 0 where the switch does not reduce."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A process group of one mesh axis, as the collectives see it: levels innermost first, without those of fan 1."""

    size: int
    levels: tuple[GroupLevel, ...]
