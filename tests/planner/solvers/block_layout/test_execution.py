"""Solved layouts, and any others that the problem allows, against the same block on one device, on real numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from planner.solvers.block_layout.model_layout import PlacedSegment
from planner.solvers.block_layout.problem import BlockProblem, block_problem
from planner.solvers.block_layout.solving import solve_layouts
from planner.solvers.intra_op import project
from tests.planner.layouts.strategies.models import SMALL
from tests.planner.solvers.block_layout.cases import mesh_of, slow, tiny
from tests.planner.solvers.block_layout.executing import Run, Whole

BATCH = 4
MESHES = ((2,), (4,), (2, 2))


@cache
def problems(family: str, sizes: tuple[int, ...]) -> tuple[tuple[BlockProblem, Whole], ...]:
    """Of every distinct block, with its run on one device."""
    cluster = slow(4)
    setting, mesh = tiny(family, cluster, batch=BATCH), mesh_of(cluster, *sizes)
    found = (block_problem(setting, i, mesh, batch=BATCH) for i in range(len(setting.graph.blocks)))
    return tuple((problem, Whole(problem)) for problem in found)


def any_choice(problem: BlockProblem, seed: int) -> tuple[int, ...]:
    """One that the problem allows: the best by random prices."""
    random = np.random.default_rng(seed)
    priced = replace(
        problem.problem,
        costs=tuple(
            np.where(np.isfinite(costs), random.random(costs.shape), np.inf) for costs in problem.problem.costs
        ),
        edge_costs=tuple(np.where(np.isfinite(costs), 0.0, np.inf) for costs in problem.problem.edge_costs),
        usages=((),) * problem.problem.num_nodes,
    )
    seen = project(priced, [problem.exit])
    return seen.decode((int(seen.table.argmin()),))


def choices(family: str, sizes: tuple[int, ...]) -> Iterator[tuple[PlacedSegment, Whole]]:
    for problem, whole in problems(family, sizes):
        for seed in range(3):
            yield PlacedSegment(problem, any_choice(problem, seed)), whole


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("family", SMALL)
def test_any_choice_that_the_problem_allows_gives_the_values_and_gradients_of_the_whole(
    family: str, sizes: tuple[int, ...]
) -> None:
    for segment, whole in choices(family, sizes):
        Run(segment, mesh_of(slow(4), *sizes), whole).check()


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("family", SMALL)
def test_the_best_layouts_give_the_values_and_gradients_of_the_whole(family: str, sizes: tuple[int, ...]) -> None:
    cluster = slow(4)
    setting, mesh = tiny(family, cluster, batch=BATCH), mesh_of(cluster, *sizes)
    solution = solve_layouts(setting, mesh, batch=BATCH)
    wholes = [whole for _, whole in problems(family, sizes)]
    done = set()
    for segment, i in zip(solution.best.segments, setting.block_of, strict=True):
        if (i, segment.choice) not in done:
            done.add((i, segment.choice))
            Run(segment, mesh, wholes[i]).check()
