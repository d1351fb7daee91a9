from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from planner.errors import UsageError
from planner.solvers.intra_op import Problem, project, projection
from tests.planner.solvers.intra_op.small import choices, grid, problems


def expected(problem: Problem, keep: tuple[int, ...]) -> np.ndarray:
    table = np.full([len(problem.costs[i]) for i in keep], np.inf)
    for choice in choices(problem):
        at = tuple(choice[i] for i in keep)
        table[at] = min(table[at], problem.cost(choice))
    return table


@pytest.mark.parametrize("direct", [True, False])
@given(problem=problems)
def test_the_table_is_that_of_all_choices(direct: bool, problem: Problem) -> None:
    """Both ways: elimination of the problem as it is, and of what reductions leave."""
    keep = tuple(range(problem.num_nodes))[-3:][::-1]
    with pytest.MonkeyPatch.context() as patch:
        if not direct:
            patch.setattr(projection, "DIRECT_ENTRIES", 0)
        found = project(problem, keep)
    table = expected(problem, keep)
    assert found.keep == keep and np.allclose(found.table, table, rtol=0, atol=1e-9)
    for at in np.ndindex(*table.shape):
        if table[at] < np.inf:
            full = found.decode(at)
            assert tuple(full[i] for i in keep) == at
            assert problem.cost(full) == pytest.approx(table[at], rel=0, abs=1e-9)


def test_nodes_that_are_none_or_given_twice() -> None:
    problem = grid(2, 2, 2, seed=0)
    for keep in ((0, 0), (4,), (-1,)):
        with pytest.raises(UsageError, match="expected different nodes of 0 to 3"):
            project(problem, keep)


def test_a_graph_that_is_too_wide() -> None:
    with pytest.raises(UsageError, match="elimination needs a table of more than"):
        project(grid(16, 16, 12, seed=0), (0, 1))
