"""Layouts of a whole model: each distinct block solved once, blocks joined at their borders, memory by its price.

For a price ``p`` (seconds per byte) of what blocks hold between their passes, the layouts of least
``seconds + p * bytes`` are found exactly: eliminating all of a block but its two borders leaves a table
``T_b[entry layout, exit layout]`` (`planner.solvers.intra_op.priced`), and a shortest path through the segments'
tables joins them. Every ``p >= 0`` proves a bound: layouts that hold at most ``M`` bytes take ``least(p) - p * M`` or
more.

`solve_layouts` starts with ``p = 0``. Where that does not fit, it looks for the edge of the convex hull of
(bytes, seconds) that crosses the limit: ``p`` is the slope between the fastest layouts seen that do not fit and the
fastest that do, until no layouts lie below that slope, or the gap is 0.1 %. Between these two some segments may take
the ones and some the others. What it returns is the fastest seen that fits, with the best bound; all that it saw are
the trade-off of time and memory.

A model of any depth costs one elimination per distinct block and price; a segment adds one product of small tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import inf

import numpy as np
from numpy.typing import NDArray

from costmodels.units import format_bytes
from planner.errors import NoPlanError
from planner.layouts.pins import BlockPins
from planner.layouts.placements import Layout
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.problem import BlockProblem, block_problem
from planner.solvers.intra_op import Priced, Projection, priced
from planner.solvers.intra_op.problem import Costs
from planner.solvers.setting import Setting

PRICES, PRICE_FACTOR = 24, 4.0
"""How often the price of memory is raised, and by what, before nothing is said to fit."""

SURE = 1e-3
"""Gap at which the price of memory is looked for no further."""


@dataclass(frozen=True, eq=False)
class PlacedSegment:
    """A segment with its layouts."""

    problem: BlockProblem
    choice: tuple[int, ...]
    """Strategy of every node of the problem."""

    @property
    def seconds(self) -> float:
        return self.problem.problem.cost(self.choice)

    @property
    def borders(self) -> tuple[int | None, int]:
        """Strategies of entry and exit."""
        entry = self.problem.entry
        return None if entry is None else self.choice[entry], self.choice[self.problem.exit]

    @cached_property
    def kept(self) -> tuple[float, float]:
        """Bytes between the passes: of parameters with their states, and of activations."""
        states = activations = 0.0
        for choice, held, s in zip(self.problem.choices, self.problem.held, self.choice, strict=True):
            if choice.kind == "param":
                states += float(held[s])
            else:
                activations += float(held[s])
        return states, activations

    @cached_property
    def peak_bytes(self) -> float:
        """Most at any time point of the segment's own passes."""
        return self.problem.problem.peak(self.choice)


@dataclass(frozen=True, eq=False)
class ModelLayout:
    """Layouts of all segments."""

    segments: tuple[PlacedSegment, ...]

    @cached_property
    def seconds(self) -> float:
        """One forward and backward pass and the optimizer's step, nothing hidden behind anything."""
        return float(sum(segment.seconds for segment in self.segments))

    @cached_property
    def held_bytes(self) -> float:
        """When the forward pass is over."""
        return float(sum(sum(segment.kept) for segment in self.segments))

    @cached_property
    def peak_bytes(self) -> float:
        """All states, the activations of the segments before, and the segment's own peak: the most of all segments."""
        states = sum(segment.kept[0] for segment in self.segments)
        before = accumulate((segment.kept[1] for segment in self.segments), initial=0.0)
        own = (segment.peak_bytes - segment.kept[0] for segment in self.segments)
        return states + max(a + b for a, b in zip(before, own, strict=False))


@dataclass(frozen=True)
class LayoutSolution:
    """The best layouts found, and the proof."""

    best: ModelLayout
    bound_s: float
    """No layouts within the limit take less."""
    tradeoff: tuple[ModelLayout, ...]
    """Layouts seen of which none is both faster and leaner than another: fastest first."""

    @property
    def gap(self) -> float:
        """``seconds / bound - 1``; 0 is proven best."""
        return max(0.0, self.best.seconds / self.bound_s - 1.0)


def solve_layouts(
    setting: Setting,
    mesh: LayoutMesh,
    *,
    batch: int,
    limit_bytes: float | None = None,
    pins: Sequence[BlockPins] = (),
) -> LayoutSolution:
    """Best layouts of every operation of a model over a mesh.

    Args:
        batch: samples of one forward and backward pass over all devices of the mesh.
        limit_bytes: memory of one device, buffers included; ``None`` for no limit.
        pins: per distinct block, if any (`planner.layouts.pins`).

    Parameters that several blocks share lie alike in all of them: where they would not, each of the layouts found is
    settled for all, and the fastest kept, with the bound that holds for any.

    Raises:
        NoPlanError: nothing is found that fits within ``limit_bytes``, or a value cannot reach its readers from where
            it is pinned.
    """
    graph = setting.graph
    room = None if limit_bytes is None else limit_bytes - sum(graph.resident_bytes)
    settled = [dict(pins[b]) if pins else {} for b in range(len(graph.blocks))]
    problems = [block_problem(setting, b, mesh, batch=batch, pins=settled[b]) for b in range(len(graph.blocks))]
    free = found = solve_chain(problems, setting.block_of, room)
    for readers in _shared(setting):
        tries = []
        for layout in dict.fromkeys(_at_rest(setting, found, *reader) for reader in readers):
            alike, pinned = list(problems), [dict(p) for p in settled]
            for b, fqn in readers:
                pinned[b][fqn] = dict(zip(mesh.axes, layout, strict=True))
                alike[b] = block_problem(setting, b, mesh, batch=batch, pins=pinned[b])
            with suppress(NoPlanError):
                tries.append((solve_chain(alike, setting.block_of, room), alike, pinned))
        if not tries:
            raise NoPlanError(f"no layouts were found in which all that share {readers[0][1]} have it alike.")
        found, problems, settled = min(tries, key=lambda tried: tried[0].best.seconds)
    return replace(found, bound_s=free.bound_s)


def _shared(setting: Setting) -> list[list[tuple[int, str]]]:
    """(block, relative FQN) of the readers of each parameter that distinct blocks share."""
    readers: dict[str, dict[tuple[int, str], None]] = {}
    for segment in setting.graph.segments:
        for relative, _ in setting.graph.blocks[segment.block].params:
            readers.setdefault(setting.graph.canonical(segment, relative), {})[segment.block, relative] = None
    return [list(found) for found in readers.values() if len(found) > 1]


def _at_rest(setting: Setting, found: LayoutSolution, b: int, fqn: str) -> Layout:
    placed = found.best.segments[setting.block_of.index(b)]
    pairs = zip(placed.problem.choices, placed.choice, strict=True)
    return next(choice.layouts[s] for choice, s in pairs if choice.kind == "param" and choice.fqn == fqn)


def solve_chain(blocks: Sequence[BlockProblem], block_of: Sequence[int], limit_bytes: float | None) -> LayoutSolution:
    """`solve_layouts` for problems that are built.

    Args:
        block_of: per segment, its distinct block.
    """
    return _Chain(blocks, block_of, limit_bytes, [_priced(block) for block in blocks]).solve()


@dataclass
class _Chain:
    blocks: Sequence[BlockProblem]
    block_of: Sequence[int]
    limit_bytes: float | None
    priced: Sequence[Priced]
    bound_s: float = -inf
    """No layouts within the limit take less."""

    def solve(self) -> LayoutSolution:
        fast = self._at(0.0)
        seen = [fast]
        if not self._fits(fast):
            lean = self._leanest(fast, seen)
            while fast.held_bytes > lean.held_bytes and self._gap([lean, *self._between(fast, lean)]) > SURE:
                price = (lean.seconds - fast.seconds) / (fast.held_bytes - lean.held_bytes)
                found = self._at(price)
                if found.seconds + price * found.held_bytes >= (fast.seconds + price * fast.held_bytes) * (1 - 1e-12):
                    break
                seen.append(found)
                if self._fits(found):
                    lean = found
                else:
                    fast = found
            seen.extend(self._between(fast, lean))
        fitting = [layout for layout in seen if self._fits(layout)]
        best = min(fitting, key=lambda layout: (layout.seconds, layout.held_bytes))
        return LayoutSolution(best, min(self.bound_s, best.seconds), _undominated(seen))

    def _gap(self, fitting: Sequence[ModelLayout]) -> float:
        return min(layout.seconds for layout in fitting) / self.bound_s - 1.0

    def _leanest(self, fast: ModelLayout, seen: list[ModelLayout]) -> ModelLayout:
        """Layouts that fit: the price of memory grows until some do."""
        price = fast.seconds / max(fast.held_bytes, 1.0)
        for _ in range(PRICES):
            found = self._at(price)
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

    def _at(self, price: float) -> ModelLayout:
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


def _undominated(seen: Sequence[ModelLayout]) -> tuple[ModelLayout, ...]:
    kept: list[ModelLayout] = []
    for layout in sorted(seen, key=lambda found: (found.seconds, found.peak_bytes)):
        if not kept or layout.peak_bytes < kept[-1].peak_bytes:
            kept.append(layout)
    return tuple(kept)
