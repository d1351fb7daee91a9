"""A cross-entropy as one node: log-softmax and the choice of each row's class, with what is between.

Over shards of the classes the largest logit, the sum of exponentials and the target's logit of each row are reduced
(``loss_parallel``), and no device holds all logits of a row. Over shards of the rows the loss is a partial sum. A mean
is each device's sum divided by the rows of all, which are counted (``mean_count``): labels may say to ignore some.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.graph import Block

BETWEEN = {"view", "_unsafe_view", "reshape", "_to_copy", "clone"}


def loss_ops(block: Block) -> list[tuple[int, ...]]:
    """Runs of operations, each a cross-entropy from its log-softmax on."""
    makers = {v: i for i, op in enumerate(block.ops) if op.phase == "forward" for v in op.outputs}
    readers: dict[int, int] = {}
    for op in block.ops:
        if op.phase == "forward":
            for v in op.inputs:
                readers[v] = readers.get(v, 0) + 1
    found = [_chain(block, i, makers, readers) for i, op in enumerate(block.ops) if op.name == "nll_loss_forward"]
    return [run for run in found if run]


def _chain(block: Block, loss: int, makers: Mapping[int, int], readers: Mapping[int, int]) -> tuple[int, ...]:
    run = [loss]
    while readers[block.ops[run[0]].inputs[0]] == 1:
        before = makers.get(block.ops[run[0]].inputs[0])
        if before is None:
            break
        run.insert(0, before)
        if block.ops[before].name == "_log_softmax":
            return tuple(run)
        if block.ops[before].name not in BETWEEN:
            break
    return ()
