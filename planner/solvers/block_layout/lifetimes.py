"""Memory of one block over time: what its nodes keep, and from when to when.

Time points: forward operation ``i`` runs at ``i``, its backward at ``2 T - i``; ``T``, the turn, is between the two.

- A parameter with its gradient and optimizer states lives throughout.
- What an operation makes lives around it, and its gradient around its backward; so does a parameter's copy in the
  layout in which it is used, and that copy's gradient.
- What the backward pass reads is kept from its reader's forward to its reader's backward, in the reader's layout: what
  is gathered for a product is kept gathered, as torch's DTensor keeps it. What several read is kept throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from planner import ops
from planner.graph import Block
from planner.layouts.placements import Layout
from planner.layouts.strategies import OpNode
from planner.solvers.block_layout.choices import Choice, Edge
from planner.solvers.block_layout.values import BlockValues
from planner.solvers.intra_op.problem import Costs, Usage


def usages(
    values: BlockValues,
    choices: Sequence[Choice],
    pairs: Sequence[tuple[int, int]],
    edges: Sequence[Edge],
    *,
    turn: int,
) -> tuple[tuple[Usage, ...], ...]:
    """What every node of the problem keeps (module docstring).

    Args:
        pairs: per edge, its two nodes.
        turn: ``T``, after all forward operations.
    """
    block, bytes_of = values.block, values.bytes_of
    found: list[list[Usage]] = [[] for _ in choices]
    for i, choice in enumerate(choices):
        if choice.kind == "param" and choice.value is not None:
            found[i].append(Usage(0, 2 * turn + 1, _amounts(choice.value, choice.layouts, values.states_of)))
        if choice.op is None:
            continue
        at = choice.op.ops[-1]
        for k, v in enumerate(choice.op.outputs):
            if not ops.is_free(block.ops[at], block):
                amounts = _amounts(v, [strategy.outputs[k] for strategy in choice.strategies], bytes_of)
                found[i].append(Usage(at, at + 1, amounts))
                if v in values.differentiable:
                    found[i].append(Usage(2 * turn - at, 2 * turn - at + 1, amounts))
        for k, v in enumerate(choice.op.inputs):
            if v in values.weights and not ops.is_free(block.ops[at], block):
                amounts = _amounts(v, [strategy.inputs[k] for strategy in choice.strategies], bytes_of)
                found[i].append(Usage(at, at + 1, amounts))
                found[i].append(
                    Usage(2 * turn - at, 2 * turn - at + 1, 2 * amounts if v in values.differentiable else amounts)
                )
    read_first: dict[int, tuple[int, Edge]] = {}
    for (_, j), edge in zip(pairs, edges, strict=True):
        read_first.setdefault(edge.value, (j, edge))
    for v in block.saved:
        if v in read_first:
            i, edge = read_first[v]
            amounts = _amounts(v, edge.want, bytes_of)
        else:
            maker = next((i for i, choice in enumerate(choices) if choice.op and _makes(block, choice.op, v)), None)
            if maker is None:
                continue
            i, amounts = maker, _made(v, choices[maker], bytes_of)
        op = choices[i].op
        start = op.ops[0] if op else 0
        found[i].append(Usage(start, 2 * turn - start + 1, amounts))
    return tuple(tuple(kept) for kept in found)


BytesOf = Callable[[int, Layout], float]
"""(value, layout) -> bytes on one device."""


def _makes(block: Block, op: OpNode, v: int) -> bool:
    return any(v in block.ops[i].outputs for i in op.ops)


def _made(v: int, choice: Choice, bytes_of: BytesOf) -> Costs:
    """Of what is made and read by one operation alone; within several that are laid out together, its share."""
    assert choice.op is not None
    if v in choice.op.outputs:
        return _amounts(v, [s.outputs[choice.op.outputs.index(v)] for s in choice.strategies], bytes_of)
    return np.array([bytes_of(v, ()) / strategy.shares for strategy in choice.strategies])


def _amounts(v: int, layouts: Sequence[Layout], bytes_of: BytesOf) -> Costs:
    known: dict[Layout, float] = {}
    return np.array([known[a] if a in known else known.setdefault(a, bytes_of(v, a)) for a in layouts])
