"""Ordering along a dim: sorts, choices, running sums, histograms."""

from __future__ import annotations

from planner.graph import Op
from planner.layouts.relations import Dims, Relations, Rule


def _along(relations: Relations, op: Op) -> list[Dims]:
    """topk, sort, cumsum, ...: one dim is needed whole, the others pass."""
    dims = relations.of(op.inputs[0])
    ints = [a for a in op.args if type(a) is int][1 if op.name == "topk" else 0 :]
    d = (ints[0] if ints else -1) % len(dims) if dims else 0
    relations.fix(*dims[d : d + 1])
    if op.name == "cumsum":
        relations.linear(op.inputs[0])
    results = [[f if i != d else relations.fresh(out)[d] for i, f in enumerate(dims)] for out in op.outputs]
    relations.bear(*(result[d] for result in results if result))
    return results


def _histogram(relations: Relations, op: Op) -> list[Dims]:
    """Counts of a part are a part of the counts."""
    for factors in relations.of(op.inputs[0]):
        relations.contract(factors)
    results = [relations.fresh(value) for value in op.outputs]
    relations.bear(*(factors for dims in results for factors in dims))
    return results


RULES: dict[str, Rule] = {
    **dict.fromkeys(("topk", "sort", "cumsum", "argsort"), _along),
    "histc": _histogram,
}
