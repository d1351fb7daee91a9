"""Normalisations. Over a sharded normalised dim they communicate their statistics."""

from __future__ import annotations

from planner.graph import Op
from planner.layouts.relations import Dims, Relations, Rule
from planner.layouts.rules.arguments import dim_at, ints_at, tensors


def _softmax(relations: Relations, op: Op) -> list[Dims]:
    dims = relations.of(op.inputs[0])
    if not (op.name == "_log_softmax" and relations.serves_only(op.outputs[0], "nll_loss_forward")):
        relations.fix(dims[dim_at(op, 1, len(dims))], via="statistics")
    return [dims]


def _softmax_backward(relations: Relations, op: Op) -> list[Dims]:
    for value in op.inputs[1:]:
        relations.same(op.inputs[0], value)
    return [relations.of(op.inputs[0])]


def _layer_norm(relations: Relations, op: Op) -> list[Dims]:
    """Results: normalised tensor, then statistics with the normalised dims gone (size 1)."""
    dims = relations.of(op.inputs[0])
    count = op.args[2] if op.name == "rms_norm" else len(ints_at(op, 1))
    normalised = count if isinstance(count, int) else 1
    for value in op.inputs[1:]:
        for ours, theirs in zip(dims[-normalised:], relations.of(value), strict=True):
            relations.unify(ours, theirs)
    relations.fix(*dims[-normalised:], via="statistics")
    lead = dims[: len(dims) - normalised]
    return [dims, *([*lead, *((),) * (len(relations.shapes[v]) - len(lead))] for v in op.outputs[1:])]


def _group_norm(relations: Relations, op: Op) -> list[Dims]:
    """Statistics go over the positions and the channels of a group; samples and groups are independent."""
    dims = relations.of(op.inputs[0])
    for value in op.inputs[1:]:
        relations.unify(dims[1], relations.of(value)[0])
    channels, groups = relations.shapes[op.inputs[0]][1], relations.shapes[op.outputs[1]][1]
    outer, inner = relations.atoms.regroup(dims[1], (groups, channels // groups), relations.index)
    relations.fix(inner, *dims[2:], via="statistics")
    return [dims, [dims[0], outer], [dims[0], outer]]


def _batch_norm(relations: Relations, op: Op) -> list[Dims]:
    """Per channel: statistics go over the batch and the positions (not those that are given, when it is not training),
    the channels are independent."""
    dims = relations.of(op.inputs[0])
    for value in op.inputs[1:]:
        if len(relations.shapes[value]) == 1:
            relations.unify(dims[1], relations.of(value)[0])
    if next(arg for arg in op.args if isinstance(arg, bool)):
        relations.fix(*dims[2:], via="sync")
        relations.share(dims[0], via="sync")
    return [dims, *([dims[1]] if len(relations.shapes[v]) == 1 else relations.fresh(v) for v in op.outputs[1:])]


def like_inputs(*positions: int) -> Rule:
    """A backward call whose results are the gradients of the arguments at ``positions``; where the incoming gradient
    has the shape of the first of them (norms), it lies alike."""

    def rule(relations: Relations, op: Op) -> list[Dims]:
        given = tensors(op)
        if relations.shapes[given[0]] == relations.shapes[given[positions[0]]] and "norm" in op.name:
            relations.same(given[0], given[positions[0]])
        by_shape = {relations.shapes[v]: v for v in reversed([given[p] for p in positions if p < len(given)])}
        return [
            list(relations.of(by_shape[relations.shapes[out]]))
            if relations.shapes[out] in by_shape
            else relations.fresh(out)
            for out in op.outputs
        ]

    return rule


RULES: dict[str, Rule] = {
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(("_softmax_backward_data", "_log_softmax_backward_data"), _softmax_backward),
    **dict.fromkeys(("native_layer_norm", "rms_norm", "_fused_rms_norm"), _layer_norm),
    "native_group_norm": _group_norm,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit"), _batch_norm),
    "native_layer_norm_backward": like_inputs(1, 4, 5),
    "rms_norm_backward": like_inputs(1, 3),
    "native_batch_norm_backward": like_inputs(1, 2),
}
