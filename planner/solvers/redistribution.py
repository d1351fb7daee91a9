"""What it costs to take a tensor from one layout to another: the cheapest sequence of moves, forward and backward.

Layouts are the nodes of a graph and the moves of `planner.layouts.redistribution` its edges. A move costs what
`costmodels.communication` says for its collective over the axis's group, with the bytes that a device holds at that
moment, so the order of moves counts: to gather after another axis has sliced moves less. The price is the shortest path
by ``forward_weight * forward_s + backward_weight * backward_s``; forward and backward are the seconds of that one path,
for the backward pass undoes what the forward pass did.

**Which layouts a path may visit**: all in which every axis has ``R``, ``S`` of a dim that it divides, or a placement
that it has in one of the layouts asked for (as `absolute` writes them). Over that set the price is exact. ``B``, ``P``
and chunks stand there only where a layout asked for has them, since little is gained by them on the way.

**Bytes** are those of padded shards (`local_shape`). Local work is free: slices, zeros and reordering are bound by the
device's own memory, which is an order of magnitude faster than its links. Moves over several axes at once are not
considered, so an all-reduce over two axes is one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from costmodels import communication
from hardware_profiles.cluster import Group
from planner.layouts.placements import REPLICATE, Layout, Placement, Shape, local_shape, shard
from planner.layouts.redistribution import Collective, Move, absolute, collectives

Seconds = NDArray[np.float64]
Indices = NDArray[np.int_]
Nodes = NDArray[np.int32]

_PRICES: dict[Collective, Callable[[Group, float], float]] = {
    "all_gather": communication.all_gather_s,
    "reduce_scatter": communication.reduce_scatter_s,
    "all_reduce": communication.all_reduce_s,
    "all_to_all": communication.all_to_all_s,
}
_NAMES: tuple[Collective, ...] = ("local", *_PRICES)
_SHARD = 0
_KINDS = tuple(Placement(kind) for kind in ("S", "R", "B", "P"))
_FORWARD, _BACKWARD = np.array([[[_NAMES.index(c) for c in collectives(a, b)] for b in _KINDS] for a in _KINDS]).T
"""Index into `_NAMES` by kind of target and source."""
_TIE_S = 1e-13
"""Added to each move, so that of equal paths the one with fewer moves is found."""


@dataclass(frozen=True, slots=True)
class Tensor:
    shape: Shape
    """Of the whole tensor."""
    element_bytes: float
    """Of the value."""
    gradient_bytes: float | None = None
    """Of an element of its gradient, as it is communicated: as many where ``None``, 0 where there is no gradient and so
    nothing to do backward."""


@dataclass(frozen=True, slots=True)
class Step:
    """One move of a path with its price."""

    move: Move
    num_bytes: float
    """Of the value, as the functions of `costmodels.communication` count: the whole over the axis of a gather or
    scatter, else what a device holds."""
    forward_s: float
    backward_s: float


class _Edges(NamedTuple):
    """Moves, one entry each: indices of layouts and into `_NAMES`, bytes and seconds."""

    axis: Indices
    start: Indices
    end: Indices
    forward: Indices
    backward: Indices
    num_bytes: Seconds
    forward_s: Seconds
    backward_s: Seconds


@dataclass(frozen=True, eq=False)
class _Graph:
    layouts: tuple[Layout, ...]
    node: dict[Layout, int]
    """Index of a layout."""
    edges: _Edges
    keys: Indices
    """``start * len(layouts) + end`` of every edge, ascending."""

    def between(self, start: Indices, end: Indices) -> Indices:
        """Indices of the edges from some nodes to others, which must exist."""
        return np.searchsorted(self.keys, start * len(self.layouts) + end)

    def step(self, start: int, end: int) -> Step:
        """A move in words."""
        [i], edges = self.between(np.array([start]), np.array([end])), self.edges
        forward, backward = _NAMES[edges.forward[i]], _NAMES[edges.backward[i]]
        move = Move(int(edges.axis[i]), self.layouts[start], self.layouts[end], forward, backward)
        return Step(move, float(edges.num_bytes[i]), float(edges.forward_s[i]), float(edges.backward_s[i]))


@dataclass(frozen=True, eq=False)
class Table:
    """Prices from each source to each target, of shape ``[len(sources), len(targets)]``; infinite where no way leads.

    None leads to or from a layout that `absolute` does not know, other than from itself to itself.
    """

    forward_s: Seconds
    backward_s: Seconds
    cost_s: Seconds
    """Both, weighted: what is least."""
    _graph: _Graph = field(repr=False)
    _predecessors: Nodes = field(repr=False)
    """Node before a node on the way from a source: ``[len(sources), number of nodes]``, negative at the source."""
    _targets: Indices = field(repr=False)
    """Nodes; negative for a layout that `absolute` does not know."""

    def path(self, source: int, target: int) -> tuple[Step, ...]:
        """The moves from ``sources[source]`` to ``targets[target]``, none where both are the same.

        Raises:
            ValueError: there is no way.
        """
        if not np.isfinite(self.forward_s[source, target]):
            raise ValueError(f"no sequence of moves leads from source {source} to target {target}")
        steps: list[Step] = []
        node = int(self._targets[target])
        while node >= 0 and (previous := int(self._predecessors[source, node])) >= 0:
            steps.append(self._graph.step(previous, node))
            node = previous
        return tuple(reversed(steps))


@dataclass(frozen=True, eq=False)
class Redistributor:
    """Prices on one mesh; remembers what it has priced."""

    groups: tuple[Group, ...]
    """Per mesh axis, outer to inner; at least one."""
    forward_weight: float = 1.0
    backward_weight: float = 1.0
    """How often each pass runs: what the best path is the best of."""
    _prices: dict[tuple[int, Collective, float], float] = field(default_factory=dict, init=False, repr=False)
    _graphs: dict[tuple[Tensor, tuple[tuple[Placement, ...], ...]], _Graph] = field(
        default_factory=dict, init=False, repr=False
    )
    _tables: dict[tuple[Tensor, tuple[Layout, ...], tuple[Layout, ...]], Table] = field(
        default_factory=dict, init=False, repr=False
    )

    def table(self, tensor: Tensor, sources: Sequence[Layout], targets: Sequence[Layout]) -> Table:
        """Prices of every source to every target, in seconds; their paths visit what the module's text says."""
        key = (tensor, tuple(sources), tuple(targets))
        if key not in self._tables:
            self._tables[key] = self._make(*key)
        return self._tables[key]

    def path(self, tensor: Tensor, source: Layout, target: Layout) -> tuple[Step, ...]:
        """The best path where only these two layouts are asked for."""
        return self.table(tensor, (source,), (target,)).path(0, 0)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(group.size for group in self.groups)

    def _make(self, tensor: Tensor, sources: tuple[Layout, ...], targets: tuple[Layout, ...]) -> Table:
        known = {layout: absolute(layout, tensor.shape, self._sizes) for layout in {*sources, *targets}}
        placements = [
            {REPLICATE, *(shard(dim) for dim, length in enumerate(tensor.shape) if length % size == 0 and size > 1)}
            for size in self._sizes
        ]
        for layout in filter(None, known.values()):
            for choices, placement in zip(placements, layout, strict=True):
                choices.add(placement)
        asked = (tensor, tuple(tuple(sorted(choices)) for choices in placements))
        if asked not in self._graphs:
            self._graphs[asked] = self._make_graph(*asked)
        graph = self._graphs[asked]
        start, end = (
            np.array([graph.node.get(known[x] or (), -1) for x in ask], np.int_) for ask in (sources, targets)
        )

        edges, num_nodes = graph.edges, len(graph.layouts)
        cost = self.forward_weight * edges.forward_s + self.backward_weight * edges.backward_s + _TIE_S
        costs = csr_array((cost, (edges.start, edges.end)), (num_nodes, num_nodes))
        different, row = np.unique(np.maximum(start, 0), return_inverse=True)
        predecessors = dijkstra(costs, indices=different, return_predecessors=True)[1][row]
        forward_s, backward_s = _along(predecessors, start, end, graph)
        for unknown in (layout for layout, found in known.items() if found is None):
            itself = np.ix_([x == unknown for x in sources], [x == unknown for x in targets])
            forward_s[itself] = backward_s[itself] = 0.0
        cost_s, finite = np.full_like(forward_s, np.inf), np.isfinite(forward_s)
        cost_s[finite] = self.forward_weight * forward_s[finite] + self.backward_weight * backward_s[finite]
        for prices in (forward_s, backward_s, cost_s):
            prices.setflags(write=False)  # what is remembered is shared
        return Table(forward_s, backward_s, cost_s, graph, predecessors, end)

    def _make_graph(self, tensor: Tensor, placements: tuple[tuple[Placement, ...], ...]) -> _Graph:
        """The layouts that take one placement per axis, and all moves between them.

        A layout's code is its rank among all products of placements: a move of one axis adds multiples of its stride.
        """
        sizes, counts = self._sizes, [len(choices) for choices in placements]
        products = list(product(*placements))
        exists = np.array([absolute(layout, tensor.shape, sizes) == layout for layout in products])
        codes, node = np.flatnonzero(exists), np.where(exists, np.cumsum(exists) - 1, -1)
        layouts = tuple(products[code] for code in codes)
        held = tensor.element_bytes * np.array([prod(local_shape(tensor.shape, x, sizes)) for x in layouts], float)

        found: list[_Edges] = []
        for axis, (choices, size) in enumerate(zip(placements, sizes, strict=True)):
            stride, choice = prod(counts[axis + 1 :]), np.arange(counts[axis])
            own = codes // stride % counts[axis]
            ends = node[codes[:, None] + (choice - own[:, None]) * stride]
            start, to = np.nonzero((ends >= 0) & (choice != own[:, None]))
            end = ends[start, to]
            kinds = np.array([_KINDS.index(Placement(placement.kind)) for placement in choices])
            before, after = kinds[own[start]], kinds[to]
            forward, backward = _FORWARD[after, before], _BACKWARD[after, before]
            if tensor.gradient_bytes == 0:
                backward = np.zeros_like(backward)
            gathered = (before == _SHARD) != (after == _SHARD)
            low, high = np.minimum(held[start], held[end]), np.maximum(held[start], held[end])
            num_bytes = np.where(gathered, size * low, high)
            gradient = 1.0 if tensor.gradient_bytes is None else tensor.gradient_bytes / tensor.element_bytes
            forward_s = self._seconds(axis, forward, num_bytes)
            backward_s = self._seconds(axis, backward, gradient * num_bytes)
            axes = np.full_like(start, axis)
            found.append(_Edges(axes, start, end, forward, backward, num_bytes, forward_s, backward_s))

        edges = _Edges(*map(np.concatenate, zip(*found, strict=True)))
        keys = edges.start * len(layouts) + edges.end
        order = np.argsort(keys)
        ordered = _Edges._make(column[order] for column in edges)
        return _Graph(layouts, {layout: i for i, layout in enumerate(layouts)}, ordered, keys[order])

    def _seconds(self, axis: int, collective: Indices, num_bytes: Seconds) -> Seconds:
        """Seconds of many collectives over one axis, each different one priced once."""
        seconds = np.zeros(num_bytes.shape)
        for index, name in enumerate(_NAMES[1:], 1):
            for size in np.unique(num_bytes[collective == index]).tolist():
                if (axis, name, size) not in self._prices:
                    self._prices[axis, name, size] = _PRICES[name](self.groups[axis], size)
                seconds[(collective == index) & (num_bytes == size)] = self._prices[axis, name, size]
        return seconds


def _along(predecessors: Nodes, start: Indices, end: Indices, graph: _Graph) -> tuple[Seconds, Seconds]:
    """Sums of the forward and of the backward seconds on the way to every end: follows all predecessors at once."""
    rows = np.arange(len(start))[:, None]
    at = np.broadcast_to(end, (len(start), len(end)))
    forward_s, backward_s = np.zeros(at.shape), np.zeros(at.shape)
    while (moved := (before := predecessors[rows, at]) >= 0).any():
        crossed = graph.between(before[moved].astype(np.int_), at[moved])
        forward_s[moved] += graph.edges.forward_s[crossed]
        backward_s[moved] += graph.edges.backward_s[crossed]
        at = np.where(moved, before, at)
    nowhere = (at != start[:, None]) | (start[:, None] < 0) | (end < 0)
    forward_s[nowhere] = backward_s[nowhere] = np.inf
    return forward_s, backward_s
