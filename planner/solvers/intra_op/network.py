"""A working copy of a problem that shrinks: nodes fold into neighbours, and the way back to all choices is kept.

Every step is a record; `Network.decode` plays them backwards, so a choice over what is left becomes a choice over all
nodes. Arrays are never written in place, so a `fork` shares them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.solvers.intra_op.pieces import Pieces, Profile, combine, kept_times, lifted, profile
from planner.solvers.intra_op.problem import Costs, Problem

Indices = NDArray[np.intp]


class ContradictionError(Exception):
    """No choice is left: internal, never shown to a user."""


@dataclass(frozen=True)
class Record:
    """How a node's strategy follows: ``table[choice of parents]``; with itself as parent, its values were renamed."""

    node: int
    parents: tuple[int, ...]
    table: Indices


@dataclass
class Network:
    """What is left of a problem. Node ``i`` is gone when ``unary[i]`` is ``None``."""

    unary: list[Costs | None]
    tables: list[dict[int, Costs]]
    """``tables[i][j][u, w]``, and its transpose at ``tables[j][i]``."""
    memory: list[tuple[Pieces, ...]]
    """What a node keeps: pieces of time, the least of each moved to `held`."""
    held: Profile
    """Least that every choice holds, per time point."""
    limit: float
    constant: float = 0.0
    records: list[Record] = field(default_factory=list)
    queue: list[tuple[int, int]] = field(default_factory=list)
    """Nodes to look at again, the smallest first."""
    queued: set[int] = field(default_factory=set)

    @property
    def nodes(self) -> list[int]:
        return [i for i, costs in enumerate(self.unary) if costs is not None]

    def costs(self, i: int) -> Costs:
        """Costs of a node that is left."""
        costs = self.unary[i]
        assert costs is not None
        return costs

    def pieces(self, i: int) -> Pieces | None:
        """What a node keeps, as disjoint pieces in order of time."""
        if not self.memory[i]:
            return None
        if len(self.memory[i]) > 1:
            self._keep(i, combine(self.memory[i]))
        return self.memory[i][0] if self.memory[i] else None

    def fork(self) -> Network:
        """A copy that may change by itself."""
        tables = [dict(row) for row in self.tables]
        memory, queue = list(self.memory), list(self.queue)
        return Network(
            list(self.unary),
            tables,
            memory,
            self.held,
            self.limit,
            self.constant,
            list(self.records),
            queue,
            set(self.queued),
        )

    def touch(self, i: int) -> None:
        """Look at a node again."""
        if i not in self.queued:
            self.queued.add(i)
            heapq.heappush(self.queue, (self._weight(i), i))

    def next_dirty(self) -> int | None:
        """The smallest node to look at; one that grew while it waited waits on."""
        while self.queue:
            weight, i = heapq.heappop(self.queue)
            if self.unary[i] is None:
                self.queued.discard(i)
            elif self._weight(i) > 2 * weight + 2:
                heapq.heappush(self.queue, (self._weight(i), i))
            else:
                self.queued.discard(i)
                return i
        return None

    def add_cost(self, i: int, costs: Costs) -> None:
        """Add to a node's costs."""
        self.unary[i] = self.costs(i) + costs
        self.touch(i)

    def add_memory(self, i: int, pieces: Pieces) -> None:
        """Add to what a node keeps."""
        if len(pieces.starts):
            self.memory[i] = (*self.memory[i], pieces)

    def set_table(self, i: int, j: int, table: Costs) -> None:
        """Write an edge.

        Values without a finite partner become infinite; a table ``f(u) + g(w)`` becomes node costs.
        """
        for node, best in ((i, table.min(axis=1)), (j, table.min(axis=0))):
            if best.max() == np.inf:
                self.unary[node] = np.where(best == np.inf, np.inf, self.costs(node))
        first = table[:1]
        with np.errstate(invalid="ignore"):
            change = table - first
        if (change == change[:, :1]).all():  # infinity minus infinity is not equal to itself
            self.tables[i].pop(j, None)
            self.tables[j].pop(i, None)
            self.add_cost(i, change[:, 0])
            self.add_cost(j, first[0])
            return
        self.tables[i][j], self.tables[j][i] = table, table.T
        self.touch(i)
        self.touch(j)

    def add_table(self, i: int, j: int, table: Costs) -> None:
        """Add costs to a pair of nodes."""
        old = self.tables[i].get(j)
        self.set_table(i, j, table if old is None else old + table)

    def restrict(self, i: int, keep: NDArray[np.bool_]) -> None:
        """Drop values of a node.

        Raises:
            ContradictionError: none is left.
        """
        kept = np.flatnonzero(keep)
        if not len(kept):
            raise ContradictionError
        self.records.append(Record(i, (i,), kept))
        self.unary[i] = self.costs(i)[kept]
        self.memory[i] = tuple(Pieces(p.starts, p.ends, p.amounts[:, kept]) for p in self.memory[i])
        if self.memory[i]:
            self._keep(i, combine(self.memory[i]))
        for j, table in list(self.tables[i].items()):
            self.set_table(i, j, table[kept])
        self.touch(i)

    def forbid(self, i: int, values: NDArray[np.bool_]) -> None:
        """Make values of a node infinite."""
        self.unary[i] = np.where(values, np.inf, self.costs(i))
        self.touch(i)

    def remove(self, i: int, parents: tuple[int, ...], table: Indices) -> None:
        """Take a node out; its strategy is ``table[parents]``."""
        self.records.append(Record(i, parents, table))
        for j in self.tables[i]:
            del self.tables[j][i]
            self.touch(j)
        self.tables[i], self.unary[i], self.memory[i] = {}, None, ()

    def assign(self, i: int, value: int) -> None:
        """Give a node its value."""
        self.constant += float(self.costs(i)[value])
        for j, table in self.tables[i].items():
            self.add_cost(j, table[value])
        for pieces in self.memory[i]:
            self.held = lifted(self.held, pieces.starts, pieces.ends, pieces.amounts[:, value])
        self.remove(i, (), np.array(value))

    def decode(self, choice: Mapping[int, int]) -> dict[int, int]:
        """From a choice over the nodes that are left to one over all nodes that this network began with."""
        full = dict(choice)
        for record in reversed(self.records):
            full[record.node] = int(record.table[tuple(full[p] for p in record.parents)])
        return full

    def _keep(self, i: int, pieces: Pieces) -> None:
        least = pieces.amounts.min(axis=1)
        self.held = lifted(self.held, pieces.starts, pieces.ends, least)
        amounts = pieces.amounts - least[:, None]
        varies = amounts.any(axis=1)
        self.memory[i] = (Pieces(pieces.starts[varies], pieces.ends[varies], amounts[varies]),) if varies.any() else ()

    def _weight(self, i: int) -> int:
        return len(self.tables[i]) * len(self.costs(i)) if self.unary[i] is not None else 0


def network(problem: Problem, limit: float | None) -> Network:
    """A problem as a network, its times compressed; without a limit nothing is kept.

    Raises:
        ContradictionError: the limit is below 0.

    """
    if limit is not None and limit < 0:
        raise ContradictionError
    usages = [tuple(u for u in usages if u.end > u.start) for usages in problem.usages] if limit is not None else []
    times = kept_times([u.start for row in usages for u in row], [u.end for row in usages for u in row])
    made = Network(
        unary=list(problem.costs),
        tables=[{} for _ in problem.costs],
        memory=[() for _ in problem.costs],
        held=np.zeros(len(times)),
        limit=np.inf if limit is None else limit,
    )
    for i, row in enumerate(usages):
        if row:
            starts, ends = (
                np.searchsorted(times, points) for points in zip(*((u.start, u.end) for u in row), strict=True)
            )
            made.memory[i] = (Pieces(starts, ends, np.stack([u.amounts for u in row])),)
    add_edges(made, problem.edges, problem.edge_costs)
    for i in range(problem.num_nodes):
        if made.memory[i]:
            made._keep(i, combine(made.memory[i]))
        made.touch(i)
    return made


def add_edges(made: Network, edges: Sequence[tuple[int, int]], tables: Iterable[Costs]) -> None:
    """Write edges into a network, parallel ones as one, loops as node costs."""
    merged: dict[tuple[int, int], Costs] = {}
    for (i, j), table in zip(edges, tables, strict=True):
        if i == j:
            made.add_cost(i, np.diagonal(table))
            continue
        key, oriented = ((i, j), table) if i < j else ((j, i), table.T)
        merged[key] = merged[key] + oriented if key in merged else oriented
    for (i, j), table in merged.items():
        made.set_table(i, j, table)


def edges_of(net: Network) -> Iterator[tuple[int, int, Costs]]:
    """Every edge once."""
    for i, row in enumerate(net.tables):
        for j, table in row.items():
            if i < j:
                yield i, j, table


def cost_of(net: Network, choice: Mapping[int, int]) -> float:
    """Total cost of a choice over the nodes that are left."""
    nodes = sum(float(net.costs(i)[choice[i]]) for i in net.nodes)
    return net.constant + nodes + sum(float(table[choice[i], choice[j]]) for i, j, table in edges_of(net))


def held_by(net: Network, choice: Mapping[int, int]) -> Profile:
    """What is held per time point under a choice."""
    live = [(pieces, choice[i]) for i in net.nodes if (pieces := net.pieces(i)) is not None]
    if not live:
        return net.held
    starts, ends = (np.concatenate([pieces[side] for pieces, _ in live]) for side in (0, 1))
    return net.held + profile(len(net.held), starts, ends, np.concatenate([p.amounts[:, u] for p, u in live]))


def fits(net: Network, choice: Mapping[int, int]) -> bool:
    """Whether a choice keeps within the limit."""
    held = held_by(net, choice)
    return len(held) == 0 or bool(held.max() <= net.limit)
