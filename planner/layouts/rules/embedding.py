"""Lookups of rows in a table."""

from __future__ import annotations

from planner.graph import Op
from planner.layouts.relations import Dims, Relations, Rule


def _embedding(relations: Relations, op: Op) -> list[Dims]:
    """Over shards of the rows, the result is a partial sum of zeros and one hit."""
    table, index = relations.of(op.inputs[0]), relations.of(op.inputs[1])
    relations.contract(table[0], defer=True)
    return [[*index, table[1]]]


def _embedding_backward(relations: Relations, op: Op) -> list[Dims]:
    """Rows of the gradient are added up by index into a table."""
    grad, index = relations.of(op.inputs[0]), relations.of(op.inputs[1])
    for ours, theirs in zip(grad, index, strict=False):
        relations.unify(ours, theirs)
    return [[relations.atoms.new(relations.shapes[op.outputs[0]][0]), grad[-1]]]


RULES: dict[str, Rule] = {"embedding": _embedding, "embedding_dense_backward": _embedding_backward}
