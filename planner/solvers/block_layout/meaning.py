"""What a plan settles of the operations of a block, before the rest is found at least cost.

Over ``tp`` an operation is sharded along what tensor parallelism divides, and beside it along the sequence under
sequence parallelism. Over ``cp`` everything that computes is sharded along the sequence, but for attention: it gathers
keys (``context_all_gather``), passes them round (``ring``), or has whole sequences of some heads (Ulysses). Experts
that ``ep`` divides see the tokens of their own rank; their weights are no axis's of these. Where to compute more, or
to hold more, would save latency, it is not done: what is held is priced as divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner import ops
from planner.layouts.placements import Layout, Placement, shard
from planner.layouts.strategies import OpNode
from planner.layouts.tensor_parallel import TensorParallel
from planner.plan import Candidate, OperationLayout
from planner.solvers.block_layout.records import layout_text
from planner.solvers.block_layout.strategies import Strategy, placed
from planner.solvers.block_layout.values import Between, BlockValues

HEADS = 1
"""Dim of queries, keys and values of fused attention."""

RING, ULYSSES = "cp_ring", "cp_ulysses"
"""Mesh axes that ``cp`` falls into where attention passes keys round among those that have exchanged heads."""


def mesh_axes(candidate: Candidate) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and sizes of the axes that operations are laid out over, outer to inner."""
    if candidate.cp == 1:
        return ("tp",), (candidate.tp,)
    if candidate.context == "ulysses_ring":
        return (RING, ULYSSES, "tp"), (candidate.cp // candidate.ulysses, candidate.ulysses, candidate.tp)
    return ("cp", "tp"), (candidate.cp, candidate.tp)


@dataclass(frozen=True)
class Meaning:
    """`planner.solvers.block_layout.problem.Settled` of one block, under a candidate."""

    candidate: Candidate
    layout: TensorParallel
    recorded: Mapping[tuple[int, ...], OperationLayout]
    """By the operations of a node: what the plan says of it; nothing where the plan says nothing."""

    @property
    def axes(self) -> tuple[str, ...]:
        return mesh_axes(self.candidate)[0]

    @property
    def between(self) -> Sequence[Between]:
        along_tp: Between = "sequence" if self._sequence_parallel else "whole"
        return tuple(along_tp if axis == "tp" else "sequence" for axis in self.axes)

    @property
    def chunks(self) -> frozenset[int]:
        return frozenset(param.num_chunks for param in self.layout.params.values())

    @property
    def _sequence_parallel(self) -> bool:
        return self.candidate.sequence_parallel and self.candidate.tp > 1

    def choose(self, values: BlockValues, op: OpNode, offered: Sequence[Strategy]) -> Sequence[Strategy]:
        names = {values.block.ops[i].name for i in op.ops}
        if names & ops.GROUPED and self.candidate.ep > 1:
            return [strategy for strategy in offered if self._own_tokens(values, op, strategy)]
        attends = bool(names & ops.ATTENTION)
        if attends:
            offered = [*offered, *self._heads_inside(offered)]
        found = [s for s in offered if self._allows(values, op, s, attends=attends)]
        if self._between_regions(values, op):
            found = [s for s in found if s.outputs[0][-1].kind == "S"] or found
        if not names & ops.COPIES and values.differentiable.intersection(op.outputs):
            found = [s for s in found if all(option.factor is not None for option in s.options[:-1])] or found
        if "nll_loss_forward" in names and self.layout.loss_rows is not None:
            found = [s for s in found if s.options[-1].implementation == "loss_parallel"] or found
        said = self.recorded.get(op.ops)
        return found if said is None else [s for s in found if _texts(s) == (said.inputs, said.outputs)]

    def _allows(self, values: BlockValues, op: OpNode, strategy: Strategy, *, attends: bool) -> bool:
        for a, axis in enumerate(self.axes):
            places = [(v, layout[a]) for v, layout in placed(op, strategy) if layout[a].kind == "S"]
            if axis != "tp" and attends:
                if not self._attends(axis, strategy.options[a].implementation, strategy.inputs[0][a]):
                    return False
            elif axis != "tp":
                if any(values.along(v, place) != "sequence" for v, place in places):
                    return False
            elif not all(
                kind == "sequence" and self._sequence_parallel
                if (kind := values.along(v, place)) != "width"
                else self.layout.shard_dim[v] == place.dim
                for v, place in places
            ):
                return False
        return True

    def _between_regions(self, values: BlockValues, op: OpNode) -> bool:
        """Whether it acts on activations that sequence parallelism divides, though to reduce, repeat and not gather
        would communicate as much."""
        first = values.block.ops[op.ops[0]]
        return (
            self._sequence_parallel
            and len(op.ops) == 1
            and op.ops[0] not in self.layout.sharded_ops
            and (first.pointwise or "norm" in first.name)
            and bool(values.differentiable.intersection(op.outputs))
            and self.layout.sequence_dim[op.outputs[0]] is not None
        )

    def _attends(self, axis: str, implementation: str, queries: Placement) -> bool:
        match self.candidate.context if axis == "cp" else axis:
            case "all_gather":
                return implementation == "context_all_gather"
            case "ring" | "cp_ring":
                return implementation == "ring"
            case _:
                return implementation == "local" and (queries.kind, queries.dim) == ("S", HEADS)

    def _own_tokens(self, values: BlockValues, op: OpNode, strategy: Strategy) -> bool:
        """Whether every rank has tokens of its own and nothing is known of the weights."""
        for a, size in enumerate(values.mesh.sizes):
            places = [(v, layout[a]) for v, layout in placed(op, strategy)]
            if strategy.options[a].implementation != "local" or (
                size > 1 and not any(p.kind == "S" and values.along(v, p) == "sequence" for v, p in places)
            ):
                return False
            if any(p.kind == "S" and values.along(v, p) != "sequence" for v, p in places):
                return False
        return True

    def _heads_inside(self, offered: Sequence[Strategy]) -> Iterator[Strategy]:
        """Where ``cp`` and ``tp`` divide the same heads: ``tp`` first, for the products before have done so."""
        tp = self.candidate.tp
        for strategy in offered:
            for a, (axis, option) in enumerate(zip(self.axes, strategy.options, strict=True)):
                same = option.factor is not None and option.factor == strategy.options[-1].factor
                if axis in ("cp", ULYSSES) and tp > 1 and same and option.implementation == "local":
                    yield replace(
                        strategy,
                        inputs=tuple(_within(layout, a, tp) for layout in strategy.inputs),
                        outputs=tuple(_within(layout, a, tp) for layout in strategy.outputs),
                    )


def _within(layout: Layout, axis: int, size: int) -> Layout:
    place = layout[axis]
    if place.kind != "S":
        return layout
    return (*layout[:axis], shard(place.dim, place.chunks * size), *layout[axis + 1 :])


def _texts(strategy: Strategy) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(map(layout_text, strategy.inputs)), tuple(map(layout_text, strategy.outputs))
