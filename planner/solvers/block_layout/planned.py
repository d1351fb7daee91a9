"""Per operation, the layouts that a plan means: what ``--layer-detail`` shows, plans carry and the runtime executes.

The plan says how parameters lie over ``tp``, how activations lie between blocks and how attention reaches the keys of
other ``cp`` ranks. What remains to be said, for every operation, is found exactly as layouts are in general
(`planner.solvers.block_layout.problem`), with these settled (`planner.solvers.block_layout.meaning`) and no parameter
gathered. What the plan says of an operation itself is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner import ops
from planner.errors import UsageError
from planner.graph import ModelGraph
from planner.job import Pin
from planner.layouts.experts import find_experts
from planner.layouts.model import ModelLayouts, analyse_model
from planner.layouts.pins import matches
from planner.layouts.placements import BROADCAST, REPLICATE, Placement, parse, shard
from planner.layouts.strategies import OpNode, block_nodes
from planner.layouts.tensor_parallel import TensorParallel
from planner.plan import BlockLayout, Candidate, OperationLayout, Plan
from planner.solvers.block_layout.detail import Detail, detail
from planner.solvers.block_layout.meaning import Meaning, mesh_axes
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.model_layout import PlacedSegment
from planner.solvers.block_layout.problem import block_problem
from planner.solvers.block_layout.records import block_record
from planner.solvers.block_layout.values import BlockValues
from planner.solvers.intra_op import project
from planner.solvers.setting import Setting


@dataclass(frozen=True)
class PlacedBlocks:
    """Layouts of all operations of a model, under a plan."""

    mesh: LayoutMesh
    """Of ``tp``; where ``cp`` is not 1 of ``cp`` and ``tp``, or ``cp_ring``, ``cp_ulysses`` and ``tp``. Layouts have
    one placement for each of its axes."""
    blocks: tuple[Detail, ...]
    """Per distinct block of the graph."""


def placed_blocks(setting: Setting, plan: Plan) -> PlacedBlocks:
    """What a plan means for every operation of every distinct block.

    Raises:
        UsageError: the plan's layouts or operations are not of this model, or cannot be executed together.
    """
    graph, candidate = setting.graph, plan.candidate
    layouts = plan_layouts(graph, plan).at(candidate.tp)
    mesh = plan_mesh(setting, candidate)
    distinct = list(dict.fromkeys(setting.block_of))
    if plan.operations and len(plan.operations) != len(distinct):
        raise UsageError(
            f"the plan says how {len(plan.operations)} distinct blocks are laid out; {graph.name} has {len(distinct)}. "
            "Plan again, or leave operations out."
        )
    said = dict(zip(distinct, plan.operations, strict=False))
    return PlacedBlocks(
        mesh,
        tuple(
            planned_block(setting, candidate, b, layouts[b], mesh, said[b].operations if b in said else ())
            for b in range(len(graph.blocks))
        ),
    )


def plan_mesh(setting: Setting, candidate: Candidate) -> LayoutMesh:
    """The mesh that a candidate's operations are laid out over."""
    return LayoutMesh(setting.cluster, *mesh_axes(candidate))


def plan_layouts(graph: ModelGraph, plan: Plan) -> ModelLayouts:
    """What ``tp`` shards, as the plan's own layouts say; the planner's choice where it has none.

    Raises:
        UsageError: a parameter without layout, or layouts that tensor parallelism cannot mean.
    """
    if not plan.layouts or plan.candidate.tp == 1:
        return analyse_model(graph, plan.inputs.constraints.pins)
    pins = []
    for param in graph.params:
        said = next((layout for layout in plan.layouts if matches(layout.pattern, param.fqn)), None)
        if said is None:
            raise UsageError(f"layouts of the plan name no parameter {param.fqn} of {graph.name}. Plan again.")
        place = parse(said.placements.get("tp", "R"))
        if "ep" not in said.placements:
            pins.append(
                Pin(fqn=param.fqn, layout=f"tp:{shard(place.dim, said.num_chunks) if place.kind == 'S' else place}")
            )
    return analyse_model(graph, pins)


def planned_layouts(
    setting: Setting, candidate: Candidate, layouts: Sequence[TensorParallel]
) -> tuple[BlockLayout, ...]:
    """Layouts of the operations of every distinct block, under a candidate.

    Args:
        layouts: per block, what ``tp`` shards.
    """
    mesh = plan_mesh(setting, candidate)
    graph = setting.graph
    return tuple(
        block_record(
            graph,
            [segment for segment in graph.segments if segment.block == b],
            planned_block(setting, candidate, b, layouts[b], mesh),
        )
        for b in dict.fromkeys(setting.block_of)
    )


def planned_block(
    setting: Setting,
    candidate: Candidate,
    block: int,
    layout: TensorParallel,
    mesh: LayoutMesh,
    recorded: Sequence[OperationLayout] = (),
) -> Detail:
    """One distinct block in detail: the least that its operations cost where parameters lie as planned.

    Args:
        recorded: what the plan says of the operations that launch kernels, in order; may be none.
    Raises:
        UsageError: no layouts obey all that is settled.
    """
    values = BlockValues(setting, block, candidate.microbatch_size, mesh)
    meaning = Meaning(candidate, layout, _by_node(values, recorded))
    problem = block_problem(
        setting, block, mesh, batch=candidate.microbatch_size, pins=_pins(values, candidate, layout), settled=meaning
    )
    projection = project(problem.problem, [problem.exit] if problem.entry is None else [problem.entry, problem.exit])
    if not np.isfinite(projection.table).any():
        raise UsageError(
            f"{_where(setting, block)} cannot be laid out over {_sizes(mesh)} with context {candidate.context} and ep "
            f"{candidate.ep}: an operation offers nothing that fits the others. Take other degrees."
        )
    least = np.unravel_index(int(projection.table.argmin()), projection.table.shape)
    return detail(PlacedSegment(problem, projection.decode(tuple(int(i) for i in least))), mesh)


def _pins(values: BlockValues, candidate: Candidate, layout: TensorParallel) -> Mapping[str, Mapping[str, Placement]]:
    """Over ``tp`` as planned. Over other axes gradients stay partial sums, for data parallelism adds them up; so do
    those of experts that ``ep`` divides."""
    experts = find_experts(values.block) if candidate.ep > 1 else None
    pins = {}
    for fqn, _ in values.block.params:
        own = experts is not None and fqn in experts.params
        pins[fqn] = {
            axis: (BROADCAST if size > 1 else REPLICATE)
            if axis != "tp" or own
            else _placement(layout, fqn, candidate.tp)
            for axis, size in zip(values.mesh.axes, values.mesh.sizes, strict=True)
        }
    return pins


def _placement(layout: TensorParallel, fqn: str, tp: int) -> Placement:
    sharded = layout.params.get(fqn) if tp > 1 else None
    return shard(sharded.dim, sharded.num_chunks) if sharded else REPLICATE


def _by_node(values: BlockValues, recorded: Sequence[OperationLayout]) -> Mapping[tuple[int, ...], OperationLayout]:
    """What is said of each node that launches a kernel (`planner.solvers.block_layout.records`)."""
    if not recorded:
        return {}
    block = values.block
    nodes = [
        node
        for node in block_nodes(block, values.shapes, values.trained)
        if len(node.ops) > 1 or not ops.is_free(block.ops[node.ops[0]], block)
    ]
    said = [op for op in recorded if op.operation != "output"]
    wrong = [(n, s) for n, s in zip(nodes, said, strict=False) if s.operation not in _names(values, n)]
    if wrong or len(nodes) != len(said):
        found = f"{wrong[0][1].operation} for {_names(values, wrong[0][0])[-1]}" if wrong else f"{len(said)} operations"
        raise UsageError(
            f"the plan's operations are not those of {_where(values.setting, values.index)}, which has {len(nodes)}: "
            f"it says {found}. Plan again, or leave operations out."
        )
    return {node.ops: op for node, op in zip(nodes, said, strict=True)}


def _names(values: BlockValues, node: OpNode) -> list[str]:
    return [values.block.ops[i].name for i in node.ops]


def _where(setting: Setting, block: int) -> str:
    segment = setting.graph.segments[setting.block_of.index(block)]
    return f"{segment.prefix or ', '.join(segment.modules)} of {setting.graph.name}"


def _sizes(mesh: LayoutMesh) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in zip(mesh.axes, mesh.sizes, strict=True))
