"""Matrix products: free dims may be sharded, over a sharded contracted dim the result is a partial sum."""

from __future__ import annotations

from planner.graph import Op
from planner.layouts.atoms import Factors
from planner.layouts.relations import Dims, Relations, Rule
from planner.layouts.rules.arguments import tensors


def contract(relations: Relations, a: int, b: int, left: Factors, right: Factors) -> None:
    """Sum over a dim of ``a`` and one of ``b``."""
    relations.unify(left, right)
    relations.contract(left, defer=relations.is_weight(a) or relations.is_weight(b))


def _matmul(relations: Relations, op: Op) -> list[Dims]:
    """[bias +] [b,] m, k x [b,] k, n."""
    *bias, a, b = tensors(op)[:3]
    left, right = relations.of(a), relations.of(b)
    contract(relations, a, b, left[-1], right[-2])
    if len(left) == 3:
        relations.unify(left[0], right[0])
    if a != b:
        relations.linear(a, *bias)
        relations.linear(b, *bias)
    out: Dims = [*left[:-1], right[-1]]
    for value in bias:
        for ours, theirs in zip(reversed(out), reversed(relations.of(value)), strict=False):
            if theirs:
                relations.unify(ours, theirs)
    return [out]


def _grouped_matmul(relations: Relations, op: Op) -> list[Dims]:
    """[T, k] x [G, k, n] -> [T, n]; [m, T] x [T, n] -> [G, m, n]; [G, m, k] x [G, k, n]. Rows belong to groups, so
    neither T nor G is free in the first."""
    a, b, *ends = tensors(op)
    left, right = relations.of(a), relations.of(b)
    for value in ends:
        relations.fix(*relations.of(value))
    if len(left) == 3:
        return _matmul(relations, op)
    if len(right) == 3:
        contract(relations, a, b, left[1], right[1])
        relations.fix(left[0], right[0])
        relations.linear(a)
        relations.linear(b)
        return [[left[0], right[2]]]
    groups = relations.atoms.new(relations.shapes[op.outputs[0]][0])
    relations.fix(left[1], right[0])
    relations.bear(groups)
    return [[groups, left[0], right[1]]]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _matmul),
    "_grouped_mm": _grouped_matmul,
}
