"""A node of a plan's layouts as one rank runs it: one operation or a few, by itself or with those of its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from planner.capture.program import SegmentProgram
from planner.graph import Block
from planner.runtime.implementations import IMPLEMENTATIONS
from planner.runtime.operations import in_turn
from planner.runtime.parts import AxisGroups
from planner.runtime.site import Held, Site
from planner.solvers.block_layout.detail import PlacedOp

Executed = Callable[[Held], Mapping[int, Any]]
"""From a node's inputs to its outputs, both by value; ``None`` for those that only ATen's backward pass would read."""


def executed(
    segment: SegmentProgram, symbolic: Block, placed: PlacedOp, mesh: AxisGroups, *, batch: int, device: torch.device
) -> Executed:
    """Everything about a node worked out but the tensors.

    Args:
        symbolic: the segment's block with sizes as functions of the sequence.
        batch: samples of the microbatch.
    """
    block = segment.block
    site = Site(
        block=block,
        symbolic=symbolic,
        shapes=tuple(value.shape(1, 1) for value in block.values),
        layouts=dict((*placed.inputs, *placed.outputs)),
        mesh=mesh,
        device=device,
        batch=batch,
    )
    ops, calls = [block.ops[i] for i in placed.ops], [segment.calls[i] for i in placed.ops]
    kind = _kind(placed, [op.name for op in ops])
    run = IMPLEMENTATIONS[kind](ops, calls, site, placed.implementations) if kind else in_turn(ops, calls, site)
    outputs = [v for v, _ in placed.outputs]

    def all_of(held: Held) -> Mapping[int, Any]:
        made = run(held)
        return {v: made.get(v) for v in outputs}

    return all_of


def _kind(placed: PlacedOp, names: list[str]) -> str:
    """The name of the implementation; empty where each operation runs by itself."""
    if len(names) > 1:
        return "loss" if "nll_loss_forward" in names else "experts" if "_grouped_mm" in names else ""
    told = [name for name in placed.implementations if name != "local"]
    return "loss" if names == ["nll_loss_forward"] else next(iter(told), "")
