"""Random problems small enough to try every choice, and where the contest's instances lie."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from planner.solvers.intra_op import Problem, Usage
from planner.solvers.intra_op.network import Network

INSTANCES = Path(__file__).parents[5] / "shared" / "validation" / "iopddl"


def instance(name: str) -> Path:
    """A contest instance; skips where there is none."""
    path = INSTANCES / f"{name}.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there: instances of the contest are not part of the repository")
    return path


def make(seed: int, *, limited: bool = True, whole: bool = True, forbidden: float = 0.1) -> Problem:
    """A problem of one to seven nodes: loops, parallel edges, several usages, ties, forbidden values and pairs."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 5, random.integers(1, 8))

    def costs(*shape: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        drawn = random.integers(-3, 12, shape).astype(float)
        if not whole:
            drawn += random.random(shape)
        drawn[random.random(shape) < forbidden] = np.inf
        return drawn

    edges = [tuple(map(int, random.integers(0, len(sizes), 2))) for _ in range(random.integers(0, 13))]
    usages = []
    for size in sizes:
        spans = [sorted(map(int, random.integers(0, 8, 2))) for _ in range(random.integers(0, 3))]
        usages.append(tuple(Usage(lo, hi, random.integers(0, 10, size).astype(float)) for lo, hi in spans))
    problem = Problem(
        costs=tuple(costs(size) for size in sizes),
        edges=tuple((i, j) for i, j in edges),
        edge_costs=tuple(costs(sizes[i], sizes[j]) for i, j in edges),
        usages=tuple(usages),
    )
    if not limited:
        return problem
    peaks = sorted(problem.peak(choice) for choice in choices(problem))
    # Between what every choice keeps and what none exceeds; a tenth of the problems is infeasible.
    limit = peaks[int(random.integers(len(peaks)))] if random.random() < 0.9 else peaks[0] - 1
    return Problem(problem.costs, problem.edges, problem.edge_costs, problem.usages, limit)


def choices(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Every choice."""
    return product(*(range(len(costs)) for costs in problem.costs))


def all_of(net: Network) -> list[dict[int, int]]:
    """Every choice of a network."""
    nodes = net.nodes
    return [dict(zip(nodes, values, strict=True)) for values in product(*(range(len(net.costs(i))) for i in nodes))]


def feasible_costs(problem: Problem) -> list[float]:
    """Finite costs of the choices within the limit."""
    limit = np.inf if problem.limit is None else problem.limit
    found = [problem.cost(choice) for choice in choices(problem) if problem.peak(choice) <= limit]
    return [cost for cost in found if cost < np.inf]


def optimum(problem: Problem) -> float | None:
    """Least cost of all choices within the limit; ``None`` when there is none."""
    return min(feasible_costs(problem), default=None)


problems = st.builds(
    make,
    st.integers(0, 10**6),
    limited=st.sampled_from([True, True, True, False]),
    whole=st.booleans(),
    forbidden=st.sampled_from([0.0, 0.1, 0.3]),
)


def grid(rows: int, columns: int, values: int, seed: int) -> Problem:
    """A grid of nodes, each live for a while, with a limit that binds: no elimination closes it, no two runs differ."""
    random = np.random.default_rng(seed)
    nodes = rows * columns
    edges = [(i, i + 1) for i in range(nodes) if (i + 1) % columns] + [(i, i + columns) for i in range(nodes - columns)]
    usages = tuple(
        (
            Usage(
                i,
                min(nodes, i + 1 + int(random.integers(1, 2 * columns))),
                random.integers(0, 50, values).astype(float),
            ),
        )
        for i in range(nodes)
    )
    problem = Problem(
        costs=tuple(random.integers(0, 100, values).astype(float) for _ in range(nodes)),
        edges=tuple(edges),
        edge_costs=tuple(random.integers(0, 100, (values, values)).astype(float) for _ in edges),
        usages=usages,
    )
    leanest = problem.peak([int(row[0].amounts.argmin()) for row in usages])
    return Problem(problem.costs, problem.edges, problem.edge_costs, problem.usages, float(round(1.5 * leanest)))
