"""Layouts of a whole model: each distinct block solved once, blocks joined at their borders, memory by its price.

For a price ``p`` (seconds per byte) of what blocks hold between their passes, the layouts of least
``seconds + p * bytes`` are found exactly: eliminating all of a block but its two borders leaves a table
``T_b[entry layout, exit layout]`` (`planner.solvers.intra_op.priced`), and a shortest path through the segments'
tables joins them. Every ``p >= 0`` proves a bound: layouts that hold at most ``M`` bytes take ``least(p) - p * M`` or
more.

`solve_chain` starts with ``p = 0``. Where that does not fit, it looks for the edge of the convex hull of
(bytes, seconds) that crosses the limit: ``p`` is the slope between the fastest layouts seen that do not fit and the
fastest that do, until no layouts lie below that slope, or the gap is 0.1 %. Between these two some segments may take
the ones and some the others. What it returns is the fastest seen that fits, with the best bound; all that it saw are
the trade-off of time and memory.

A model of any depth costs one elimination per distinct block and price; a segment adds one product of small tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from costmodels.units import format_bytes
from planner.errors import NoPlanError
from planner.layouts.placements import Layout
from planner.solvers.block_layout.model_layout import LayoutSolution, ModelLayout, PlacedSegment, undominated
from planner.solvers.block_layout.problem import BlockProblem
from planner.solvers.intra_op import Priced, Projection, priced
from planner.solvers.intra_op.problem import Costs

PRICES, PRICE_FACTOR = 24, 4.0
"""How often the price of memory is raised, and by what, before nothing is said to fit."""

LEANEST = 1e6
"""Price of all that the fastest layouts hold, in their seconds, at which only what is held counts."""
SURE = 1e-3
"""Gap at which the price of memory is looked for no further."""


def solve_chain(blocks: Sequence[BlockProblem], block_of: Sequence[int], limit_bytes: float | None) -> LayoutSolution:
    """Best layouts of the segments of a model (module docstring).

    Args:
        block_of: per segment, its distinct block.
    """
    return _Chain(blocks, block_of, limit_bytes, [_priced(block) for block in blocks]).solve()


def trade_off(blocks: Sequence[BlockProblem], block_of: Sequence[int]) -> tuple[ModelLayout, ...]:
    """Layouts from the fastest to those that hold least between the passes: every corner of the lower convex hull of
    (bytes held, seconds).

    Args:
        block_of: per segment, its distinct block.
    """
    chain = _Chain(blocks, block_of, None, [_priced(block) for block in blocks])
    fast = chain.at(0.0)
    lean = chain.at(LEANEST * fast.seconds / max(fast.held_bytes, 1.0))
    seen, waiting = [fast, lean], [(fast, lean)]
    while waiting:
        fast, lean = waiting.pop()
        if (between := chain.below(fast, lean)) is not None:
            seen.append(between)
            waiting += [(fast, between), (between, lean)]
    return tuple(sorted(seen, key=lambda layout: (layout.seconds, layout.held_bytes)))


@dataclass
class _Chain:
    blocks: Sequence[BlockProblem]
    block_of: Sequence[int]
    limit_bytes: float | None
    priced: Sequence[Priced]
    bound_s: float = -inf
    """No layouts within the limit take less."""

    def solve(self) -> LayoutSolution:
        fast = self.at(0.0)
        seen = [fast]
        if not self._fits(fast):
            lean = self._leanest(fast, seen)
            while fast.held_bytes > lean.held_bytes and self._gap([lean, *self._between(fast, lean)]) > SURE:
                if (found := self.below(fast, lean)) is None:
                    break
                seen.append(found)
                if self._fits(found):
                    lean = found
                else:
                    fast = found
            seen.extend(self._between(fast, lean))
        fitting = [layout for layout in seen if self._fits(layout)]
        best = min(fitting, key=lambda layout: (layout.seconds, layout.held_bytes))
        return LayoutSolution(best, min(self.bound_s, best.seconds), undominated(seen))

    def below(self, fast: ModelLayout, lean: ModelLayout) -> ModelLayout | None:
        """The layouts furthest below the line between two in (bytes held, seconds); ``None`` where none are."""
        if fast.held_bytes <= lean.held_bytes:
            return None
        price = (lean.seconds - fast.seconds) / (fast.held_bytes - lean.held_bytes)
        found = self.at(price)
        line = fast.seconds + price * fast.held_bytes
        return found if found.seconds + price * found.held_bytes < line * (1 - 1e-12) else None

    def _gap(self, fitting: Sequence[ModelLayout]) -> float:
        return min(layout.seconds for layout in fitting) / self.bound_s - 1.0

    def _leanest(self, fast: ModelLayout, seen: list[ModelLayout]) -> ModelLayout:
        """Layouts that fit: the price of memory grows until some do."""
        price = fast.seconds / max(fast.held_bytes, 1.0)
        for _ in range(PRICES):
            found = self.at(price)
            seen.append(found)
            if self._fits(found):
                return found
            price *= PRICE_FACTOR
        limit, least = self.limit_bytes or 0.0, min(layout.peak_bytes for layout in seen)
        proven = found.held_bytes > limit  # least of all; what passes need beside it is not in the price
        said = "no layouts fit: the leanest found" if proven else "no layouts were found that fit: the leanest"
        raise NoPlanError(
            f"{said} need {format_bytes(least)} of each device's {format_bytes(limit)}. "
            f"Use more devices, a smaller batch, or fewer pins."
        )

    def _between(self, fast: ModelLayout, lean: ModelLayout) -> list[ModelLayout]:
        """The first mixture that fits, as segment after segment takes the lean layouts in place of the fast ones: those
        that lie alike at both borders, and save most bytes per second first."""
        pairs = list(zip(fast.segments, lean.segments, strict=True))
        saved = [sum(one.kept) - sum(other.kept) for one, other in pairs]
        worth = [i for i, (one, other) in enumerate(pairs) if one.borders == other.borders and saved[i] > 0]
        worth.sort(key=lambda i: ((pairs[i][1].seconds - pairs[i][0].seconds) / saved[i], -i))
        segments = list(fast.segments)
        for i in worth:
            segments[i] = lean.segments[i]
            if self._fits(mixed := ModelLayout(tuple(segments))):
                return [mixed]
        return []

    def _fits(self, layout: ModelLayout) -> bool:
        return self.limit_bytes is None or layout.peak_bytes <= self.limit_bytes

    def at(self, price: float) -> ModelLayout:
        """Layouts of least ``seconds + price * bytes held``; what they prove goes into the bound."""
        projections = [block.at(price) for block in self.priced]
        reached = np.zeros(1)  # per layout at the border that was reached last
        came: list[NDArray[np.intp]] = []
        for i, b in enumerate(self.block_of):
            table = projections[b].table
            if self.blocks[b].entry is None:
                came.append(np.full(len(table), int(reached.argmin())))
                reached = reached.min() + table
            else:
                total = self._entering(i, reached)[:, None] + table
                came.append(total.argmin(axis=0))
                reached = total.min(axis=0)
        if not np.isfinite(reached.min()):
            raise NoPlanError(
                "no layouts obey the pins: a value cannot be brought from where it is pinned to its readers"
            )
        found = ModelLayout(self._back(projections, came, int(reached.argmin())))
        self.bound_s = max(self.bound_s, found.seconds + price * (found.held_bytes - (self.limit_bytes or 0.0)))
        return found

    def _entering(self, i: int, reached: Costs) -> Costs:
        """Costs of the layouts at a segment's entry, of those at the exit before it."""
        if i == 0:
            return np.zeros(len(self._entries(0)))
        places = {layout: k for k, layout in enumerate(self._exits(i - 1))}
        return np.array([reached[places[e]] if e in places else np.inf for e in self._entries(i)])

    def _back(
        self, projections: Sequence[Projection], came: Sequence[NDArray[np.intp]], exit_: int
    ) -> tuple[PlacedSegment, ...]:
        segments = []
        known: dict[tuple[int, ...], PlacedSegment] = {}
        for i in reversed(range(len(self.block_of))):
            b, entry = self.block_of[i], int(came[i][exit_])
            border = (exit_,) if self.blocks[b].entry is None else (entry, exit_)
            if (b, *border) not in known:
                known[b, *border] = PlacedSegment(self.blocks[b], projections[b].decode(border))
            segments.append(known[b, *border])
            if i and self.blocks[b].entry is not None:
                exit_ = self._exits(i - 1).index(self._entries(i)[entry])
            else:
                exit_ = entry
        return tuple(reversed(segments))

    def _entries(self, i: int) -> Sequence[Layout]:
        block = self.blocks[self.block_of[i]]
        assert block.entry is not None
        return block.choices[block.entry].layouts

    def _exits(self, i: int) -> Sequence[Layout]:
        block = self.blocks[self.block_of[i]]
        return block.choices[block.exit].layouts


def _priced(block: BlockProblem) -> Priced:
    return priced(block.problem, block.held, [block.exit] if block.entry is None else [block.entry, block.exit])
