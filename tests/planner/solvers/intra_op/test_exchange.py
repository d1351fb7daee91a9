from __future__ import annotations

import time

import numpy as np
import pytest

from planner.solvers.intra_op import solve
from planner.solvers.intra_op.branch import Best
from planner.solvers.intra_op.exchange import difference, exchange, separate
from planner.solvers.intra_op.network import cost_of, fits, held_by, network
from tests.planner.solvers.intra_op.small import grid


def test_separate_parts_add_up() -> None:
    problem = grid(5, 6, 4, seed=2)
    net = network(problem, problem.limit)
    random = np.random.default_rng(1)
    base, other = (dict(enumerate(random.integers(0, 4, 30).tolist())) for _ in range(2))
    changed = {i for i in range(30) if i % 4 and base[i] != other[i]}
    parts = separate(net, changed)
    assert len(parts) > 1 and sorted(i for part in parts for i in part) == sorted(changed)
    apart = [difference(net, part, base, other) for part in parts]
    made = {**base, **{i: other[i] for i in changed}}
    assert sum(cost for cost, _ in apart) == cost_of(net, made) - cost_of(net, base)
    assert np.array_equal(sum(kept for _, kept in apart), held_by(net, made) - held_by(net, base))


@pytest.mark.parametrize("seed", range(4))
def test_exchanges_improve_within_the_limit_and_not_beyond_the_optimum(seed: int) -> None:
    problem = grid(4, 5, 4, seed=seed)
    net = network(problem, problem.limit)
    best = Best(net, 1.0, whole=True)
    best.offer({i: int(pieces.amounts.sum(axis=0).argmin()) if (pieces := net.pieces(i)) else 0 for i in net.nodes})
    before = best.cost
    prices = exchange(best, time.monotonic() + 30, 20, np.zeros(len(net.held)), np.random.default_rng(0))
    assert best.choice is not None and fits(net, best.choice)
    assert solve(problem).cost <= best.cost == cost_of(net, best.choice) < before
    assert (prices >= 0).all()
