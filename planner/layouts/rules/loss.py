"""The cross-entropy's last step; with its log-softmax it is one node (`planner.layouts.strategies.loss`)."""

from __future__ import annotations

from planner.graph import Op
from planner.layouts.relations import Dims, Relations, Rule
from planner.layouts.rules.norms import like_inputs


def _loss(relations: Relations, op: Op) -> list[Dims]:
    """log-probabilities [rows, classes], targets [rows][, weights of classes] -> their sum or mean, and what a mean was
    divided by."""
    results = [relations.fresh(value) for value in op.outputs]
    dims, targets, *weights = (relations.of(value) for value in op.inputs)
    if relations.alone and len(dims) == 2:  # in a block, labels lie as they come: they are integers, and small
        rows, classes = dims
        relations.unify(rows, targets[0])
        relations.share(classes, via="loss_parallel")
        for weight in weights:
            relations.unify(classes, weight[0])
        if op.args[3] == UNREDUCED:
            results[0] = [rows]
        else:
            relations.contract(rows)
        if op.args[3] == MEAN:
            relations.share(rows, via="mean_count")
    return results


UNREDUCED, MEAN = 0, 1
"""Of ``torch.nn._reduction``."""

RULES: dict[str, Rule] = {"nll_loss_forward": _loss, "nll_loss_backward": like_inputs(1)}
