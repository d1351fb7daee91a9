"""New tensors that read nothing: each device makes what it needs of them, random numbers from a stream of its own."""

from __future__ import annotations

from planner import ops
from planner.graph import Op
from planner.layouts.relations import Dims, Relations, Rule

CONSTANT = {"zeros", "ones", "full", "scalar_tensor", "new_zeros", "new_ones", "new_full"} | ops.ALLOCATION
RANDOM = {"rand", "randn"}
LIKE = {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"}
COUNTING = {"arange", "linspace", "eye"}
"""Elements depend on their place, so a shard is not made as the whole is."""
UNREAD = CONSTANT | RANDOM | LIKE
"""Their tensor arguments give a shape or a dtype alone."""


def _constant(relations: Relations, op: Op) -> list[Dims]:
    return [relations.fresh(value) for value in op.outputs]


def _like(relations: Relations, op: Op) -> list[Dims]:
    return [relations.of(op.inputs[0]) for _ in op.outputs]


def _counting(relations: Relations, op: Op) -> list[Dims]:
    results = [relations.fresh(value) for value in op.outputs]
    for dims in results:
        relations.bear(*dims)
    return results


RULES: dict[str, Rule] = {
    **dict.fromkeys(CONSTANT | RANDOM, _constant),
    **dict.fromkeys(LIKE, _like),
    **dict.fromkeys(COUNTING, _counting),
}
