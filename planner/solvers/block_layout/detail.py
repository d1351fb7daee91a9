"""What a solved block does, operation by operation: layouts, seconds, and what is redistributed in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planner.layouts.placements import Layout
from planner.solvers.block_layout.mesh import GATHERS, LayoutMesh
from planner.solvers.block_layout.model_layout import PlacedSegment
from planner.solvers.redistribution import Step


@dataclass(frozen=True)
class Redistributed:
    """A value that its reader wants laid out otherwise than it was made."""

    value: int
    source: Layout
    target: Layout
    steps: tuple[Step, ...]
    """Collectives in order, with bytes and seconds forward and backward."""
    gathers: int
    """Times that the forward part runs."""

    @property
    def seconds(self) -> tuple[float, float]:
        """Forward and backward."""
        return self.gathers * sum(s.forward_s for s in self.steps), sum(s.backward_s for s in self.steps)


@dataclass(frozen=True)
class PlacedOp:
    """One operation (or a few laid out together) under its strategy."""

    ops: tuple[int, ...]
    """Indices into the block's operations."""
    inputs: tuple[tuple[int, Layout], ...]
    """(value, layout)."""
    outputs: tuple[tuple[int, Layout], ...]
    implementations: tuple[str, ...]
    """Per mesh axis."""
    forward_s: float
    backward_s: float
    redistributed: tuple[Redistributed, ...]
    """What is redistributed for it, or for it first of several readers."""


@dataclass(frozen=True)
class Detail:
    """A solved segment."""

    ops: tuple[PlacedOp, ...]
    """In execution order."""
    leaving: tuple[Redistributed, ...]
    """What is redistributed at the block's exit."""
    params: Mapping[str, Layout]
    """How every parameter lies at rest, by relative FQN."""
    entering: Mapping[int, Layout]
    """How activations from earlier blocks arrive, by value."""
    exiting: Mapping[int, Layout]
    """How activations for later blocks are left, by value."""
    update_s: float
    """The optimizer's step on a device's share of the parameters."""

    @property
    def seconds(self) -> float:
        """All of it: the segment's cost."""
        moved = [r for op in self.ops for r in op.redistributed] + list(self.leaving)
        return self.update_s + sum(op.forward_s + op.backward_s for op in self.ops) + sum(sum(r.seconds) for r in moved)


def detail(segment: PlacedSegment, mesh: LayoutMesh) -> Detail:
    """A solved segment, operation by operation. What several operations read is listed with the first of them."""
    problem, chosen = segment.problem, segment.choice
    arriving: dict[int, list[Redistributed]] = {}
    for (i, j), edge in zip(problem.problem.edges, problem.edges, strict=True):
        at = chosen[i], chosen[j]
        source, target = edge.have[at[0]], edge.want[at[1]]
        if source != target:
            parameter = edge.value in problem.values.weights
            steps = mesh.path(problem.values.tensor(edge.value), edge.have, edge.want, at, parameter=parameter)
            moved = Redistributed(edge.value, source, target, steps, GATHERS if parameter else 1)
            arriving.setdefault(j, []).append(moved)
    for i, j in problem.problem.edges:
        if problem.choices[i].kind == "meeting":
            arriving[j] = arriving.pop(i, []) + arriving.get(j, [])
    placed = []
    update_s = 0.0
    for n, (choice, s) in enumerate(zip(problem.choices, chosen, strict=True)):
        forward_s, backward_s = (float(x) for x in problem.seconds[n][:, s])
        if choice.kind == "param":
            update_s += backward_s
        if choice.op is None:
            continue
        strategy = choice.strategies[s]
        placed.append(
            PlacedOp(
                ops=choice.op.ops,
                inputs=tuple(zip(choice.op.inputs, strategy.inputs, strict=True)),
                outputs=tuple(zip(choice.op.outputs, strategy.outputs, strict=True)),
                implementations=tuple(option.implementation for option in strategy.options),
                forward_s=forward_s,
                backward_s=backward_s,
                redistributed=tuple(arriving.get(n, ())),
            )
        )
    return Detail(
        ops=tuple(placed),
        leaving=tuple(arriving.get(problem.exit, ())),
        params={c.fqn: c.layouts[s] for c, s in zip(problem.choices, chosen, strict=True) if c.kind == "param"},
        entering=_at_border(segment, problem.entry, 0),
        exiting=_at_border(segment, problem.exit, 1),
        update_s=update_s,
    )


def _at_border(segment: PlacedSegment, node: int | None, end: int) -> dict[int, Layout]:
    """Layouts of what crosses a border of the block: edges begin at its entry and end at its exit."""
    problem, found = segment.problem, {}
    for pair, edge in zip(problem.problem.edges, problem.edges, strict=True):
        if node is not None and pair[end] == node:
            found[edge.value] = (edge.want if end else edge.have)[segment.choice[node]]
    return found
