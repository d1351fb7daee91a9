from __future__ import annotations

import numpy as np
import pytest

from planner.solvers.intra_op import Problem, Usage
from planner.solvers.intra_op.dominance import drop_dominated
from planner.solvers.intra_op.network import network


def pair(kept: list[float]) -> Problem:
    """Strategy 0 of the first node costs one more itself and saves two whatever the second does."""
    return Problem(
        costs=(np.array([1.0, 0.0]), np.array([0.0, 0.0])),
        edges=((0, 1),),
        edge_costs=(np.array([[1.0, 4.0], [3.0, 7.0]]),),
        usages=((Usage(0, 1, np.array(kept)),), ()),
        limit=9.0,
    )


@pytest.mark.parametrize(("kept", "left"), [([1.0, 1.0], 1), ([1.0, 2.0], 1), ([2.0, 1.0], 2)])
def test_a_value_goes_where_another_costs_and_keeps_no_more(kept: list[float], left: int) -> None:
    net = network(pair(kept), 9.0)
    assert drop_dominated(net, 0) == (left == 1)
    assert len(net.costs(0)) == left
