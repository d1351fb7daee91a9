"""Random tiny blocks, and the best layouts of a chain of them by trying all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import cast

import numpy as np
from numpy.typing import NDArray

from planner.layouts.placements import Layout, parse
from planner.solvers.block_layout.choices import Choice, Edge
from planner.solvers.block_layout.problem import BlockProblem
from planner.solvers.block_layout.values import BlockValues
from planner.solvers.intra_op.problem import Costs, Problem, Usage

BORDERS: tuple[Layout, ...] = ((parse("R"),), (parse("S(0)"),), (parse("S(1)"),))
TURN = 3


def block(random: np.random.Generator, *, entry: bool = True, exits: Sequence[int] = (0, 1)) -> BlockProblem:
    """A parameter and two operations between the borders, of which some pairs are forbidden.

    Args:
        entry: whether anything enters.
        exits: which of `BORDERS` it may leave in.
    """
    entries = [Choice("entry", layouts=BORDERS[:2])] if entry else []
    leave = Choice("exit", layouts=tuple(BORDERS[i] for i in exits))
    choices = (*entries, Choice("op"), Choice("param"), Choice("op"), leave)
    ops = [i for i, c in enumerate(choices) if c.kind == "op"]
    sizes = [len(c.layouts) or (3 if i == ops[1] else 2) for i, c in enumerate(choices)]
    param, last = ops[0] + 1, len(choices) - 1
    edges = [(ops[0], ops[1]), (param, ops[1]), (ops[1], last), (ops[0], ops[1])] + ([(0, ops[0])] if entry else [])
    usages: list[tuple[Usage, ...]] = [()] * len(choices)
    usages[param] = (Usage(0, 2 * TURN + 1, random.uniform(1, 9, sizes[param])),)
    for at, i in enumerate(ops):
        kept = Usage(at, 2 * TURN - at + 1, random.uniform(0, 5, sizes[i]))
        usages[i] = (
            kept,
            Usage(at, at + 1, random.uniform(0, 5, sizes[i])),
            Usage(4, 5, random.uniform(0, 3, sizes[i])),
        )
    costs = tuple(random.uniform(0, 4, size) if c.kind in ("op", "param") else np.zeros(size)
                  for c, size in zip(choices, sizes, strict=True))  # fmt: skip
    return BlockProblem(
        values=cast(BlockValues, None),  # nobody asks
        problem=Problem(
            costs, tuple(edges), tuple(_table(random, sizes[i], sizes[j]) for i, j in edges), tuple(usages)
        ),
        choices=choices,
        edges=tuple(Edge(0, (), ()) for _ in edges),
        seconds=(),
        turn=TURN,
    )


def _table(random: np.random.Generator, rows: int, columns: int) -> Costs:
    table = random.uniform(0, 3, (rows, columns))
    table[random.random(table.shape) < 0.1] = np.inf
    table[0, :] = np.where(np.isinf(table[0, :]), 1.0, table[0, :])  # some way leads through
    return table


Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Every:
    """All layouts of a chain, whose segments join where borders are equal."""

    blocks: Sequence[BlockProblem]
    block_of: Sequence[int]

    @property
    def found(self) -> Floats:
        """Seconds and peak bytes of each: ``[layouts, 2]``."""
        return np.stack([self._rows[:, 0], self._rows[:, 1] + self._rows[:, 3]], axis=1)

    @property
    def held(self) -> Floats:
        """Seconds, and bytes between the passes, of each: ``[layouts, 2]``."""
        return np.stack([self._rows[:, 0], self._rows[:, 1] + self._rows[:, 2]], axis=1)

    @cached_property
    def _rows(self) -> Floats:
        parts: dict[Layout | None, Floats] = {None: np.array([[0.0, 0.0, 0.0, -np.inf]])}
        for b in self.block_of:  # by border: seconds, states, activations, most beyond all states
            joined: dict[Layout | None, list[Floats]] = {}
            for enters, leaves, seconds, states, kept, most in _choices(self.blocks[b]):
                for border, rows in parts.items():
                    if enters is None or border in (None, enters):
                        own = rows + np.array([seconds, states, kept, 0.0])
                        own[:, 3] = np.maximum(rows[:, 3], rows[:, 2] + most)
                        joined.setdefault(leaves, []).append(own)
            parts = {border: np.concatenate(rows) for border, rows in joined.items()}
        return np.concatenate(list(parts.values()))

    def least(self, limit: float = np.inf) -> float:
        return float(self.found[self.found[:, 1] <= limit, 0].min(initial=np.inf))


def _choices(problem: BlockProblem) -> list[tuple[Layout | None, Layout, float, float, float, float]]:
    """Of every choice of finite cost: borders, seconds, bytes of states and activations, most beyond the states."""
    found, inner = [], problem.problem
    for choice in product(*(range(len(costs)) for costs in inner.costs)):
        seconds = sum(c[s] for c, s in zip(inner.costs, choice, strict=True))
        seconds += sum(t[choice[i], choice[j]] for (i, j), t in zip(inner.edges, inner.edge_costs, strict=True))
        if np.isfinite(seconds):
            at = {"param": np.zeros(2 * TURN + 1), "op": np.zeros(2 * TURN + 1)}
            for c, usages, s in zip(problem.choices, inner.usages, choice, strict=True):
                for usage in usages:
                    at[c.kind][usage.start : usage.end] += usage.amounts[s]
            enters = None if problem.entry is None else problem.choices[problem.entry].layouts[choice[problem.entry]]
            leaves = problem.choices[problem.exit].layouts[choice[problem.exit]]
            found.append((enters, leaves, seconds, at["param"][TURN], at["op"][TURN], at["op"].max()))
    return found
