"""Which of a model's operations have layout rules, as a table or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import RenderableType
from rich.text import Text

from planner.layouts.strategies import Coverage
from planner.report.columns import columns, text


def render(name: str, found: Coverage, *, color: bool = False) -> str:
    """A model's forward operations, those that move most bytes first, and what has no rule."""
    table = columns("operation", "rule", ">calls", ">FLOP", ">bytes", ">options per axis")
    for op in found.ops:
        table.add_row(
            op.name, op.family or "none: replicated", f"{op.count:,}", _share(op.flop_share), _share(op.bytes_share),
            str(op.num_options), style="" if op.ruled else "bold",
        )  # fmt: skip
    calls = sum(op.count for op in found.ops)
    headline = Text.assemble((name, "bold"), f": {found.ruled_share:.1%} of {calls:,} forward calls have a layout rule")
    sections: list[RenderableType] = [headline, table]
    if found.unruled:
        sections.append(Text("without a rule:\n" + "\n".join(f"  {op} in {fqn or '.'}" for op, fqn in found.unruled)))
    return text(sections, color=color)


def to_json(name: str, found: Coverage) -> str:
    """The same as one JSON object."""
    content = {
        "model": name,
        "ruled_share": found.ruled_share,
        "operations": [{**asdict(op), "ruled": op.ruled} for op in found.ops],
        "unruled": [{"operation": op, "module": fqn} for op, fqn in found.unruled],
    }
    return json.dumps(content, indent=2) + "\n"


def _share(part: float) -> str:
    return f"{part:.1%}" if part else ""
