"""Chains of tiny blocks against all their layouts tried one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from planner.errors import NoPlanError
from planner.layouts.pins import BlockPins
from planner.layouts.placements import shard
from planner.solvers.block_layout.chain import solve_chain, trade_off
from planner.solvers.block_layout.model_layout import LayoutSolution, ModelLayout
from planner.solvers.block_layout.problem import BlockProblem
from planner.solvers.block_layout.solving import solve_layouts
from planner.solvers.intra_op import Projection, priced
from tests.planner.solvers.block_layout.cases import mesh_of, slow, tiny
from tests.planner.solvers.block_layout.toy import Every, block

CHAINS = ((0, 1, 1), (0, 1, 2), (1, 1, 1), (0, 2, 0, 2))
SEEDS = range(6)


def blocks(seed: int, chosen: Sequence[int]) -> list[BlockProblem]:
    """Three distinct ones, the first of which nothing enters where a chain begins with it; the last has other exits."""
    random = np.random.default_rng(seed)
    return [block(random, entry=chosen[0] != 0), block(random), block(random, exits=(0, 2) if chosen[-1] else (0, 1))]


def solve_or_none(given: Sequence[BlockProblem], chosen: Sequence[int], limit: float) -> LayoutSolution | None:
    """None where it says that it found none: what is priced is held between the passes, what must fit is the peak."""
    try:
        return solve_chain(given, chosen, limit)
    except NoPlanError as error:
        if "were found" not in str(error):
            raise
        return None


@pytest.mark.parametrize("chosen", CHAINS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_limit_the_best_of_all_is_found(seed: int, chosen: tuple[int, ...]) -> None:
    given = blocks(seed, chosen)
    solution = solve_chain(given, chosen, None)
    assert solution.best.seconds == pytest.approx(Every(given, chosen).least())
    assert solution.bound_s == pytest.approx(solution.best.seconds)
    assert solution.gap == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("chosen", CHAINS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_within_a_limit_bound_best_of_all_and_what_is_found_stand_in_order(seed: int, chosen: tuple[int, ...]) -> None:
    given = blocks(seed, chosen)
    every = Every(given, chosen)
    free = solve_chain(given, chosen, None).best.peak_bytes
    least = float(every.found[:, 1].min())
    for part in (0.15, 0.4, 0.7, 0.99):
        limit = least + part * (free - least)
        solution = solve_or_none(given, chosen, limit)
        if solution is None:
            assert part < 0.5
            continue
        assert solution.best.peak_bytes <= limit
        assert solution.bound_s <= every.least(limit) * (1 + 1e-9)
        assert every.least(limit) <= solution.best.seconds * (1 + 1e-9)
        assert solution.gap == pytest.approx(solution.best.seconds / solution.bound_s - 1.0, abs=1e-12)


@pytest.mark.parametrize("chosen", CHAINS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_trade_off_has_every_corner_of_the_hull(seed: int, chosen: tuple[int, ...]) -> None:
    """Of (bytes held, seconds) over all layouts: at any price none is better than the best corner."""
    given = blocks(seed, chosen)
    every, corners = Every(given, chosen).held, trade_off(given, chosen)
    assert corners[0].seconds == pytest.approx(every[:, 0].min())
    assert corners[-1].held_bytes == pytest.approx(every[:, 1].min())
    for price in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 30.0):
        least = min(one.seconds + price * one.held_bytes for one in corners)
        assert least == pytest.approx((every[:, 0] + price * every[:, 1]).min())


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_found_is_one_of_all(seed: int) -> None:
    """Seconds and bytes are those of layouts that join, not of segments side by side."""
    given, chosen = blocks(seed, CHAINS[1]), CHAINS[1]
    every = Every(given, chosen).found
    limit = float(np.quantile(every[:, 1], 0.05))
    for layout in solve_chain(given, chosen, limit).tradeoff:
        near = np.abs(every - [layout.seconds, layout.peak_bytes]).max(axis=1)
        assert near.min() < 1e-9


@pytest.mark.parametrize("seed", SEEDS)
def test_no_layouts_of_the_trade_off_are_both_faster_and_leaner(seed: int) -> None:
    given, chosen = blocks(seed, CHAINS[0]), CHAINS[0]
    every = Every(given, chosen)
    limit = float(np.quantile(every.found[:, 1], 0.02))
    found: Sequence[ModelLayout] = solve_chain(given, chosen, limit).tradeoff
    pairs = list(pairwise(found))
    assert all(a.seconds <= b.seconds and a.peak_bytes > b.peak_bytes for a, b in pairs)
    assert found[0].seconds == pytest.approx(every.least())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("part", "said"), [(0.3, "no layouts fit: the leanest found"), (0.99, "no layouts .*fit: the")]
)
def test_where_nothing_fits_the_error_says_how_much_is_needed(seed: int, part: float, said: str) -> None:
    given, chosen = blocks(seed, CHAINS[0]), CHAINS[0]
    limit = part * float(Every(given, chosen).found[:, 1].min())
    with pytest.raises(NoPlanError, match=rf"{said}.* need \d+ B of each device's {limit:.0f} B. Use more devices"):
        solve_chain(given, chosen, limit)


def test_equal_segments_are_eliminated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: one elimination per distinct block and price of memory."""
    calls: list[float] = []

    def counted(*args: Any) -> Any:
        block = priced(*args)

        def at(price: float) -> Projection:
            calls.append(price)
            return block.at(price)

        return SimpleNamespace(at=at)

    monkeypatch.setattr("planner.solvers.block_layout.chain.priced", counted)
    given = blocks(1, (1,))
    one = solve_chain(given[1:2], (0,), None)
    assert len(calls) == 1
    many = solve_chain(given[1:2], (0,) * 40, None)
    assert len(calls) == 2
    assert many.best.seconds >= 40 * (one.best.seconds - 1e-9)
    calls.clear()
    limit = 0.95 * solve_chain(given, (0, *(1,) * 38, 2), None).best.peak_bytes
    assert len(calls) == 3
    solve_chain(given, (0, *(1,) * 38, 2), limit)
    assert len(calls) == 3 + 3 * len(set(calls))


def test_pins_that_exclude_each_other_are_an_error() -> None:
    """Nothing leads from runs that the mesh cannot divide to those that a product reads."""
    setting, mesh = tiny("gqa", slow(2), batch=2), mesh_of(slow(2), 2)
    pins: list[BlockPins] = [{}, {"attention.wq.weight": {"a": shard(0, 7)}}, {}]
    with pytest.raises(NoPlanError, match="pin"):
        solve_layouts(setting, mesh, batch=2, pins=pins)
