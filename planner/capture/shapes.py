"""Shapes as functions of batch and sequence length, found by tracing at a few points and checked at one more.

Every dim is sought as ``(const + slope * seq_len) * (batch or 1)``: solved from (b0, s0), (b1, s0), (b0, s1) and
*checked* at a fourth point in which both differ. The operations must be the same at every point. Interpolation is
used rather than symbolic tracing because a model meets only ordinary ints and so cannot specialise on, or trip over,
symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from planner.capture.segments import RawModel
from planner.graph import Block, Dim, Value


class ShapeMismatchError(Exception):
    """The points do not describe one program: where they differ."""


@dataclass(frozen=True)
class Point:
    batch: int
    seq_len: int
    model: RawModel


def fit(points: Sequence[Point]) -> RawModel:
    """One model with symbolic dims that reproduces every point exactly.

    Args:
        points: base point, one with another batch, optionally one with another sequence length, and a check point.
    Raises:
        ShapeMismatchError: operations or dims that no such function describes.
    """
    first = points[0].model
    for point in points[1:]:
        if _outline(point.model) != _outline(first):
            raise ShapeMismatchError(f"the sequence of modules at batch {point.batch}, seq_len {point.seq_len} differs")
    return RawModel(
        blocks=tuple(_fit_block(points, i) for i in range(len(first.blocks))),
        segments=first.segments,
        crossings=tuple(
            tuple(
                _fit_value(points, [point.model.crossings[i][j] for point in points])
                for j in range(len(first.crossings[i]))
            )
            for i in range(len(first.crossings))
        ),
    )


def _fit_block(points: Sequence[Point], index: int) -> Block:
    blocks = [point.model.blocks[index] for point in points]
    base = blocks[0]
    for point, block in zip(points, blocks, strict=True):
        if _program(block) != _program(base):
            raise ShapeMismatchError(f"the operations at batch {point.batch}, seq_len {point.seq_len} differ")
    values = tuple(_fit_value(points, [block.values[i] for block in blocks]) for i in range(len(base.values)))
    return replace(base, values=values)


def _outline(model: RawModel) -> tuple[object, ...]:
    return model.segments, len(model.blocks), [len(values) for values in model.crossings]


def _program(block: Block) -> tuple[object, ...]:
    """All of a block but sizes."""
    return (
        [(op.target, op.fqn, op.phase, op.inputs, op.outputs) for op in block.ops],
        [(value.dtype, value.storage) for value in block.values],
        (block.params, block.inputs, block.outputs, block.param_grads),
    )


def _fit_value(points: Sequence[Point], values: Sequence[Value]) -> Value:
    if len({len(value.dims) for value in values}) != 1:
        raise ShapeMismatchError("the number of dims of a tensor differs between points")
    sizes = zip(*([int(dim.const) for dim in value.dims] for value in values), strict=True)
    return replace(values[0], dims=tuple(_fit_dim(points, column) for column in sizes))


def _fit_dim(points: Sequence[Point], sizes: Sequence[int]) -> Dim:
    base = points[0]
    per_batch = any(point.batch != base.batch and point.seq_len == base.seq_len and size != sizes[0]
                    for point, size in zip(points, sizes, strict=True))  # fmt: skip
    unit = [Fraction(size, point.batch if per_batch else 1) for point, size in zip(points, sizes, strict=True)]
    slope = Fraction(0)
    for point, value in zip(points, unit, strict=True):
        if point.seq_len != base.seq_len and point.batch == base.batch:
            slope = (value - unit[0]) / (point.seq_len - base.seq_len)
            break
    const = unit[0] - slope * base.seq_len
    dim = Dim(_plain(const), _plain(slope), per_batch)
    for point, size, value in zip(points, sizes, unit, strict=True):
        if const + slope * point.seq_len != value:  # exactly: `Dim.at` drops fractions
            raise ShapeMismatchError(
                f"a dim of size {sizes[0]} is {size} at batch {point.batch}, seq_len {point.seq_len}"
            )
    return dim


def _plain(number: Fraction) -> Fraction | int:
    return int(number) if number.denominator == 1 else number
