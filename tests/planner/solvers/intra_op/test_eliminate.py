from __future__ import annotations

import numpy as np
from hypothesis import given

from planner.solvers.intra_op import Problem
from planner.solvers.intra_op.eliminate import Eliminated, eliminate
from tests.planner.solvers.intra_op.small import choices, problems


def eliminated(problem: Problem, keep: tuple[int, ...] = (), entries: int | None = None) -> Eliminated | None:
    edges = [(i, j, table) for (i, j), table in zip(problem.edges, problem.edge_costs, strict=True)]
    return eliminate(dict(enumerate(problem.costs)), edges, keep=keep, entries=entries)


@given(problems)
def test_tables_are_those_of_all_choices(problem: Problem) -> None:
    keep = (0,) if problem.num_nodes < 3 else (2, 0)
    expected = np.full([len(problem.costs[i]) for i in keep], np.inf)
    for choice in choices(problem):
        at = tuple(choice[i] for i in keep)
        expected[at] = min(expected[at], problem.cost(choice))
    done = eliminated(problem, keep)
    assert done is not None and np.allclose(done.table, expected, rtol=0, atol=1e-9)
    for at in np.ndindex(*expected.shape):
        full = done.decode(at)
        assert np.isclose(problem.cost([full[i] for i in range(problem.num_nodes)]), expected[at])


def test_a_graph_that_is_too_wide_is_left_alone() -> None:
    everyone = Problem(
        costs=(np.zeros(4),) * 6,
        edges=tuple((i, j) for i in range(6) for j in range(i)),
        edge_costs=(np.eye(4),) * 15,
        usages=((),) * 6,
    )
    assert eliminated(everyone, entries=1000) is None
    done = eliminated(everyone, entries=4**6)
    assert done is not None and done.table == 2.0
