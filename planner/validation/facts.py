"""The rows that come with Meshwright, in ``data/cases.json``: facts and where they stand, no text of the sources.

Rows of one group stand together: what all of them share once, the rest as a table. Values are those of `Case`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from pydantic import TypeAdapter

from planner.validation.case_files import FORMAT
from planner.validation.cases import Case

FILE = "cases.json"

_FIELDS = {field.name: field.default for field in dataclasses.fields(Case)}


def shipped_cases() -> tuple[Case, ...]:
    """All rows that come with Meshwright, in the order of the files that they were taken from."""
    text = resources.files("planner.validation").joinpath("data", FILE).read_text(encoding="utf-8")
    return unpack(json.loads(text))


def unpack(content: dict[str, Any]) -> tuple[Case, ...]:
    """Rows of a packed file, see `pack`."""
    rows = [
        part["shared"] | dict(zip(part["columns"], row, strict=True))
        for part in content["groups"]
        for row in part["rows"]
    ]
    return tuple(TypeAdapter(list[Case]).validate_python(rows))


def pack(cases: Sequence[Case]) -> str:
    """Rows as JSON, one line each; neighbours of one group share what is the same in all of them."""
    groups = []
    for _, members in itertools.groupby(cases, key=lambda case: case.group):
        rows = [dataclasses.asdict(case) for case in members]
        same = {name for name in _FIELDS if all(row[name] == rows[0][name] for row in rows)}
        shared = {name: rows[0][name] for name in _FIELDS if name in same and rows[0][name] != _FIELDS[name]}
        columns = [name for name in _FIELDS if name not in same]
        table = ",\n".join(_line([row[name] for name in columns]) for row in rows)
        groups.append(f'{{"shared": {_line(shared)},\n"columns": {_line(columns)},\n"rows": [\n{table}\n]}}')
    return f'{{"format": {FORMAT}, "groups": [\n' + ",\n".join(groups) + "\n]}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
