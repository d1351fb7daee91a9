"""Optima of the contest's problems, proven; the benchmark prices them by the raw file."""

from __future__ import annotations

import pytest

from benchmarks.iopddl import run_file
from tests.planner.solvers.intra_op.small import instance


@pytest.mark.parametrize(
    ("name", "cost"),
    [("B", 532_843), ("G", 217_039)],
)
def test_the_optimum_is_proven(name: str, cost: int) -> None:
    found = run_file(instance(name), time_limit_s=240)
    assert found["feasible"] and found["cost"] == cost
    assert found["bound"] == cost and found["gap"] == 0
