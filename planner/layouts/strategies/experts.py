"""A layer's routed experts as one node.

What each device does with its tokens is ordered by expert, so the operations in between have no layout of their own.
As a whole they have four: every device routes its own tokens through all experts; experts are divided and tokens sent
to them (``dispatch``); every expert's inner width is divided, the result a partial sum; everything is replicated.

Values in between that the backward pass reads count as sharded where a device holds its share of them, though not the
rows that a shard of the whole would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from math import gcd, prod

from planner import ops
from planner.graph import Block, Op
from planner.layouts.experts import routed_ops
from planner.layouts.flow import DimFlow
from planner.layouts.placements import BROADCAST, PARTIAL, REPLICATE, Placement, shard
from planner.layouts.strategies.derive import replicated
from planner.layouts.strategies.option import OpNode, Option


def experts_node(flow: DimFlow, differentiable: Set[int]) -> OpNode | None:
    """The node of a block's routed experts; ``None`` where it has none, or none that is understood.

    Args:
        differentiable: values that have a gradient.
    """
    members = routed_ops(flow.block)
    if not members:
        return None
    inputs, outputs = boundary(flow.block, members)
    combined = flow.block.ops[members[-1]].outputs[0]
    num_tokens = flow.shapes[combined][0]
    tokens = [
        v for v in inputs
        if v in differentiable and not flow.is_weight(v) and flow.shapes[v][:1] == (num_tokens,)
    ]  # fmt: skip
    if not tokens:
        return None
    routed = Routed(flow, members, inputs, outputs, differentiable, tokens[0])
    options = [*replicated(inputs, outputs, differentiable), *_by_tokens(routed), *_by_inner_width(routed)]
    return OpNode(members, inputs, outputs, tuple(options))


def boundary(block: Block, members: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Values that some operations read and do not make, and those that they make and others read."""
    made = [v for i in members for v in block.ops[i].outputs]
    inside = set(members)
    read = {v for i, op in enumerate(block.ops) if i not in inside for v in op.inputs} | set(block.outputs)
    inputs = dict.fromkeys(v for i in members for v in block.ops[i].inputs)
    return tuple(v for v in inputs if v not in made), tuple(v for v in made if v in read)


@dataclass(frozen=True)
class Routed:
    """The routed part of a block."""

    flow: DimFlow
    members: Sequence[int]
    inputs: Sequence[int]
    outputs: Sequence[int]
    differentiable: Set[int]
    tokens: int
    """Value that holds them, one row each."""

    @property
    def ops(self) -> list[Op]:
        return [self.flow.block.ops[i] for i in self.members]

    @property
    def products(self) -> list[int]:
        """Indices of the grouped products."""
        return [i for i in self.members if self.flow.block.ops[i].name in ops.GROUPED]

    @property
    def num_experts(self) -> int:
        return self.flow.shapes[self.flow.block.ops[self.products[0]].inputs[1]][0]

    def whole(self, value: int) -> Placement:
        """A copy on every device."""
        return BROADCAST if value in self.differentiable else REPLICATE

    def per_token(self, value: int) -> bool:
        """Whether a value has rows for every token, or for every visit of one."""
        shape = self.flow.shapes[value]
        return bool(shape) and not self.flow.is_weight(value) and shape[0] % self.flow.shapes[self.tokens][0] == 0

    def per_expert(self, value: int) -> bool:
        """Whether a value has one part for every expert."""
        return self.flow.shapes[value][:1] == (self.num_experts,)


def _by_tokens(routed: Routed) -> Iterator[Option]:
    """Each part of the tokens' dim, with all experts on every device, and with experts divided as well."""
    atoms, dims = routed.flow.atoms, routed.flow.of(routed.tokens)
    parts = [atoms.size(a) for a in atoms.leaves(dims[0])]
    for i in range(len(parts)):
        along, size = shard(0, prod(parts[:i])), prod(parts[i:])
        yield Option(
            inputs=tuple(along if routed.per_token(v) else routed.whole(v) for v in routed.inputs),
            outputs=tuple(_made_of_own(routed, v, along) for v in routed.outputs),
            factor=i,
            size=size,
        )
        yield Option(
            inputs=tuple(_dispatched(routed, v, along) for v in routed.inputs),
            outputs=tuple(_dispatched(routed, v, along) for v in routed.outputs),
            factor=len(parts),
            size=gcd(size, routed.num_experts),
            implementation="dispatch",
        )


def _made_of_own(routed: Routed, value: int, along: Placement) -> Placement:
    if routed.flow.is_weight(value):
        return routed.whole(value)
    return along if routed.per_token(value) else PARTIAL  # what has no rows counts them


def _dispatched(routed: Routed, value: int, along: Placement) -> Placement:
    if routed.per_token(value):
        return along
    return shard(0) if routed.per_expert(value) else routed.whole(value)


def _by_inner_width(routed: Routed) -> Iterator[Option]:
    """Every expert's inner width, where all weights hold it and what follows is linear."""
    flow, last = routed.flow, routed.products[-1]
    after = set(flow.block.ops[last].outputs)
    for op in routed.ops:
        if after.intersection(op.inputs):
            if op.name not in ops.LINEAR:
                return
            after.update(op.outputs)
    for i, leaf in enumerate(flow.atoms.leaves(flow.contracted[last])):
        held = {v: _holding(flow, v, leaf) for v in (*routed.inputs, *routed.outputs)}
        if all(held[v] for v in routed.inputs if flow.is_weight(v)):
            yield Option(
                inputs=tuple(held[v] or routed.whole(v) for v in routed.inputs),
                outputs=tuple(held[v] or (PARTIAL if v in after else REPLICATE) for v in routed.outputs),
                factor=-1 - i,
                size=flow.atoms.size(leaf),
            )


def _holding(flow: DimFlow, value: int, leaf: int) -> Placement | None:
    for d, run in enumerate(flow.of(value)):
        leaves = flow.atoms.leaves(run)
        if leaf in leaves:
            return shard(d, prod(flow.atoms.size(a) for a in leaves[: leaves.index(leaf)]))
    return None
