"""Solved blocks as records: what plan files carry and reports show of every operation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from planner import ops
from planner.graph import Block, ModelGraph, Segment
from planner.layouts.placements import Layout
from planner.layouts.tensor_parallel import REFERENCE_SEQ_LEN
from planner.plan import BlockLayout, OperationLayout, Redistribution
from planner.solvers.block_layout.detail import Detail, Redistributed

NUMBER = r"(?<![^.])\d+(?![^.])"
"""A path component that is a number."""


def block_record(graph: ModelGraph, calls: Sequence[Segment], found: Detail) -> BlockLayout:
    """The record of a distinct block.

    Args:
        calls: segments that are laid out so.
    """
    b = calls[0].block
    names = [name for segment in calls for name in ([segment.prefix] if segment.prefix else segment.modules)]
    if len(calls) == sum(segment.block == b for segment in graph.segments):
        names = [re.sub(NUMBER, "*", name) for name in names]
    else:
        names = list(_runs(names))
    return BlockLayout(
        modules=tuple(dict.fromkeys(names)), calls=len(calls), operations=tuple(_operations(graph.blocks[b], found))
    )


def _runs(names: Sequence[str]) -> Iterator[str]:
    """Names that count on, ``layers.1``, ``layers.2``, ``layers.3``, as one: ``layers.1-3``."""
    open_: tuple[str, int, int] | None = None
    for name in names:
        numbers = list(re.finditer(NUMBER, name))
        if open_ and numbers and (open_[0], open_[2] + 1) == (re.sub(NUMBER, "{}", name, count=1), int(numbers[0][0])):
            open_ = open_[0], open_[1], open_[2] + 1
            continue
        if open_:
            yield _run(*open_)
        if not numbers:
            yield name
        open_ = (re.sub(NUMBER, "{}", name, count=1), *(int(numbers[0][0]),) * 2) if numbers else None
    if open_:
        yield _run(*open_)


def _run(text: str, first: int, last: int) -> str:
    return text.format(first if first == last else f"{first}-{last}")


def layout_text(layout: Layout) -> str:
    """Placements, outer axis first: ``S(0),B``."""
    return ",".join(map(str, layout))


def _operations(block: Block, found: Detail) -> Iterator[OperationLayout]:
    """What launches kernels or waits for others; bare views are told by what is around them."""
    shapes = [value.shape(1, REFERENCE_SEQ_LEN) for value in block.values]
    waiting: list[Redistributed] = []
    for placed in found.ops:
        members = [block.ops[i] for i in placed.ops]
        waiting.extend(placed.redistributed)
        if len(members) == 1 and ops.is_free(members[0], block):
            continue
        named = max(reversed(members), key=lambda op: ops.flop(op, shapes))
        yield OperationLayout(
            module=named.fqn,
            operation=named.name,
            inputs=tuple(layout_text(layout) for _, layout in placed.inputs),
            outputs=tuple(layout_text(layout) for _, layout in placed.outputs),
            implementation="+".join(dict.fromkeys(i for i in placed.implementations if i != "local")) or "local",
            forward_s=placed.forward_s,
            backward_s=placed.backward_s,
            redistributions=tuple(_redistributions(waiting)),
        )
        waiting.clear()
    if found.leaving:
        yield OperationLayout(
            module="", operation="output", inputs=(), outputs=(), implementation="local", forward_s=0.0, backward_s=0.0,
            redistributions=tuple(_redistributions(found.leaving)),
        )  # fmt: skip


def _redistributions(moved: Sequence[Redistributed]) -> Iterator[Redistribution]:
    for one in moved:
        for step in one.steps:
            if step.forward_s or step.backward_s:
                yield Redistribution(
                    source=layout_text(step.move.source), target=layout_text(step.move.target),
                    forward=step.move.forward, backward=step.move.backward, num_bytes=int(step.num_bytes),
                    forward_s=one.gathers * step.forward_s, backward_s=step.backward_s,
                )  # fmt: skip
