"""Figures of a profile file: a number that may say where it comes from.

``memory_gb_per_s = 3350.0`` or ``memory_gb_per_s = { value = 3350.0, evidence = "datasheet", source = "..." }``.

Every kind of figure has a range outside of which a number can only be in another unit (MB/s or bytes/s for GB/s, MiB
for GiB, seconds for microseconds): wide enough for any machine, narrow enough to catch most factors of a thousand.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Evidence = Literal["measured", "datasheet", "derived"]
"""``measured`` by someone who is named, printed in a ``datasheet``, or ``derived`` from other figures or assumed."""

Number = TypeVar("Number", int, float)


class Strict(BaseModel):
    """A section of a file: unknown keys, wrong types and changes after reading are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Figure(Strict, Generic[Number]):
    """A number with its evidence; a bare number has neither evidence nor source."""

    value: Number
    evidence: Evidence | None = None
    source: Annotated[str, Field(min_length=1)] | None = None


def _table(raw: Any) -> Any:
    return raw if isinstance(raw, dict | Figure) else {"value": raw}


def _within(low: float, high: float, unit: str) -> AfterValidator:
    """The range of a kind of figure, as a rule that names its unit."""

    def check(value: float) -> float:
        if not low <= value <= high:
            raise ValueError(f"must be {low:g} to {high:g} {unit}".rstrip())
        return value

    return AfterValidator(check)


def _check_latency(value: float) -> float:
    if value and not 1e-2 <= value <= 1e6:
        raise ValueError("must be 0, or 0.01 to 1e+06 us")
    return value


_latency = AfterValidator(_check_latency)

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Count = Annotated[int, Field(ge=1, le=100_000)]

CountFigure = Annotated[Figure[Annotated[int, _within(1, 1e6, "")]], BeforeValidator(_table)]
Rate = Annotated[Figure[Annotated[float, _within(1e-3, 1e5, "TFLOP/s")]], BeforeValidator(_table)]
Bandwidth = Annotated[Figure[Annotated[float, _within(1e-3, 1e6, "GB/s")]], BeforeValidator(_table)]
"""Of a memory."""
LinkBandwidth = Annotated[Figure[Annotated[float, _within(1e-3, 8e3, "GB/s")]], BeforeValidator(_table)]
"""Of a device's link, switch or uplink: the fastest today are below 2 TB/s."""
CardBandwidth = Annotated[Figure[Annotated[float, _within(1e-3, 800, "GB/s")]], BeforeValidator(_table)]
"""Of a network card: 800 Gb/s are 100 GB/s."""
Capacity = Annotated[Figure[Annotated[float, _within(1e-3, 8e3, "GiB or GB")]], BeforeValidator(_table)]
"""Of a memory: a number of MiB is above."""
Latency = Annotated[Figure[Annotated[float, _latency]], BeforeValidator(_table)]
Hop = Annotated[Figure[Annotated[float, _within(1e-2, 1e6, "us")]], BeforeValidator(_table)]
"""The latency of a hop, which is never nothing: 0.01 us is three metres of light."""
Fraction = Annotated[Figure[Annotated[float, _within(1e-3, 1, "(a part of the whole)")]], BeforeValidator(_table)]
Ratio = Annotated[Figure[Annotated[float, _within(1, 1e3, "(a factor)")]], BeforeValidator(_table)]
Hours = Annotated[Figure[Annotated[float, _within(1, 1e8, "hours")]], BeforeValidator(_table)]
Price = Annotated[Figure[Annotated[float, _within(1e-3, 1e4, "USD per hour")]], BeforeValidator(_table)]
