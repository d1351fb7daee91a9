"""Nodes of blocks by the code of one rank: on every rank of an axis in turn, or on the rank that this process is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from planner.capture.program import Call, SegmentProgram
from planner.graph import Block, Dim, Op, Segment
from planner.layouts.placements import Layout
from planner.layouts.strategies import Option
from planner.runtime.nodes import executed
from planner.runtime.parts import AxisGroups
from planner.solvers.block_layout.detail import PlacedOp
from tests.planner.layouts import aten
from tests.planner.layouts.strategies.harness import Whole, gradients, leaf
from tests.planner.layouts.strategies.running import Node
from tests.planner.runtime.counting import Counting
from tests.planner.solvers.block_layout import ranks

CPU = torch.device("cpu")
Held = Mapping[int, Tensor]
Sizes = tuple[int, ...]


def call_of(op: Op) -> Call:
    """The operation with torch's own arguments; epsilons as `aten.EPS`."""
    if op.name in ("attention", "rms_norm", "_grouped_mm"):
        more = {"attention": op.args[5:] or (0.0, None), "rms_norm": (aten.EPS,)}.get(op.name, ())
        count = {"attention": 5, "rms_norm": 3, "_grouped_mm": 3}[op.name]
        return Call(getattr(torch.ops.meshwright, op.name).default, (*op.args[:count], *more), {})
    args, keywords = aten._bind(op, list(op.args))
    return Call(aten._overload(op), tuple(args), keywords)


def placed(node: Node, *options: Option) -> PlacedOp:
    """A node under one option for each axis."""

    def layouts(values: Sequence[int], name: str) -> tuple[tuple[int, Layout], ...]:
        return tuple((v, tuple(getattr(option, name)[i] for option in options)) for i, v in enumerate(values))

    return PlacedOp(
        ops=node.node.ops,
        inputs=layouts(node.node.inputs, "inputs"),
        outputs=layouts(node.node.outputs, "outputs"),
        implementations=tuple(option.implementation for option in options),
        forward_s=0.0,
        backward_s=0.0,
        redistributed=(),
    )


def run_on(node: Node, how: PlacedOp, mesh: AxisGroups, held: Held) -> Mapping[int, Any]:
    """What a rank makes of its tensors."""
    forward = [op for op in node.block.ops if op.phase == "forward"]
    calls = tuple(call_of(op) if i in node.node.ops else None for i, op in enumerate(forward))
    segment = SegmentProgram(Segment(0, "", ()), sized(node), calls, {}, {})  # type: ignore[arg-type]
    return executed(segment, node.block, how, mesh, batch=1, device=CPU)(held)


def sized(node: Node) -> Block:
    """The block at the node's sizes, and in the tests' precision."""
    values = tuple(
        replace(value, dims=tuple(map(Dim, shape)), dtype="float64" if "float" in value.dtype else value.dtype)
        for value, shape in zip(node.block.values, node.shapes, strict=True)
    )
    return replace(node.block, values=values)


def laid(how: PlacedOp, whole: Whole, sizes: Sizes, rank: int) -> tuple[Held, Held]:
    """A rank's inputs and gradients of outputs."""
    duals = {v: tuple(p.gradient for p in layout) for v, layout in how.outputs}
    inputs = {v: ranks.lay(whole.inputs[v], layout, sizes)[rank] for v, layout in how.inputs}
    return inputs, {v: ranks.lay(grad, duals[v], sizes)[rank] for v, grad in whole.output_grads.items()}


class Result(NamedTuple):
    """Of one rank."""

    outputs: Held
    input_grads: Held
    told: dict[str, list[tuple[str, int]]]
    """By pass: kinds of collectives with their bytes."""


def rank_result(node: Node, how: PlacedOp, mesh: AxisGroups, whole: Whole) -> Result:
    """A node on one rank, forward and backward."""
    rank = ranks.moving.ranks(mesh.sizes).index(mesh.coordinates)
    inputs, grads = laid(how, whole, mesh.sizes, rank)
    leaves = {v: leaf(t, v in node.gradients) for v, t in inputs.items()}
    with Counting() as forward:
        outputs = {v: t for v, t in run_on(node, how, mesh, leaves).items() if t is not None}
    with Counting() as backward:
        given = {v: grad for v, grad in grads.items() if outputs[v].requires_grad}
        found = gradients([outputs], [leaves], [given])[0]
    return Result(
        outputs={v: t.detach() for v, t in outputs.items()},
        input_grads={v: found[v] for v in leaves if v in node.gradients},
        told={"forward": forward.seen, "backward": backward.seen},
    )


def compare(node: Node, how: PlacedOp, sizes: Sizes, whole: Whole, results: Sequence[Result]) -> None:
    """Assert that what ranks made, put together, is what the whole makes."""
    read, made = dict(how.inputs), dict(how.outputs)
    for v in node.checked:
        if all(v in result.outputs for result in results):
            parts = [result.outputs[v] for result in results]
            together = ranks.put_together(parts, made[v], node.shapes[v], sizes)
            assert ranks.close(together, whole.outputs[v]), f"output {v} is not {made[v]}"
    for v, expected in whole.input_grads.items():
        layout = tuple(p.gradient for p in read[v])
        together = ranks.put_together([result.input_grads[v] for result in results], layout, node.shapes[v], sizes)
        assert ranks.close(together, expected), f"gradient of input {v} is not that of {read[v]}"


def alone(*sizes: int, rank: Sizes, zigzag: int = 1) -> AxisGroups:
    """A rank of a mesh that cannot communicate."""
    return AxisGroups(("a", "b", "c")[: len(sizes)], sizes, rank, (None,) * len(sizes), zigzag)


def check_in_turn(node: Node, option: Option, num_ranks: int, whole: Whole) -> None:
    """An option without communication, one rank after the other."""
    results, how = [], placed(node, option)
    for rank in range(num_ranks):
        torch.manual_seed(0)
        results.append(rank_result(node, how, alone(num_ranks, rank=(rank,)), whole))
    compare(node, how, (num_ranks,), whole, results)
