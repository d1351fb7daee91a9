"""The file in which a user settles layouts: TOML with one ``[[pin]]`` table per layout.

[[pin]]
fqn = "layers.*.attention.wo"
layout = "tp:S(1)"
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from planner.errors import UsageError
from planner.job import Pin


class PinPart(BaseModel):
    """One settled layout; see `planner.job.Pin`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fqn: str
    layout: str


class PinFile(BaseModel):
    """All of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pin: tuple[PinPart, ...]


def read_pins(path: Path) -> tuple[Pin, ...]:
    """The pins in a file.

    Raises:
        UsageError: no such file, no TOML, or not this shape.
    """
    try:
        content = PinFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f'{path}: {where}: {first["msg"]}. Write [[pin]] tables with fqn = "layers.*.attention.wo" and layout = '
            '"tp:S(1)".'
        ) from None
    return tuple(Pin(fqn=pin.fqn, layout=pin.layout) for pin in content.pin)
