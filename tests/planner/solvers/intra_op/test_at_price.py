"""A problem at any price of what is held, against all choices; directly, after a sweep, and in slabs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import UsageError
from planner.solvers.intra_op import Problem, priced
from planner.solvers.intra_op.eliminate import least_between
from planner.solvers.intra_op.network import network
from planner.solvers.intra_op.reduce import fold
from tests.planner.solvers.intra_op.small import choices, grid, make, problems


def drawn(problem: Problem, seed: int) -> list[np.ndarray]:
    """What nodes hold: nothing, the same under every strategy, or anything."""
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 3, problem.num_nodes)
    return [
        random.integers(0, 9, len(c)).astype(float) if kind == 2 else np.full(len(c), 4.0 * kind)
        for c, kind in zip(problem.costs, kinds, strict=True)
    ]


@pytest.mark.parametrize(("at_once", "slab"), [(1 << 16, 1 << 20), (0, 1 << 20), (1 << 16, 1), (0, 1)])
@settings(max_examples=60)
@given(problem=problems, seed=st.integers(0, 1000), price=st.sampled_from([0.0, 0.5, 3.0]))
def test_what_is_reached_is_the_least_of_all_choices(
    at_once: int, slab: int, problem: Problem, seed: int, price: float
) -> None:
    keep = tuple(range(problem.num_nodes))[-2:]
    held = drawn(problem, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planner.solvers.intra_op.at_price.AT_ONCE", at_once)
        patch.setattr("planner.solvers.intra_op.eliminate.SLAB", slab)
        found = priced(problem, held, keep).at(price)

    def total(choice: tuple[int, ...]) -> float:
        return problem.cost(choice) + price * sum(float(h[s]) for h, s in zip(held, choice, strict=True))

    best = np.full([len(problem.costs[i]) for i in keep], np.inf)
    for choice in choices(problem):
        at = tuple(choice[i] for i in keep)
        best[at] = min(best[at], total(choice))
    assert (np.isfinite(found.table) == np.isfinite(best)).all()
    for at in np.ndindex(*best.shape):
        if best[at] < np.inf:
            full = found.decode(at)
            assert tuple(full[i] for i in keep) == at
            assert total(full) == pytest.approx(best[at], rel=0, abs=1e-9)
    finite = np.isfinite(best)
    if finite.any():  # but for a constant
        assert np.ptp(found.table[finite] - best[finite]) == pytest.approx(0, abs=1e-9)


def test_what_holds_the_same_is_folded_once() -> None:
    problem = grid(2, 6, 3, seed=0)
    held = [np.zeros(3) for _ in problem.costs]
    made = priced(problem, held, (0, 11))
    assert len(made._net.nodes) < problem.num_nodes
    before = len(made._net.nodes)
    made.at(0.0), made.at(2.0)
    assert len(made._net.nodes) == before


def test_folding_leaves_pinned_nodes_and_those_with_memory() -> None:
    problem = make(3, limited=False)
    net = network(problem, np.inf)
    live = {i for i in net.nodes if net.pieces(i) is not None}
    fold(net, frozenset({0}))
    assert {0, *live} <= set(net.nodes)


def test_a_graph_that_is_too_wide() -> None:
    problem = grid(16, 16, 12, seed=0)
    with pytest.raises(UsageError, match="elimination needs a table of more than"):
        priced(problem, [np.zeros(12) for _ in problem.costs], (0, 1)).at(1.0)


@pytest.mark.parametrize("slab", [1, 1 << 20])
def test_the_least_between_two_tables(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.solvers.intra_op.eliminate.SLAB", slab)
    random = np.random.default_rng(0)
    left, right = random.random((5, 3)), random.random((5, 4))
    least, argmin = least_between(left, right)
    total = left[:, :, None] + right[:, None, :]
    assert (least == total.min(axis=0)).all() and (argmin == total.argmin(axis=0)).all()
