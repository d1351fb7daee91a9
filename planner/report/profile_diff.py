"""Where two hardware profiles differ: figures by path with their ratio, and everything else that is not a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from hardware_profiles.figures import Figure
from hardware_profiles.schema import MixedProfile, Profile
from planner.report.columns import columns, text
from planner.report.profile_values import Plain, shown, values

_NAMES = ("name", "base")
"""Differ between any two profiles and say nothing."""


@dataclass(frozen=True, kw_only=True)
class Changed:
    """One value that both profiles have and that differs."""

    path: str
    first: Figure[Any] | Plain
    second: Figure[Any] | Plain

    @property
    def ratio(self) -> float | None:
        """The second figure over the first; None for what is no figure, and over zero."""
        if isinstance(self.first, Figure) and isinstance(self.second, Figure) and self.first.value:
            return float(self.second.value / self.first.value)
        return None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """All differences of two profiles; paths and units are those of their files."""

    names: tuple[str, str]
    figures: tuple[Changed, ...]
    only_first: Mapping[str, Figure[Any] | Plain]
    only_second: Mapping[str, Figure[Any] | Plain]
    structure: tuple[Changed, ...]
    """Fabric, levels, algorithms, tiles: values that are not figures."""


def compare(
    first: Profile | MixedProfile, second: Profile | MixedProfile, names: tuple[str, str] | None = None
) -> Difference:
    """What differs from ``first`` to ``second``; ``names`` is what to call them, where not by their own.

    Figures are equal when their values are, whatever their evidence and source. Levels, links and groups are compared
    by their position in the file.
    """
    a, b = ({path: value for path, value in values(p).items() if path not in _NAMES} for p in (first, second))
    both = [Changed(path=path, first=a[path], second=b[path]) for path in a if path in b]
    changed = [pair for pair in both if _plain(pair.first) != _plain(pair.second)]
    return Difference(
        names=names or (first.name, second.name),
        figures=tuple(pair for pair in changed if isinstance(pair.first, Figure)),
        only_first={path: value for path, value in a.items() if path not in b},
        only_second={path: value for path, value in b.items() if path not in a},
        structure=tuple(pair for pair in changed if not isinstance(pair.first, Figure)),
    )


def render(difference: Difference, *, width: int, color: bool = False) -> str:
    """The differences as tables; a line where there are none."""
    first, second = difference.names
    sections: list[RenderableType] = []
    if difference.figures:
        sections.append(_changed("figure", difference.figures, difference.names))
    if difference.structure:
        sections.append(_changed("structure", difference.structure, difference.names))
    for name, found in ((first, difference.only_first), (second, difference.only_second)):
        if found:
            table = columns("", "")
            for path, value in found.items():
                table.add_row(path, shown(path, value))
            table.show_header = False
            sections.append(Group(Text(f"only in {name}", style="bold"), table))
    return text(sections or [f"{first} and {second}: no difference"], width=width, color=color, wrap=True)


def to_json(difference: Difference) -> dict[str, Any]:
    """The differences with the keys and units of the files."""
    first, second = difference.names
    return {
        "first": first,
        "second": second,
        "figures": [_entry(pair) | {"ratio": pair.ratio} for pair in difference.figures],
        "structure": [_entry(pair) for pair in difference.structure],
        "only_first": {path: _plain(value) for path, value in difference.only_first.items()},
        "only_second": {path: _plain(value) for path, value in difference.only_second.items()},
    }


def _changed(title: str, pairs: tuple[Changed, ...], names: tuple[str, str]) -> RenderableType:
    rated = any(pair.ratio is not None for pair in pairs)
    table = columns(f"~{title}", f"~{names[0]}", f"~{names[1]}", *([">ratio"] if rated else []))
    for pair in pairs:
        ratio = [] if not rated else ["-" if pair.ratio is None else f"{pair.ratio:.3g}"]
        table.add_row(pair.path, shown(pair.path, pair.first), shown(pair.path, pair.second), *ratio)
    return table


def _entry(pair: Changed) -> dict[str, Any]:
    return {"path": pair.path, "first": _plain(pair.first), "second": _plain(pair.second)}


def _plain(value: Figure[Any] | Plain) -> Any:
    return value.value if isinstance(value, Figure) else value
