"""``[device]`` of a profile file."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from costmodels.units import GB, GIB, HOUR, MICRO, TERA
from hardware_profiles.cluster import Device, Efficiency, Host, Tier
from hardware_profiles.figures import (
    Bandwidth,
    Capacity,
    Count,
    CountFigure,
    Figure,
    Fraction,
    Hours,
    Latency,
    LinkBandwidth,
    Name,
    Price,
    Rate,
    Strict,
)

_PEAKS = {
    "float64": "peak_fp64_tflop_per_s",
    "float32": "peak_fp32_tflop_per_s",
    "tfloat32": "peak_tf32_tflop_per_s",
    "bfloat16": "peak_bf16_tflop_per_s",
    "float16": "peak_fp16_tflop_per_s",
    "float8_e4m3fn": "peak_fp8_tflop_per_s",
    "float4_e2m1fn_x2": "peak_fp4_tflop_per_s",
}


class EfficiencySection(Strict):
    """``[device.efficiency]``: part of the hardware's rate that each class of operation reaches when large.

    ``gemm_fp32`` (also float64 and TF32), ``gemm_fp8`` and ``gemm_fp4`` are taken as ``gemm`` where they are not
    stated, ``gemm_sustained`` and ``attention_flash2`` as 1.
    """

    gemm: Fraction
    gemm_fp32: Fraction | None = None
    gemm_fp8: Fraction | None = None
    gemm_fp4: Fraction | None = None
    gemm_sustained: Fraction | None = None
    grouped_gemm: Fraction
    attention_forward: Fraction
    attention_backward: Fraction
    attention_flash2: Fraction | None = None
    pointwise: Fraction
    norm: Fraction
    optimizer: Fraction

    def build(self) -> Efficiency:
        stated = {name: figure.value for name in type(self).model_fields if (figure := getattr(self, name)) is not None}
        unstated = dict.fromkeys(("gemm_fp32", "gemm_fp8", "gemm_fp4"), self.gemm.value)
        return Efficiency(**{**unstated, "gemm_sustained": 1.0, "attention_flash2": 1.0, **stated})


class HostSection(Strict):
    """``[device.host]``: the device's share of its machine."""

    link_gb_per_s: LinkBandwidth
    memory_gib: Capacity

    def build(self) -> Host:
        return Host(
            link_bytes_per_s=self.link_gb_per_s.value * GB,
            memory_bytes=round(self.memory_gib.value * GIB),
        )


class TierSection(Strict):
    """``[[device.tiers]]``: a further memory of the device."""

    name: Name
    memory_gib: Capacity
    gb_per_s: Bandwidth

    def build(self) -> Tier:
        return Tier(
            name=self.name,
            memory_bytes=round(self.memory_gib.value * GIB),
            bytes_per_s=self.gb_per_s.value * GB,
        )


class DeviceSection(Strict):
    """``[device]``: one device. Peaks are dense (no sparsity); at least one is given."""

    peak_fp64_tflop_per_s: Rate | None = None
    peak_fp32_tflop_per_s: Rate | None = None
    peak_tf32_tflop_per_s: Rate | None = None
    peak_bf16_tflop_per_s: Rate | None = None
    peak_fp16_tflop_per_s: Rate | None = None
    peak_fp8_tflop_per_s: Rate | None = None
    peak_fp4_tflop_per_s: Rate | None = None
    memory_gib: Capacity | None = None
    memory_gb: Capacity | None = None
    memory_gb_per_s: Bandwidth
    num_compute_units: CountFigure
    gemm_tile: Annotated[list[Count], Field(min_length=2, max_length=2)]
    launch_overhead_us: Latency
    call_us: Latency | None = None
    mtbf_hours: Hours | None = None
    price_usd_per_hour: Price | None = None
    efficiency: EfficiencySection
    host: HostSection | None = None
    tiers: Annotated[tuple[TierSection, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.memory_gib is None) == (self.memory_gb is None):
            raise ValueError("give exactly one of memory_gib and memory_gb")
        if all(getattr(self, key) is None for key in _PEAKS.values()):
            raise ValueError(f"give at least one of {', '.join(_PEAKS.values())}")
        return self

    def build(self, name: str) -> Device:
        """The section as a `Device` called ``name``, in SI units."""
        peaks = ((dtype, getattr(self, key)) for dtype, key in _PEAKS.items())
        memory_bytes = self.memory_gib.value * GIB if self.memory_gib else _value(self.memory_gb) * GB
        return Device(
            name=name,
            peak_flop_per_s=tuple((dtype, peak.value * TERA) for dtype, peak in peaks if peak is not None),
            memory_bytes=round(memory_bytes),
            memory_bytes_per_s=self.memory_gb_per_s.value * GB,
            num_compute_units=self.num_compute_units.value,
            gemm_tile=(self.gemm_tile[0], self.gemm_tile[1]),
            efficiency=self.efficiency.build(),
            launch_overhead_s=self.launch_overhead_us.value * MICRO,
            call_s=None if self.call_us is None else self.call_us.value * MICRO,
            tiers=tuple(tier.build() for tier in self.tiers),
            host=None if self.host is None else self.host.build(),
            mtbf_s=None if self.mtbf_hours is None else self.mtbf_hours.value * HOUR,
            price_usd_per_hour=None if self.price_usd_per_hour is None else self.price_usd_per_hour.value,
        )


def _value(figure: Figure[float] | None) -> float:
    return 0.0 if figure is None else figure.value
