"""What moving from one plan to another takes, against explicit sets of elements."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np
import pytest

from planner.fixed_plan import even_cuts
from planner.layouts.model import analyse_model, param_layouts
from planner.layouts.pins import matches
from planner.layouts.placements import parse
from planner.moving import Holding, moving
from planner.plan import Candidate, ExpertPlacement, Plan, PlanInputs, Stage
from planner.solvers.setting import Setting
from planner.stages import stage_cuts
from tests.planner.solvers.small import setting


def plan_of(case: Setting, **degrees: Any) -> Plan:
    named: dict[str, Any] = {
        "pp": 1, "dp_replicate": 1, "dp_shard": 1, "cp": 1, "tp": 1, "sequence_parallel": True, "zero_stage": 3,
        "microbatch_size": 1, "num_microbatches": 4, "recompute": "none",
    }  # fmt: skip
    experts = degrees.pop("experts", ())
    c = Candidate(**(named | degrees))
    c = c if c.state_shard > 1 else replace(c, zero_stage=0)
    cuts, segments = even_cuts(case, c), case.graph.segments
    return Plan(
        inputs=PlanInputs(model="m", hardware="h", num_devices=c.num_devices, job=case.job),
        candidate=c,
        experts=experts,
        layouts=param_layouts(analyse_model(case.graph), c),
        stages=tuple(
            Stage(modules=tuple(m for segment in segments[a:b] for m in segment.modules)) for a, b in pairwise(cuts)
        ),
    )


def chunked(size: int, count: int, index: int) -> range:
    longest = -(-size // count)
    return range(min(size, index * longest), min(size, (index + 1) * longest))


def elements(case: Setting, plan: Plan, rank: int) -> set[tuple[str, tuple[int, ...]]]:
    """Every element of every parameter that a rank holds, straight from the meaning of placements: cut the whole
    tensor's index lists axis by axis, outer to inner as data parallelism comes last."""
    c, graph = plan.candidate, case.graph
    pp, rest = divmod(rank, c.num_devices // c.pp)
    neighbour = rest % (c.dp_shard * c.cp * c.tp)
    cuts, found = stage_cuts(graph, plan.stages), set()
    for stage, holder in enumerate(plan.stage_ranks):
        if holder != pp:
            continue
        for segment in graph.segments[cuts[stage] : cuts[stage + 1]]:
            for relative, _ in graph.blocks[segment.block].params:
                fqn = graph.canonical(segment, relative)
                shape = next(p.shape for p in graph.params if p.fqn == fqn)
                layout = next(one for one in plan.layouts if matches(one.pattern, fqn))
                index = [list(range(size)) for size in shape]
                if "ep" in layout.placements:
                    own, shard, count = neighbour % c.ep, neighbour // c.ep, c.dp_shard * c.cp * c.tp // c.ep
                    held = [e for e in range(shape[0]) if e in chunked(shape[0], c.ep, own)]
                    for placed in plan.experts:
                        held = [e for e, ranks in enumerate(placed.ranks) if own in ranks]
                    index[0] = held
                else:
                    shard, count = neighbour // c.tp, c.dp_shard * c.cp
                    place = parse(layout.placements["tp"])
                    if place.kind == "S":
                        run = shape[place.dim] // layout.num_chunks
                        index[place.dim] = [
                            i for i in index[place.dim] if i % run in chunked(run, c.tp, neighbour % c.tp)
                        ]
                dims = {layout.placements[axis] for axis in ("dp_shard", "cp")} - {"R"}
                for text in dims:
                    along = index[parse(text).dim]
                    index[parse(text).dim] = [along[i] for i in chunked(len(along), count, shard)]
                found |= {(fqn, place) for place in product(*index)}
    return found


CASES: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("gqa", {"dp_shard": 8}, {"dp_shard": 4}, 4),
    ("gqa", {"dp_shard": 4, "tp": 2}, {"pp": 2, "dp_shard": 3}, 2),
    ("gqa", {"pp": 2, "dp_shard": 2, "tp": 2}, {"dp_shard": 2, "tp": 2}, 3),
    ("gqa", {"dp_replicate": 2, "dp_shard": 2, "cp": 2}, {"dp_shard": 3, "cp": 2}, 2),
    ("thirds", {"tp": 4}, {"dp_shard": 1, "tp": 2}, 2),
    ("mixtral", {"dp_shard": 4, "tp": 2, "ep": 4}, {"dp_shard": 2, "tp": 2, "ep": 2}, 1),
    ("mixtral", {"pp": 2, "num_chunks": 2, "schedule": "zb-v", "zero_stage": 2, "dp_shard": 2}, {"dp_shard": 3}, 1),
]


@pytest.mark.parametrize(("family", "before", "after", "num_lost"), CASES)
def test_elements_are_counted_as_sets_are(
    family: str, before: dict[str, Any], after: dict[str, Any], num_lost: int
) -> None:
    case = setting(family)
    old, new = plan_of(case, **before), plan_of(case, **after)
    alive = [True] * (old.candidate.num_devices - num_lost) + [False] * num_lost
    found = moving(Holding(case.graph, old), Holding(case.graph, new), alive)
    had = [elements(case, old, rank) for rank in range(old.candidate.num_devices)]
    left = set().union(*(held for held, is_alive in zip(had, alive, strict=True) if is_alive))
    for rank in range(new.candidate.num_devices):
        wanted = elements(case, new, rank)
        kept = wanted & had[rank] if alive[rank] else set()
        assert found.held[rank] == len(wanted)
        assert found.kept[rank] == len(kept)
        assert found.lost[rank] == len(wanted - left)
        assert found.fetched[rank] == len((wanted & left) - kept)


def test_the_same_plan_moves_nothing() -> None:
    case = setting("gqa")
    plan = plan_of(case, dp_shard=4, tp=2)
    found = moving(Holding(case.graph, plan), Holding(case.graph, plan), [True] * 8)
    assert (found.held == found.kept).all()
    assert not found.fetched.any()
    assert not found.lost.any()


def test_shares_of_one_replica_cover_the_model_once() -> None:
    case = setting("gqa")
    plan = plan_of(case, pp=2, dp_replicate=2, dp_shard=2)
    found = moving(Holding(case.graph, plan), Holding(case.graph, plan), [True] * 8)
    assert int(found.held.sum()) == 2 * sum(prod(p.shape) for p in case.graph.params)


def test_replicas_of_experts_are_held_by_each() -> None:
    case = setting("mixtral")
    num_experts = next(p.shape[0] for p in case.graph.params if len(p.shape) == 3)
    ranks = tuple((0, 1) if e < 2 else (e % 2,) for e in range(num_experts))
    placed = (ExpertPlacement(block="layers.*", ranks=ranks),)
    plan = plan_of(case, dp_shard=2, ep=2, experts=placed)
    found = moving(Holding(case.graph, plan), Holding(case.graph, plan), [True, True])
    assert [int(n) for n in found.held] == [len(elements(case, plan, rank)) for rank in (0, 1)]
    assert np.array_equal(found.held, found.kept)
