"""Per operation, the layouts that a plan's tensor parallelism means: what ``--layer-detail`` shows and plans carry.

The plan says how parameters lie over ``tp`` and whether activations between blocks lie along the sequence. What remains
to be said, for every operation, is found exactly as layouts are in general (`planner.solvers.block_layout.problem`),
with these settled and no parameter gathered.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.layouts.placements import REPLICATE, Placement, shard
from planner.layouts.tensor_parallel import TensorParallel
from planner.plan import BlockLayout, Candidate
from planner.solvers.block_layout.detail import Detail, detail
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.model_layout import PlacedSegment
from planner.solvers.block_layout.problem import block_problem
from planner.solvers.block_layout.records import block_record
from planner.solvers.intra_op import project
from planner.solvers.setting import Setting


def planned_layouts(
    setting: Setting, candidate: Candidate, layouts: Sequence[TensorParallel]
) -> tuple[BlockLayout, ...]:
    """Layouts of the operations of every distinct block, under a candidate.

    Args:
        layouts: per block, what ``tp`` shards.
    """
    mesh = LayoutMesh(setting.cluster, ("tp",), (candidate.tp,))
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
    setting: Setting, candidate: Candidate, block: int, layout: TensorParallel, mesh: LayoutMesh
) -> Detail:
    """One distinct block in detail: the least that its operations cost where parameters lie as planned."""
    pins = {fqn: {"tp": _placement(layout, fqn, candidate.tp)} for fqn, _ in setting.graph.blocks[block].params}
    problem = block_problem(
        setting, block, mesh, batch=candidate.microbatch_size, pins=pins, tensor_parallel=layout,
        between="sequence" if candidate.sequence_parallel else "whole",
    )  # fmt: skip
    projection = project(problem.problem, [problem.exit] if problem.entry is None else [problem.entry, problem.exit])
    least = np.unravel_index(int(projection.table.argmin()), projection.table.shape)
    return detail(PlacedSegment(problem, projection.decode(tuple(int(i) for i in least))), mesh)


def _placement(layout: TensorParallel, fqn: str, tp: int) -> Placement:
    sharded = layout.params.get(fqn) if tp > 1 else None
    return shard(sharded.dim, sharded.num_chunks) if sharded else REPLICATE
