"""Convolutions and pooling: batch and channels like a matrix product, positions by exchanging halos."""

from __future__ import annotations

from dataclasses import dataclass

from planner.graph import Op
from planner.layouts.atoms import Factors
from planner.layouts.relations import Dims, Relations, Rule
from planner.layouts.rules.arguments import ints_at
from planner.layouts.rules.linear import contract
from planner.layouts.rules.norms import like_inputs


def _convolution(relations: Relations, op: Op) -> list[Dims]:
    """[n, c_in, ...] * [c_out, c_in / groups, ...] -> [n, c_out, ...]; of transposed ones, weights are [c_in, ...]."""
    source, kernel = op.inputs[:2]
    x, weight = relations.of(source), relations.of(kernel)
    relations.linear(source, *op.inputs[2:])
    relations.linear(kernel, *op.inputs[2:])
    relations.fix(*weight[2:])
    groups = op.args[8]
    if op.args[6] is True:
        contract(relations, source, kernel, x[1], weight[0])
        relations.fix(*x[2:], *(x[1:2] if groups != 1 else ()))
        fresh = relations.fresh(op.outputs[0])
        channels = weight[1] if groups == 1 else fresh[1]
        relations.bear(*fresh[2:], *((channels,) if groups != 1 else ()))
        for bias in op.inputs[2:]:
            relations.unify(channels, relations.of(bias)[0])
        return [[x[0], channels, *fresh[2:]]]
    if groups == 1:
        contract(relations, source, kernel, x[1], weight[1])
    else:
        _group(relations, x[1], weight, relations.shapes[source][1] // relations.shapes[kernel][1],
               (relations.shapes[source][1], relations.shapes[kernel][0]))  # fmt: skip
    for bias in op.inputs[2:]:
        relations.unify(weight[0], relations.of(bias)[0])
    windows = _windows(op, (3, 4, 5), relations.shapes[kernel][2:])
    return [[x[0], weight[0], *_positions(relations, op, windows)]]


def _group(relations: Relations, x: Factors, weight: Dims, groups: int, sizes: tuple[int, int]) -> None:
    """Channels of input and output are (group, channel of the group); each group is a convolution of its own.

    Args:
        sizes: channels of input and output.
    """
    group, inner = relations.atoms.regroup(x, (groups, sizes[0] // groups), relations.index)
    other, _ = relations.atoms.regroup(weight[0], (groups, sizes[1] // groups), relations.index)
    relations.unify(group, other)
    relations.unify(inner, weight[1])
    relations.contract(inner)


@dataclass(frozen=True, slots=True)
class Window:
    """What an element of the result reads along one dim."""

    size: int
    stride: int
    padding: int
    dilation: int = 1

    @property
    def overlaps(self) -> bool:
        """Whether windows reach beyond their own ``stride`` elements."""
        return self.padding > 0 or self.dilation * (self.size - 1) >= self.stride


def _positions(relations: Relations, op: Op, windows: list[Window]) -> Dims:
    """Positions of the result: where there is one for every ``stride`` of the argument's, they are sharded together."""
    before, after = relations.shapes[op.inputs[0]], relations.shapes[op.outputs[0]]
    lead = len(before) - len(windows)
    results: Dims = []
    for d, window in enumerate(windows, start=lead):
        dim = relations.of(op.inputs[0])[d]
        if before[d] == after[d] * window.stride:
            outer, inner = relations.atoms.regroup(dim, (after[d], window.stride), relations.index)
            relations.fix(inner)
            if window.overlaps:
                relations.fix(outer, via="halo")
            results.append(outer)
        else:
            relations.fix(dim)
            results.append(relations.atoms.new(after[d]))
            relations.bear(results[-1])
    return results


def _windows(op: Op, positions: tuple[int, ...], sizes: tuple[int, ...]) -> list[Window]:
    """Windows of the dims of ``sizes``; ``positions`` of the arguments stride, padding and dilation."""
    count = len(sizes)
    defaults = (sizes, (0,) * count, (1,) * count)
    given = (found * count if len(found) == 1 else found for found in (ints_at(op, p) for p in positions))
    stride, padding, dilation = (found or default for found, default in zip(given, defaults, strict=True))
    return [Window(*w) for w in zip(sizes, stride, padding, dilation, strict=True)]


def _pool(relations: Relations, op: Op) -> list[Dims]:
    dims = relations.of(op.inputs[0])
    before, after = relations.shapes[op.inputs[0]], relations.shapes[op.outputs[0]]
    lead = len(before) - 2
    if op.name == "_adaptive_avg_pool2d":
        windows = [Window(n // o, n // o, 0) for n, o in zip(before[lead:], after[lead:], strict=True)]
    else:
        sizes = ints_at(op, 1)
        dilation = 4 if op.name == "max_pool2d_with_indices" else len(op.args)
        windows = _windows(op, (2, 3, dilation), sizes * 2 if len(sizes) == 1 else sizes)
    if op.name != "max_pool2d_with_indices":
        relations.linear(op.inputs[0])
    results = [*dims[:lead], *_positions(relations, op, windows)]
    return [results for _ in op.outputs]


RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "convolution_backward": like_inputs(1, 2),
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"), _pool),
}
