"""Blocks of a few operations written by hand, in a model of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hardware_profiles.load import load_cluster
from planner.graph import Block, Dim, ModelGraph, Op, Parameter, Ref, Segment, Value
from planner.job import Job
from planner.layouts.placements import Layout, Shape, parse
from planner.solvers.block_layout.problem import BlockProblem, block_problem
from planner.solvers.setting import Setting
from tests.planner.solvers.block_layout.cases import mesh_of

CLUSTER = load_cluster("h100-sxm:1x8")
Call = tuple[Any, ...]
"""Operator with overload, its arguments (names of values, or numbers), and the name of its result."""


def written(values: Mapping[str, Shape], inputs: Sequence[str], params: Sequence[str], calls: Sequence[Call],
            outputs: Sequence[str], *, saved: Sequence[str] = (), dtype: str = "float32") -> Block:  # fmt: skip
    """A block whose values have names; each of ``saved`` is read by a backward operation."""
    names = [*values, *(f"grad of {p}" for p in params), "gone"]
    shapes = [*values.values(), *(values[p] for p in params), ()]
    at = {name: i for i, name in enumerate(names)}
    ops = [_op(call, at) for call in calls]
    ops += [Op("sum.default", "", "backward", (Ref(at[v]),), (at[v],), (at["gone"],), pointwise=False) for v in saved]
    return Block(
        values=tuple(Value(tuple(map(Dim, shape)), dtype, i) for i, shape in enumerate(shapes)),
        ops=tuple(ops),
        params=tuple((p, at[p]) for p in params),
        inputs=tuple(at[v] for v in inputs),
        outputs=tuple(at[v] for v in outputs),
        param_grads=tuple((p, at[f"grad of {p}"]) for p in params),
    )


def _op(call: Call, at: Mapping[str, int]) -> Op:
    target, *given, result = call
    args = tuple(Ref(at[a]) if isinstance(a, str) else a for a in given)
    return Op(target, "", "forward", args, tuple(a.value for a in args if isinstance(a, Ref)), (at[result],),
              pointwise=target.startswith(("add", "mul", "relu")))  # fmt: skip


def setting_of(block: Block, *, precision: str = "fp32") -> Setting:
    graph = ModelGraph(
        name="hand", blocks=(block,), segments=(Segment(0, "", ("m",)),),
        params=tuple(Parameter(fqn, block.values[v].shape(1, 1), True) for fqn, v in block.params),
        aliases={}, crossings=(), resident_bytes=(0,), fixed_seq_len=1, has_sequence=False, warnings=(),
    )  # fmt: skip
    return Setting(graph, CLUSTER, Job(global_batch=1, seq_len=1, precision=precision))


def problem_of(block: Block, *sizes: int, precision: str = "fp32", **given: Any) -> BlockProblem:
    return block_problem(setting_of(block, precision=precision), 0, mesh_of(CLUSTER, *sizes), batch=1, **given)


def layout(text: str) -> Layout:
    """Placements, outer axis first, with spaces between."""
    return tuple(map(parse, text.split()))


def chosen(problem: BlockProblem, texts: Mapping[str, str]) -> tuple[int, ...]:
    """The choice in which layouts are these: of entry, exit, parameters by name, and operations by ``#index``, as
    inputs and outputs one after another."""
    choice = []
    for node in problem.choices:
        if node.op is None:
            key = node.fqn if node.kind == "param" else f"meeting {node.value}" if node.kind == "meeting" else node.kind
            choice.append(node.layouts.index(layout(texts[key])))
        else:
            wanted = [layout(text) for text in texts[f"#{node.op.ops[-1]}"].split(", ")]
            choice.append([[*s.inputs, *s.outputs] for s in node.strategies].index(wanted))
    return tuple(choice)
