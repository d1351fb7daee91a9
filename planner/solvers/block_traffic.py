"""What a rank of ``tp``, ``cp`` and ``ep`` communicates in one pass over a distinct block, collective by collective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from planner import ops
from planner.graph import Block
from planner.layouts.pins import matches
from planner.plan import Plan
from planner.solvers.block_layout.detail import Detail, Redistributed
from planner.solvers.block_layout.values import BlockValues
from planner.solvers.implementation_traffic import EXPERTS, Node, told

SAVES_NOTHING = ops.COPIES | {"add", "sub", "neg", "cat", "split", "slice", "sum", "mean", "constant_pad_nd"}
"""Calls whose backward pass reads nothing of the forward pass but sizes and indices."""


class Message(NamedTuple):
    """One collective as one rank issues it."""

    axis: str
    kind: str
    num_bytes: int
    """Of the result of an all-gather, what goes into a reduce-scatter or an all-to-all, the tensor of others."""


Messages = Counter[Message]


@dataclass(frozen=True)
class BlockTraffic:
    """One microbatch through one block."""

    forward: Messages
    backward: Messages
    """Without recomputation."""
    again: Messages
    """Of ``forward``, what recomputation does once more."""


def block_traffic(values: BlockValues, found: Detail, plan: Plan, prefix: str = "") -> BlockTraffic:
    """Redistributions that the layouts ask for, and what operations tell each other inside.

    A value is brought to a layout once. What depends on nothing but the batch is there in any.

    Args:
        prefix: FQN of a call of the block.
    """
    traffic = BlockTraffic(Counter(), Counter(), Counter())
    policy, last, outside = plan.candidate.recompute, _last_saver(values.block), _outside(values.block)
    holders = next((placed.ranks for placed in plan.experts if matches(placed.block, prefix)), ())
    brought = set[tuple[int, object]]()
    for placed in found.ops:
        redone = _redone(policy) if placed.ops[0] <= last else ()
        for moved in placed.redistributed:
            if moved.value not in outside and (moved.value, moved.target) not in brought:
                brought.add((moved.value, moved.target))
                _move(values, moved, traffic, redone)
        node = Node(
            values.block, values.shapes, values.mesh.sizes, placed, values.differentiable, holders, plan.candidate.ep
        )
        for inside in told(node):
            axis = "ep" if inside.axis == EXPERTS else axis_of(values.mesh.axes[inside.axis])
            message = Message(axis, inside.kind, inside.num_bytes)
            (traffic.forward if inside.phase == "forward" else traffic.backward)[message] += 1
            if inside.phase == "forward" and inside.kind in redone:
                traffic.again[message] += 1
    for moved in found.leaving:
        if (moved.value, moved.target) not in brought:
            _move(values, moved, traffic, ())
    return traffic


def _redone(policy: str) -> Sequence[str]:
    """Kinds of collectives that recomputation issues again, of those up to where it ends: where the last tensor is
    saved that the backward pass needs. All but ``full`` keep what is summed."""
    if policy == "none":
        return ()
    gathers = ("all_gather", "all_to_all")
    return (*gathers, "reduce_scatter", "all_reduce") if policy == "full" else gathers


def _move(values: BlockValues, moved: Redistributed, traffic: BlockTraffic, redone: Sequence[str]) -> None:
    mesh = values.mesh
    for step in moved.steps:
        if mesh.sizes[step.move.axis] == 1:
            continue
        axis = axis_of(mesh.axes[step.move.axis])
        if step.move.forward != "local":
            message = Message(axis, step.move.forward, int(step.num_bytes))
            traffic.forward[message] += 1
            traffic.again[message] += step.move.forward in redone
        if step.move.backward != "local" and moved.value in values.differentiable:
            traffic.backward[Message(axis, step.move.backward, int(step.num_bytes))] += 1


def axis_of(name: str) -> str:
    """``cp`` of the parts that it falls into."""
    return name.partition("_")[0]


def _last_saver(block: Block) -> int:
    """The last forward operation that keeps a tensor for the backward pass; -1 where none does."""
    storages = [value.storage for value in block.values]
    read = {storages[v] for op in block.ops if op.phase == "backward" for v in op.inputs}
    savers = (
        i
        for i, op in enumerate(block.ops)
        if op.phase == "forward" and op.name not in SAVES_NOTHING
        if any(storages[v] in read for v in (*op.inputs, *op.outputs))
    )
    return max(savers, default=-1)


def _outside(block: Block) -> frozenset[int]:
    """Values that depend on no parameter and no activation."""
    inside = {*block.inputs, *(v for _, v in block.params)}
    for op in block.ops:
        if op.phase == "forward" and inside.intersection(op.inputs):
            inside.update(op.outputs)
    return frozenset(range(len(block.values))) - inside
