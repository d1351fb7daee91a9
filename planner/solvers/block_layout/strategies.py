"""Strategies of one operation over a whole mesh: products of what it may do on each axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import product
from math import prod

from planner.graph import Block, Value
from planner.layouts.placements import Layout
from planner.layouts.strategies import OpNode, Option


@dataclass(frozen=True, slots=True)
class Strategy:
    """One option per mesh axis."""

    options: tuple[Option, ...]
    inputs: tuple[Layout, ...]
    """Per input of the operation."""
    outputs: tuple[Layout, ...]
    shares: int
    """Devices that divide the operation among them; the others repeat it."""


def strategies(
    block: Block, node: OpNode, sizes: Sequence[int], chunks: Set[int] = frozenset()
) -> tuple[Strategy, ...]:
    """All products of a node's options in which axes that divide one factor do so together, and no inner part of a
    width is sharded while its axis could divide the part around it (a head's elements while there are heads).

    Args:
        sizes: of the mesh axes, outer to inner.
        chunks: numbers of parts that parameters are known to hold one after another (a fused gate and up projection):
            these are no widths that an axis could divide.
    """
    found = []
    for chosen in product(*([o for o in node.options if _offers(o, size)] for size in sizes)):
        if not _divide_together(chosen, sizes):
            continue
        strategy = Strategy(
            options=chosen,
            inputs=tuple(zip(*(option.inputs for option in chosen), strict=True)),
            outputs=tuple(zip(*(option.outputs for option in chosen), strict=True)),
            shares=prod(size for option, size in zip(chosen, sizes, strict=True) if option.factor is not None),
        )
        if all(_outermost(layout, block.values[v], sizes, chunks) for v, layout in placed(node, strategy)):
            found.append(strategy)
    return tuple(found)


def placed(node: OpNode, strategy: Strategy) -> tuple[tuple[int, Layout], ...]:
    """(value, layout) of all that an operation reads and makes."""
    return (*zip(node.inputs, strategy.inputs, strict=True), *zip(node.outputs, strategy.outputs, strict=True))


def _offers(option: Option, size: int) -> bool:
    """Over an axis of one device there is nothing to shard or to sum."""
    return option.splits(size) and (size > 1 or all(p.kind == "R" for p in (*option.inputs, *option.outputs)))


def _divide_together(chosen: Sequence[Option], sizes: Sequence[int]) -> bool:
    together: Counter[int] = Counter()
    for option, size in zip(chosen, sizes, strict=True):
        if option.factor is not None:
            together[option.factor] = max(1, together[option.factor]) * size
            if not option.splits(together[option.factor]):
                return False
    return True


def _outermost(layout: Layout, value: Value, sizes: Sequence[int], chunks: Set[int]) -> bool:
    for axis, placement in enumerate(layout):
        if placement.chunks in (1, *chunks) or value.dims[placement.dim].slope or value.dims[placement.dim].per_batch:
            continue
        taken = prod(
            size
            for other, size in zip(layout, sizes, strict=True)
            if other.dim == placement.dim and other.chunks < placement.chunks
        )
        if placement.chunks % (taken * sizes[axis]) == 0:
            return False
    return True
