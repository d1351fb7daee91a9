"""Reductions. A sum over a sharded dim is a partial sum, and so is a mean's share; others need the dim whole."""

from __future__ import annotations

from planner.graph import Op
from planner.layouts.relations import Dims, Relations, Rule
from planner.layouts.rules.arguments import dims_at, tensors
from planner.layouts.rules.pointwise import elementwise


def _reduce(relations: Relations, op: Op) -> list[Dims]:
    dims = relations.of(op.inputs[0])
    reduced = dims_at(op, 2 if op.name == "linalg_vector_norm" else 1, len(dims)) if dims else set()
    if op.name in ("sum", "mean"):
        relations.contract(tuple(atom for i in sorted(reduced) for atom in dims[i]))
        relations.linear(op.inputs[0])
    else:
        relations.fix(*(dims[i] for i in reduced))
    kept = [f for i, f in enumerate(dims) if i not in reduced]
    results: list[Dims] = []
    for out in op.outputs:
        keepdim = len(relations.shapes[out]) == len(dims)
        results.append([() if i in reduced else f for i, f in enumerate(dims)] if keepdim else list(kept))
    return results


def _extreme(relations: Relations, op: Op) -> list[Dims]:
    """Of one tensor, along a dim or at all; of two, element by element."""
    return (_reduce if len(tensors(op)) == 1 else elementwise)(relations, op)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var", "var_mean", "std", "prod", "logsumexp"), _reduce),
    **dict.fromkeys(("argmax", "argmin", "any", "all", "linalg_vector_norm"), _reduce),
    **dict.fromkeys(("max", "min"), _extreme),
}
