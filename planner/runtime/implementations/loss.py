"""Cross-entropy whose rows or classes are sharded.

Rows (``mean_count``): every rank's share is its own sum divided by the weight of all rows that count, which is summed
over the axis. Classes (``loss_parallel``): largest logit, sum of exponentials and the target's logit of every row are
reduced over the axis in float32, and no rank holds all logits of a row; backward each rank has the gradient of its own
classes from its own logits and the rows' log-sum-exp, without communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planner.capture.program import Call
from planner.graph import Op, Ref
from planner.runtime.moves import sum_over
from planner.runtime.site import Held, Run, Site

UNREDUCED, MEAN = 0, 1
"""Of ``torch.nn._reduction``."""


def cross_entropy(ops: Sequence[Op], calls: Sequence[Call], site: Site, names: Sequence[str]) -> Run:
    """From the log-softmax on (or the choice of each row's class alone) to the loss and what a mean was divided by."""
    loss, given = calls[-1], ops[0].inputs[0]
    targets, weights = (_value(arg) for arg in loss.args[1:3])
    reduction, ignored = loss.args[3:5]
    normalises = ops[0].name == "_log_softmax"
    classes = ops[-1].inputs[0]
    dim = len(site.shapes[given]) - 1
    over_classes = [site.mesh.group_name(i) for i, name in enumerate(names) if name == "loss_parallel"]
    over_rows = [site.mesh.group_name(i) for i, name in enumerate(names) if name == "mean_count"]
    locate = site.located(given, dim)
    num_classes = site.shapes[classes][1]

    def run(held: Held) -> dict[int, Tensor]:
        x, chosen = held[given], held[targets].flatten()
        x = x.detach() if given in calls[0].detached else x
        place, own = locate(chosen, (chosen != ignored) & (chosen >= 0) & (chosen < num_classes))
        place = place.masked_fill(~own, 0)
        rows = x.reshape(len(chosen), -1)
        picked = _Picked.apply(rows, place, own, normalises, over_classes)
        weight = (chosen != ignored).to(picked.dtype)
        if weights is not None:
            weight = weight * _of_targets(held[weights], place, own, over_classes)
        value = -picked * weight
        total = weight.sum() if reduction != UNREDUCED else weight.new_zeros(())
        if reduction != UNREDUCED:
            value = value.sum()
        if reduction == MEAN:
            value = value / _counted(total, over_rows)
        return dict(zip(ops[-1].outputs, (value.to(x.dtype), total.to(x.dtype)), strict=True))

    return run


def _value(arg: Any) -> Any:
    return arg.value if isinstance(arg, Ref) else None


def _counted(total: Tensor, over_rows: Sequence[str]) -> Tensor:
    """Weight of the rows of all ranks."""
    for name in over_rows:
        total = sum_over(total, name)
    return total


def _of_targets(weights: Tensor, place: Tensor, own: Tensor, over_classes: Sequence[str]) -> Tensor:
    found = weights.gather(0, place) * own
    for name in over_classes:
        found = sum_over(found, name)
    return found


class _Picked(torch.autograd.Function):
    """Log-probability of every row's target (or its number as it is, where ``normalises`` is false)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, place: Tensor, own: Tensor, normalises: bool, over_classes: Sequence[str]
    ) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        picked = x.gather(1, place.unsqueeze(1)).squeeze(1).to(exact).masked_fill(~own, 0)
        lse = None
        if normalises:
            top = x.amax(1).to(exact)
            for name in over_classes:
                top = sum_over(top, name, "max")
            total = (x - top.unsqueeze(1)).exp_().sum(1)
            for name in over_classes:
                total = sum_over(total, name)
            lse = top + total.log()
        for name in over_classes:
            picked = sum_over(picked, name)
        ctx.save_for_backward(x, place, own, lse)
        return picked if lse is None else picked - lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, place, own, lse = ctx.saved_tensors
        if lse is None:
            given = x.new_zeros(x.shape, dtype=grad.dtype)
        else:
            given = (x - lse.unsqueeze(1)).exp_().mul_(-grad.unsqueeze(1))
        given.scatter_add_(1, place.unsqueeze(1), (grad * own).unsqueeze(1))
        return given.to(x.dtype), None, None, None, None
