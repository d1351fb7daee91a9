"""One block as a choice problem: a strategy per operation, a layout per parameter, a price on every edge.

Nodes:

- *operation*: its strategies (`planner.solvers.block_layout.strategies`), seconds of its kernels forward and backward;
- *parameter*: how it lies at rest, ``R`` or ``S(d)`` on each axis; seconds of its optimizer step;
- *meeting*: the layout in which a value that several operations read is brought to all of them. It is redistributed
  once, and its gradients are added up before they go back;
- *entry* and *exit*: the layout of the activations at the block's borders.

Edges join who makes a value to who reads it: seconds of redistribution, forward and backward
(`planner.solvers.redistribution`). A parameter's gather is paid twice: it is gathered again for the backward pass. What
comes from outside without a gradient (labels, masks, rotary angles) is there in any layout.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Protocol

import numpy as np

from planner.layouts.pins import BlockPins
from planner.layouts.placements import REPLICATE, Layout, shard
from planner.layouts.strategies import OpNode, block_nodes
from planner.solvers.block_layout.choices import Choice, Edge
from planner.solvers.block_layout.lifetimes import usages
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.node_seconds import NodeSeconds
from planner.solvers.block_layout.strategies import Strategy, placed, strategies
from planner.solvers.block_layout.values import Between, BlockValues
from planner.solvers.intra_op.problem import Costs, Problem
from planner.solvers.setting import Setting


@dataclass(frozen=True, eq=False)
class BlockProblem:
    """The problem, and what its nodes stand for."""

    values: BlockValues
    problem: Problem
    choices: tuple[Choice, ...]
    edges: tuple[Edge, ...]
    """Per edge of ``problem``."""
    seconds: tuple[Costs, ...]
    """Per node ``[2, strategies]``: forward and backward."""
    turn: int
    """Time point between the forward and the backward pass."""

    @property
    def entry(self) -> int | None:
        """Node of the layout at the block's entry; ``None`` where nothing enters."""
        return next((i for i, choice in enumerate(self.choices) if choice.kind == "entry"), None)

    @property
    def exit(self) -> int:
        return next(i for i, choice in enumerate(self.choices) if choice.kind == "exit")

    @cached_property
    def held(self) -> tuple[Costs, ...]:
        """Per node and strategy: bytes that live between the forward and the backward pass."""
        return tuple(
            sum((u.amounts for u in kept if u.start <= self.turn < u.end), np.zeros_like(costs))
            for kept, costs in zip(self.problem.usages, self.problem.costs, strict=True)
        )


def block_problem(
    setting: Setting,
    block: int,
    mesh: LayoutMesh,
    *,
    batch: int,
    pins: BlockPins | None = None,
    settled: Settled | None = None,
) -> BlockProblem:
    """Build the problem of one distinct block.

    Args:
        batch: samples of one forward and backward pass over all devices of the mesh.
        pins: by relative FQN of a parameter, its placement on axes of the mesh.
        settled: what is decided already; without it, all is free.
    """
    return _Builder(BlockValues(setting, block, batch, mesh), pins or {}, settled).build()


class Settled(Protocol):
    """What is decided of a block before its problem is solved. No parameter is gathered then."""

    @property
    def between(self) -> Sequence[Between]:
        """Per axis, how activations lie between blocks."""

    @property
    def chunks(self) -> Set[int]:
        """Numbers of parts that sharded parameters hold one after another."""

    def choose(self, values: BlockValues, op: OpNode, offered: Sequence[Strategy]) -> Sequence[Strategy]:
        """Those that remain of the strategies of an operation."""


@dataclass
class _Builder:
    values: BlockValues
    pins: BlockPins
    settled: Settled | None
    choices: list[Choice] = field(default_factory=list)
    seconds: list[Costs] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    edge_costs: list[Costs] = field(default_factory=list)

    @cached_property
    def prices(self) -> NodeSeconds:
        return NodeSeconds(self.values)

    def build(self) -> BlockProblem:
        values, block, sizes = self.values, self.values.block, self.values.mesh.sizes
        free: list[Between] = ["any"] * len(sizes)
        chunks = self.settled.chunks if self.settled else frozenset[int]()
        border = values.borders(self.settled.between if self.settled else free)
        source: dict[int, tuple[int, Sequence[Layout]]] = {}
        if block.inputs:
            entry = self._add(Choice("entry", layouts=border))
            source.update((v, (entry, values.on(border, v))) for v in block.inputs)
        readers: dict[int, list[tuple[int, Sequence[Layout]]]] = {}
        for op in block_nodes(block, values.shapes, values.trained):
            chosen, seconds = self._distinct(op, self._allowed(op, strategies(block, op, sizes, chunks)))
            node = self._add(Choice("op", op=op, strategies=tuple(chosen)), seconds)
            for k, v in enumerate(op.inputs):
                readers.setdefault(v, []).append((node, [s.inputs[k] for s in chosen]))
            for k, v in enumerate(op.outputs):
                source[v] = node, [s.outputs[k] for s in chosen]
        for fqn, v in block.params:
            if v in readers:
                layouts = self._param_layouts(v, fqn, readers[v])
                update_s = np.array([self.prices.of_update(v, layout) for layout in layouts])
                node = self._add(Choice("param", layouts=layouts, value=v, fqn=fqn), np.array([0 * update_s, update_s]))
                source[v] = node, layouts
        ends = border if any(values.shapes[v] for v in block.outputs) else (values.whole,)
        leave = self._add(Choice("exit", layouts=ends))
        for v in block.outputs:
            readers.setdefault(v, []).append((leave, values.on(ends, v)))
        for v, reading in readers.items():
            if v in source:
                self._join(v, source[v], reading)
        turn = len(block.ops)
        return BlockProblem(
            values=values,
            problem=Problem(
                costs=tuple(seconds.sum(axis=0) for seconds in self.seconds),
                edges=tuple(self.pairs),
                edge_costs=tuple(self.edge_costs),
                usages=usages(values, self.choices, self.pairs, self.edges, turn=turn),
            ),
            choices=tuple(self.choices),
            edges=tuple(self.edges),
            seconds=tuple(self.seconds),
            turn=turn,
        )

    # --- nodes -----------------------------------------------------------------------------------------------------

    def _add(self, choice: Choice, seconds: Costs | None = None) -> int:
        self.choices.append(choice)
        self.seconds.append(np.zeros((2, len(choice.layouts))) if seconds is None else seconds)
        return len(self.choices) - 1

    def _distinct(self, op: OpNode, chosen: Sequence[Strategy]) -> tuple[list[Strategy], Costs]:
        """The fastest of the strategies that differ in arguments from outside alone, which are there in any layout."""
        seconds = self.prices.of_op(op, chosen)
        inside = [v in self.values.inside for v in op.inputs]
        best: dict[tuple[object, ...], int] = {}
        for i, strategy in enumerate(chosen):
            key = tuple(x for x, counts in zip(strategy.inputs, inside, strict=True) if counts), strategy.outputs
            if key not in best or seconds[:, i].sum() < seconds[:, best[key]].sum():
                best[key] = i
        kept = sorted(best.values())
        return [chosen[i] for i in kept], seconds[:, kept]

    def _allowed(self, op: OpNode, offered: Sequence[Strategy]) -> list[Strategy]:
        """Those whose axes do not cut across each other, and of them what is settled."""
        chosen = self.settled.choose(self.values, op, offered) if self.settled else offered
        return [
            strategy for strategy in chosen if all(self.values.known(v, layout) for v, layout in placed(op, strategy))
        ]

    def _param_layouts(self, v: int, fqn: str, readers: Sequence[tuple[int, Sequence[Layout]]]) -> tuple[Layout, ...]:
        """``R`` or ``S(d)`` of any dim on each axis, and the chunked shards that a reader may want."""
        shape, pinned = self.values.shapes[v], self.pins.get(fqn, {})
        wanted = {p for _, layouts in readers for layout in layouts for p in layout if p.kind == "S"}
        offered = sorted({REPLICATE, *wanted, *(shard(d) for d in range(len(shape)))})
        per_axis = [
            [pinned[name]] if name in pinned else [p for p in offered if p.kind == "R" or shape[p.dim] >= size]
            for name, size in zip(self.values.mesh.axes, self.values.mesh.sizes, strict=True)
        ]
        return tuple(product(*per_axis))

    # --- edges -----------------------------------------------------------------------------------------------------

    def _join(
        self, v: int, source: tuple[int, Sequence[Layout]], readers: Sequence[tuple[int, Sequence[Layout]]]
    ) -> None:
        if len(readers) > 1:
            layouts = tuple(sorted({layout for _, wanted in readers for layout in wanted}))
            meeting = self._add(Choice("meeting", layouts=layouts, value=v))
            self._edge(v, source, (meeting, layouts))
            source = meeting, layouts
        for reader in readers:
            self._edge(v, source, reader)

    def _edge(self, v: int, source: tuple[int, Sequence[Layout]], target: tuple[int, Sequence[Layout]]) -> None:
        (i, have), (j, want) = source, target
        weight = v in self.values.weights
        seconds = self.values.mesh.moving_s(
            self.values.tensor(v), have, want, parameter=weight, stays=weight and self.settled is not None
        )
        self.pairs.append((i, j))
        self.edge_costs.append(seconds)
        self.edges.append(Edge(v, have, want))
