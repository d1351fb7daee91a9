"""The constants that come with Meshwright, in ``data/constants.toml``, and the factors that they make."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from math import prod
from typing import Annotated

import tomlkit
from pydantic import BaseModel, ConfigDict, Field

from planner.calibration.fit import Constant
from planner.calibration.scopes import constants_of
from planner.execution import Execution

FILE = "constants.toml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ShippedConstant(_Strict):
    """One constant of the file; ``rows`` of ``sources`` publications inform it."""

    value: Annotated[float, Field(gt=0)]
    sd: Annotated[float, Field(ge=0)]
    rows: Annotated[int, Field(ge=0)]
    sources: Annotated[int, Field(ge=0)]


class Shipped(_Strict):
    """The file: constants by name, and the day of the fit."""

    date: str
    rows: int
    sources: int
    constants: dict[str, ShippedConstant]

    @property
    def values(self) -> dict[str, float]:
        """The factors by name."""
        return {name: constant.value for name, constant in self.constants.items()}


@cache
def shipped() -> Shipped:
    """The file that comes with Meshwright."""
    return read(resources.files("planner.calibration").joinpath("data", FILE).read_text(encoding="utf-8"))


def read(text: str) -> Shipped:
    """The constants of a file's text; `pydantic.ValidationError` where it breaks the format."""
    return Shipped.model_validate(tomllib.loads(text))


def write(constants: tuple[Constant, ...], *, date: str, rows: int, sources: int) -> str:
    """Text of the file with these constants, fitted to ``rows`` runs of ``sources`` publications."""
    document = tomlkit.document()
    document.add(tomlkit.comment("Written by `python -m benchmarks.calibrate`; see docs/calibration.md."))
    document.update({"date": date, "rows": rows, "sources": sources})
    table = tomlkit.table()
    for c in constants:
        line = tomlkit.inline_table()
        line.update({"value": round(c.value, 4), "sd": round(c.sd, 4), "rows": c.rows, "sources": c.sources})
        table.add(c.name, line)
    document.add("constants", table)
    return tomlkit.dumps(document)


def factors(
    device: str,
    execution: Execution,
    *,
    low_precision: bool,
    experts: bool,
    values: Mapping[str, float] | None = None,
) -> tuple[tuple[str, float], ...]:
    """Factor by class of a run, for `Execution.time_factor`, with the shipped constants or other ``values`` by name."""
    names = constants_of(device=device, execution=execution, low_precision=low_precision, experts=experts)
    return product_of(names, shipped().values if values is None else values)


def product_of(names: Mapping[str, tuple[str, ...]], values: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Factor by class: the product of its constants, 1 for one that has no value."""
    return tuple((kind, prod(values.get(name, 1.0) for name in of)) for kind, of in names.items())
