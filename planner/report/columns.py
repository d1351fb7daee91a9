"""Tables and text for terminals and pipes: what every report is laid out with; equal values give equal text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Literal

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

WIDTH = 100
"""Columns of a report that nobody asked to be of another width."""


def columns(*headers: str, header: bool = True) -> Table:
    """A table without rules; ``>`` before a header aligns its column to the right, ``~`` lets it wrap.

    The last column can shrink in any case. Without ``header`` the names are not shown: lines for another program.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", show_header=header)
    for name in headers:
        justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        shrinks = name.startswith("~") or name is headers[-1]
        table.add_column(Text(name.lstrip(">~")), justify=justify, no_wrap=not shrinks, overflow="fold")
    return table


def cut(text: str) -> Text:
    """A cell that takes the width that is left and is cut there, in a column that may shrink."""
    return Text(text, no_wrap=True, overflow="crop")


def text(
    sections: Iterable[RenderableType], *, width: int | None = WIDTH, color: bool = False, wrap: bool = False
) -> str:
    """Sections, an empty line between two of them, without trailing spaces.

    What is wider than ``width`` columns is cut, or with ``wrap`` goes on in the next line; ``width`` None: lines are as
    long as they need to be.
    """
    out = io.StringIO()
    console = Console(file=out, width=width or 10_000, force_terminal=color, highlight=False, markup=False, emoji=False)
    for index, section in enumerate(sections):
        if index:
            console.print()
        if wrap:
            console.print(section, overflow="fold")
        else:
            console.print(section, no_wrap=True, overflow="crop", crop=True)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())
