"""Element by element: any dim may be sharded. Random ones (dropout) draw a stream of their own on every shard."""

from __future__ import annotations

from planner.graph import Op, Ref
from planner.layouts.relations import Dims, Relations, Rule
from planner.layouts.rules.arguments import base_name, tensors


def elementwise(relations: Relations, op: Op) -> list[Dims]:
    """Broadcasting: dims are aligned from the right, size 1 matches anything."""
    _state_linear(relations, op)
    results = []
    for out in op.outputs:
        dims: Dims = [() for _ in relations.shapes[out]]
        for value in op.inputs:
            for i, factors in enumerate(reversed(relations.of(value)), start=1):
                if not factors:
                    continue
                if dims[-i]:
                    relations.unify(dims[-i], factors)
                else:
                    dims[-i] = factors
        results.append([d or f for d, f in zip(dims, relations.fresh(out), strict=True)])
    return results


def like_first(relations: Relations, op: Op) -> list[Dims]:
    """All results lie as the first argument does."""
    if op.name in SAME:
        relations.linear(op.inputs[0])
    return [relations.of(op.inputs[0]) for _ in op.outputs]


def _state_linear(relations: Relations, op: Op) -> None:
    name, operands = base_name(op), tensors(op)
    if name in SAME or (name == "div" and None is _rounding(op)) or (name == "mul" and len(operands) == 1):
        if operands.count(operands[0]) == 1:
            relations.linear(operands[0])
    elif name == "mul" and operands[0] != operands[1]:
        for value in operands:
            relations.linear(value)
    elif name in SUMS and len(operands) == 2 and all(isinstance(arg, Ref) for arg in op.args[:2]):
        relations.linear(*dict.fromkeys(operands))
    elif name == "where" and len(operands) == 3 and operands[0] not in operands[1:]:
        relations.linear(*dict.fromkeys(operands[1:]))
    elif name == "masked_fill" and op.args[2] == 0 and not isinstance(op.args[2], Ref):
        relations.linear(operands[0])


def _rounding(op: Op) -> str | None:
    return next((arg for arg in op.args if isinstance(arg, str)), None)


SAME = {"neg", "clone", "_to_copy", "lift_fresh_copy", "conj"}
"""Linear in their only argument."""
SUMS = {"add", "sub", "rsub"}

RULES: dict[str, Rule] = {
    **dict.fromkeys(("clone", "_to_copy", "lift_fresh_copy"), like_first),
    **dict.fromkeys(("native_dropout", "bernoulli", "fill", "zero"), like_first),
    **dict.fromkeys(("copy", "masked_fill", "floor_divide"), elementwise),
}
