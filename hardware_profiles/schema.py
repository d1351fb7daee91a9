"""Profile files: TOML text -> checked `Profile` -> `Device` and `Level` values in SI units.

Every key names its unit; unknown keys, wrong types, infinities and values out of range are errors. Bandwidth and rates
are decimal (GB/s, TFLOP/s), as datasheets print them.

**Memory** is what a process can allocate, i.e. the total that ``torch.cuda.mem_get_info`` and torch's out-of-memory
messages report, not the number on the box: an "80 GB" H100 reports 79.1 GiB, a "141 GB" H200 139.8 GiB. Give exactly
one of ``memory_gib`` (2**30 bytes) and ``memory_gb`` (10**9 bytes).
"""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from costmodels.units import GB, GIB, MICRO, TERA
from hardware_profiles.cluster import Device, Level
from hardware_profiles.errors import ProfileError

NODE = "node"
"""Name of the level that holds one machine."""

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]

_PEAKS = {
    "float64": "peak_fp64_tflop_per_s",
    "float32": "peak_fp32_tflop_per_s",
    "bfloat16": "peak_bf16_tflop_per_s",
    "float16": "peak_fp16_tflop_per_s",
    "float8_e4m3fn": "peak_fp8_tflop_per_s",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DeviceSection(_Strict):
    """``[device]``: one device. Peaks are dense (no sparsity); at least one is given."""

    peak_fp64_tflop_per_s: Positive | None = None
    peak_fp32_tflop_per_s: Positive | None = None
    peak_bf16_tflop_per_s: Positive | None = None
    peak_fp16_tflop_per_s: Positive | None = None
    peak_fp8_tflop_per_s: Positive | None = None
    memory_gib: Positive | None = None
    memory_gb: Positive | None = None
    memory_gb_per_s: Positive
    memory_sustained_fraction: Fraction
    num_compute_units: Count
    gemm_tile: Annotated[list[Count], Field(min_length=2, max_length=2)]
    gemm_sustained_fraction: Fraction
    attention_forward_fraction: Fraction
    attention_backward_fraction: Fraction
    launch_overhead_us: NotNegative

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
        memory_bytes = self.memory_gib * GIB if self.memory_gib is not None else (self.memory_gb or 0) * GB
        return Device(
            name=name,
            peak_flop_per_s=tuple((dtype, peak * TERA) for dtype, peak in peaks if peak is not None),
            memory_bytes=round(memory_bytes),
            memory_bytes_per_s=self.memory_gb_per_s * GB,
            memory_sustained_fraction=self.memory_sustained_fraction,
            num_compute_units=self.num_compute_units,
            gemm_tile=(self.gemm_tile[0], self.gemm_tile[1]),
            gemm_sustained_fraction=self.gemm_sustained_fraction,
            attention_forward_fraction=self.attention_forward_fraction,
            attention_backward_fraction=self.attention_backward_fraction,
            launch_overhead_s=self.launch_overhead_us * MICRO,
        )


class LevelSection(_Strict):
    """``[[levels]]``: one level of interconnect, per device and direction while all devices communicate."""

    name: Name
    num_devices: Count | None = None
    gb_per_s: Positive
    sustained_fraction: Fraction
    latency_us: NotNegative
    switch_reduce_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    full_mesh: bool = False

    def build(self, num_devices: int) -> Level:
        """The section as a `Level` that joins ``num_devices``, in SI units."""
        return Level(
            name=self.name,
            num_devices=num_devices,
            bytes_per_s=self.gb_per_s * GB,
            sustained_fraction=self.sustained_fraction,
            latency_s=self.latency_us * MICRO,
            switch_reduce_fraction=self.switch_reduce_fraction,
            full_mesh=self.full_mesh,
        )


class Profile(_Strict):
    """A whole file: one kind of device and the levels that join them, innermost first."""

    name: Name
    evidence: Literal["datasheet", "measured"]
    device: DeviceSection
    levels: Annotated[list[LevelSection], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [level.name for level in self.levels]
        if len(set(names)) < len(names):
            raise ValueError(f"level names must differ, got {', '.join(names)}")
        if NODE not in names:
            raise ValueError(f"one level must be called {NODE!r}, got {', '.join(names)}")
        inner = 1
        for level in self.levels[:-1]:
            if level.num_devices is None:
                raise ValueError(
                    f"num_devices of level {level.name!r} is missing; only the outermost level may leave it out"
                )
            if level.num_devices % inner or level.num_devices == inner > 1:
                raise ValueError(
                    f"num_devices of level {level.name!r} ({level.num_devices}) must be a larger multiple of {inner}"
                )
            inner = level.num_devices
        outermost = self.levels[-1]
        if outermost.num_devices is not None and outermost.num_devices % inner:
            raise ValueError(
                f"num_devices of level {outermost.name!r} ({outermost.num_devices}) must be a multiple of {inner}"
            )
        return self

    @property
    def node(self) -> LevelSection:
        """The level that holds one machine."""
        return next(level for level in self.levels if level.name == NODE)


def parse_profile(text: str, source: str) -> Profile:
    """Checked profile from TOML text; ``source`` is what errors call the file.

    Raises `ProfileError` with one line per fault: file, field path, value, rule (for broken TOML: line and column).
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{source}: not valid TOML: {error}") from None
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        raise ProfileError("\n".join(_line(source, fault) for fault in error.errors())) from None


def _line(source: str, fault: Any) -> str:
    """One fault of pydantic as ``file: field.path = value: rule``."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    rule = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        rule = "unknown key"
    if fault["type"] == "missing":
        return f"{source}: {path}: required key is missing"
    if isinstance(fault["input"], dict | BaseModel | list):
        return f"{source}: {path}: {rule}" if path else f"{source}: {rule}"
    return f"{source}: {path} = {fault['input']!r}: {rule}"
