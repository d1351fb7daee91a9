"""Figures of a profile file: a number that may say where it comes from.

``memory_gb_per_s = 3350.0`` or ``memory_gb_per_s = { value = 3350.0, evidence = "datasheet", source = "..." }``.

Every kind of figure has the range outside of which a number can only be in another unit (bytes/s for GB/s, seconds for
microseconds): wide enough for any machine, narrow enough to catch a factor of a thousand.
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


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Count = Annotated[int, Field(ge=1)]

CountFigure = Annotated[Figure[Annotated[int, _within(1, 1e6, "")]], BeforeValidator(_table)]
Rate = Annotated[Figure[Annotated[float, _within(1e-3, 1e5, "TFLOP/s")]], BeforeValidator(_table)]
Bandwidth = Annotated[Figure[Annotated[float, _within(1e-3, 1e6, "GB/s")]], BeforeValidator(_table)]
Capacity = Annotated[Figure[Annotated[float, _within(1e-3, 1e5, "GiB or GB")]], BeforeValidator(_table)]
Latency = Annotated[Figure[Annotated[float, _within(0, 1e6, "us")]], BeforeValidator(_table)]
Hop = Annotated[Figure[Annotated[float, _within(1e-2, 1e6, "us")]], BeforeValidator(_table)]
"""The latency of a hop, which is never nothing: 0.01 us is three metres of light."""
Fraction = Annotated[Figure[Annotated[float, _within(1e-3, 1, "(a part of the whole)")]], BeforeValidator(_table)]
Ratio = Annotated[Figure[Annotated[float, _within(1, 1e3, "(a factor)")]], BeforeValidator(_table)]
Hours = Annotated[Figure[Annotated[float, _within(1, 1e8, "hours")]], BeforeValidator(_table)]
Price = Annotated[Figure[Annotated[float, _within(1e-3, 1e4, "USD per hour")]], BeforeValidator(_table)]
