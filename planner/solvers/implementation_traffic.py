"""What ranks tell each other inside of an operation, by the name of its implementation: collective by collective.

The runtime does exactly this (`planner.runtime.implementations`). Statistics travel as float32, or float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from costmodels.compute import DTYPE_BYTES
from planner import ops as families
from planner.graph import Block, Op, Phase, Ref
from planner.layouts.borders import Rows, border, window
from planner.layouts.cuts import held_indices, held_shape
from planner.layouts.dispatch import expert_ops
from planner.layouts.placements import Layout, Shape
from planner.layouts.redistribution import Collective
from planner.layouts.rules.arguments import ints_at
from planner.solvers.block_layout.detail import PlacedOp


class Told(NamedTuple):
    """One collective inside of an operation, as one rank issues it."""

    phase: Phase
    axis: int
    """Of the mesh; `EXPERTS` for the ranks that divide a layer's experts, where these are no axis of it."""
    kind: Collective
    num_bytes: int
    """Of what goes in."""


EXPERTS = -1
COUNT_BYTES = DTYPE_BYTES["int64"]
"""Of the number of rows that go to an expert."""


@dataclass(frozen=True)
class Node:
    """Operations of a block under their layouts, on the rank at the beginning of every axis."""

    block: Block
    shapes: Sequence[Shape]
    """Of the block's values, whole."""
    sizes: tuple[int, ...]
    """Of the mesh axes."""
    placed: PlacedOp
    differentiable: Set[int]
    """Values that have a gradient."""
    holders: tuple[tuple[int, ...], ...] = ()
    """Per expert the ranks that hold it, where the plan says."""
    ep: int = 1

    @cached_property
    def ops(self) -> list[Op]:
        return [self.block.ops[i] for i in self.placed.ops]

    @cached_property
    def layouts(self) -> dict[int, Layout]:
        return dict((*self.placed.inputs, *self.placed.outputs))

    def local(self, v: int) -> Shape:
        if v not in self.layouts:
            return self.shapes[v]
        return held_shape(self.layouts[v], self.shapes[v], self.sizes, (0,) * len(self.sizes))

    def element_bytes(self, v: int) -> int:
        return int(DTYPE_BYTES[self.block.values[v].dtype])

    def exact_bytes(self, v: int) -> int:
        """Of an element's sums."""
        return max(int(DTYPE_BYTES["float32"]), self.element_bytes(v))

    def axes(self, name: str) -> list[int]:
        """Axes that run an implementation."""
        return [i for i, found in enumerate(self.placed.implementations) if found == name and self.sizes[i] > 1]


def told(node: Node) -> Iterator[Told]:
    """Everything that a rank tells others inside of a node in one pass forward and back."""
    if any(op.name in families.GROUPED for op in node.ops) and len(node.ops) > 1:
        yield from _dispatch(node)
    elif node.ops[-1].name == "nll_loss_forward":
        yield from _loss(node)
    for name, tell in (("statistics", _statistics), ("sync", _sync), ("ring", _ring), ("halo", _halo)):
        for axis in node.axes(name):
            yield from tell(node, axis)


def _loss(node: Node) -> Iterator[Told]:
    """Over classes: largest logit, sum of exponentials and the target's logit of each row, and its weight where classes
    have some; over rows: the weight of those that count."""
    logits, loss = node.ops[0].inputs[0], node.ops[-1]
    size = node.exact_bytes(logits)
    rows = prod(node.local(logits)[:-1])
    each = (3 if node.ops[0].name == "_log_softmax" else 1) + isinstance(loss.args[2], Ref)
    for axis in node.axes("loss_parallel"):
        yield from [Told("forward", axis, "all_reduce", rows * size)] * each
    for axis in node.axes("mean_count"):
        yield Told("forward", axis, "all_reduce", size)


def _statistics(node: Node, axis: int) -> Iterator[Told]:
    """Of each row: largest element and sum (softmax), squares (RMS), sum and squares (layer and group norm)."""
    (op,), x = node.ops, node.ops[0].inputs[0]
    shape = node.local(x)
    if "softmax" in op.name:
        rows, forward, backward = prod(shape) // max(1, shape[_int(op.args[1])]), 2, 1
    elif op.name == "native_group_norm":
        rows, forward, backward = shape[0] * node.shapes[op.outputs[1]][1], 2, 2
    else:
        count = op.args[2] if op.name == "rms_norm" else len(ints_at(op, 1))
        rows = prod(shape[: len(shape) - _int(count)])
        forward = backward = 1 if "rms" in op.name else 2
    num_bytes = rows * node.exact_bytes(x)
    yield from [Told("forward", axis, "all_reduce", num_bytes)] * forward
    if x in node.differentiable:
        yield from [Told("backward", axis, "all_reduce", num_bytes)] * backward


def _int(arg: object) -> int:
    assert isinstance(arg, int)
    return arg


def _sync(node: Node, axis: int) -> Iterator[Told]:
    """Sum and squares of each channel."""
    x = node.ops[0].inputs[0]
    num_bytes = node.local(x)[1] * node.exact_bytes(x)
    yield from [Told("forward", axis, "all_reduce", num_bytes)] * 2
    if x in node.differentiable:
        yield from [Told("backward", axis, "all_reduce", num_bytes)] * 2


def _ring(node: Node, axis: int) -> Iterator[Told]:
    """Keys and values ``n - 1`` steps; backward again, and their gradients ``n`` steps. Of parts of unequal length the
    rank holds one after the other."""
    query, key, value = (arg.value for arg in node.ops[0].args[:3] if isinstance(arg, Ref))
    size, places = node.sizes[axis], [0] * len(node.sizes)
    passing = []
    for step in range(size):
        places[axis] = -step % size
        rank = tuple(places)
        shapes = [held_shape(node.layouts[v], node.shapes[v], node.sizes, rank) for v in (key, value)]
        passing.append(sum(map(prod, shapes)) * node.element_bytes(key))
    yield from (Told("forward", axis, "all_to_all", num_bytes) for num_bytes in passing[:-1])
    if not node.differentiable.isdisjoint((query, key, value)):
        yield from (Told("backward", axis, "all_to_all", num_bytes) for num_bytes in (*passing[:-1], *passing))


def _halo(node: Node, axis: int) -> Iterator[Told]:
    """Rows that the neighbours' windows reach, and the gradients of those that the own windows reach. A dim whose
    borders are there already is as long as these make it."""
    x = node.ops[0].inputs[0]
    rows, shape = _border(node, axis), list(node.local(x))
    for other in node.axes("halo"):
        if other < axis:
            shape[node.layouts[x][other].dim] = len(_border(node, other).places)
    shape[node.layouts[x][axis].dim] = 1
    row_bytes = prod(shape) * node.element_bytes(x)
    yield Told("forward", axis, "all_to_all", sum(rows.sent) * row_bytes)
    if x in node.differentiable:
        yield Told("backward", axis, "all_to_all", sum(rows.got) * row_bytes)


def _border(node: Node, axis: int) -> Rows:
    op = node.ops[0]
    x, out = op.inputs[0], op.outputs[0]
    dim = node.layouts[x][axis].dim
    ranks = [tuple(i if a == axis else 0 for a in range(len(node.sizes))) for i in range(node.sizes[axis])]
    held, made = (
        [held_indices(node.layouts[v], node.shapes[v], dim, node.sizes, rank) for rank in ranks] for v in (x, out)
    )
    return border(window(op, dim, node.shapes), held, made, node.shapes[x][dim], 0)


def _dispatch(node: Node) -> Iterator[Told]:
    """How many rows go to each expert, the rows and what experts made of them; backward the gradients of both. Of
    experts with replicas the gradients are summed. Rows are taken to go to all ranks alike."""
    axes = {EXPERTS: node.ep} if node.ep > 1 else {axis: node.sizes[axis] for axis in node.axes("dispatch")}
    if not axes:
        return
    ((axis, size),) = axes.items()
    parts = expert_ops(node.ops, node.shapes)
    tokens = next(v for v in parts.by_token if v in node.layouts)
    visits = node.shapes[parts.rows][0] * node.local(tokens)[0] // node.shapes[tokens][0]
    slots = sum(map(len, node.holders)) or parts.num_experts
    taken, made = (node.shapes[v][1] * node.element_bytes(v) for v in (parts.rows, parts.product))
    received = visits // size * size
    yield Told("forward", axis, "all_to_all", slots * COUNT_BYTES)
    yield Told("forward", axis, "all_to_all", visits * taken)
    yield Told("forward", axis, "all_to_all", received * made)
    yield Told("backward", axis, "all_to_all", visits * made)
    yield Told("backward", axis, "all_to_all", received * taken)
    several = sum(len(ranks) > 1 for ranks in node.holders)
    for v in parts.weights if several else ():
        yield Told("backward", axis, "all_reduce", several * prod(node.shapes[v][1:]) * node.element_bytes(v))
