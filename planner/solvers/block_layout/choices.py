"""What the nodes of a block's problem stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from planner.layouts.placements import Layout
from planner.layouts.strategies import OpNode
from planner.solvers.block_layout.strategies import Strategy


@dataclass(frozen=True)
class Choice:
    """What one node of the problem chooses."""

    kind: Literal["op", "param", "meeting", "entry", "exit"]
    layouts: tuple[Layout, ...] = ()
    """Per strategy; of an operation they are in ``strategies``."""
    op: OpNode | None = None
    strategies: tuple[Strategy, ...] = ()
    value: int | None = None
    """Of a parameter or a meeting."""
    fqn: str = ""
    """Of a parameter, relative to the block."""


@dataclass(frozen=True)
class Edge:
    """A value on its way from the node that makes it, or brings it together, to one that reads it."""

    value: int
    have: Sequence[Layout]
    """Per strategy of the first node."""
    want: Sequence[Layout]
    """Per strategy of the second."""
