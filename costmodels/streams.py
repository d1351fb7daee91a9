"""Seconds of kernels on one device that move memory and compute next to nothing."""

from __future__ import annotations

from typing import Literal

from costmodels.dtypes import DTYPE_BYTES, operand_bytes
from hardware_profiles.cluster import Device

QUANTISE_S = 11e-6
"""Fixed time of casting a tensor to 8 bits: two passes and the kernels between them that make the scale. Between 9 us
on H100 and H200 and 13 us on B200, B300 and GB200 in 9,690 timings of ai-dynamo/aiconfigurator."""

QUANTISE_FRACTION = 0.55
"""Of the memory bandwidth: both passes. 0.50 (H200), 0.53 to 0.57 (B200, GB200, B300) and 0.62 (H100), same timings."""

MemoryBound = Literal["pointwise", "norm", "optimizer"]
"""Classes of kernels that move memory, by their figure in `hardware_profiles.cluster.Efficiency`."""


def memory_bound_s(device: Device, num_bytes: float, kind: MemoryBound = "pointwise") -> float:
    """Seconds of one kernel that reads and writes ``num_bytes`` in total and computes next to nothing, launch included.

    ``launch + num_bytes / (bandwidth * fraction of its kind)``; 0 for 0 bytes. Launch and bandwidth together are the
    curve of efficiency over bytes. Source: the profile's streaming benchmark.
    """
    if num_bytes <= 0:
        return 0.0
    fraction: float = getattr(device.efficiency, kind)
    return device.launch_overhead_s + num_bytes / (device.memory_bytes_per_s * fraction)


def quantise_s(device: Device, dtype: str, numel: float) -> float:
    """Seconds of casting ``numel`` bfloat16 elements to ``dtype`` of 8 or 4 bits with a scale for the whole tensor.

    ``QUANTISE_S + bytes / (bandwidth * QUANTISE_FRACTION)``: one pass reads to find the largest element, one reads and
    writes. With 4 bits the largest is known before, and there is one pass, of half the fixed time. 0 for 0 elements.
    """
    if numel <= 0:
        return 0.0
    num_passes = 1 if dtype.startswith("float4") else 2
    moved_bytes = numel * (num_passes * DTYPE_BYTES["bfloat16"] + operand_bytes(dtype))
    fixed_s = QUANTISE_S * num_passes / 2
    return fixed_s + moved_bytes / (device.memory_bytes_per_s * QUANTISE_FRACTION)
