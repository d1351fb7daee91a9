from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.overlap import exposed

SECONDS = st.floats(0.0, 1e3, allow_subnormal=False)
BLOCKS = st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=8)


def test_a_transfer_hides_behind_one_block_of_computation() -> None:
    found = exposed(np.array([3.0, 1.0, 2.0]), np.array([2.0, 2.0, 2.0]), compute_slowdown=1.0)
    assert found.expected.tolist() == [1.0, 0.0, 0.0]
    assert found.first.tolist() == [2.0, 1.0, 2.0]
    assert found.high.tolist() == [3.0, 1.0, 2.0]


@given(BLOCKS)
def test_hidden_and_exposed_add_up_and_the_range_holds_for_every_run(blocks: list[tuple[float, float]]) -> None:
    communication, compute = np.array(blocks).T
    found = exposed(communication, compute, compute_slowdown=1.0)
    assert found.expected + found.first == pytest.approx(communication)
    assert (found.first <= compute).all()
    for start in range(len(blocks)):
        expected = found.expected[start:].sum() + found.first[start]
        assert found.low_s(start, len(blocks)) <= expected * (1 + 1e-12)
        assert expected <= found.high[start:].sum() * (1 + 1e-12)


@given(st.integers(1, 8), st.floats(0.0, 1e3), st.floats(0.0, 1e3))
def test_equal_blocks_are_the_timeline_of_prefetching_one_ahead(n: int, transfer_s: float, block_s: float) -> None:
    """A block computes when its transfer is done; the next transfer starts as it starts."""
    clock = transfer_s
    for i in range(n):
        clock += max(block_s, transfer_s) if i + 1 < n else block_s
    found = exposed(np.full(n, transfer_s), np.full(n, block_s), compute_slowdown=1.0)
    assert n * block_s + found.expected.sum() + found.first[0] == pytest.approx(clock)


def test_no_computation_hides_nothing_and_no_communication_costs_nothing() -> None:
    zeros, ones = np.zeros(3), np.ones(3)
    bare = exposed(ones, zeros, compute_slowdown=1.0)
    assert bare.expected.tolist() == bare.high.tolist() == [1.0, 1.0, 1.0]
    free = exposed(zeros, ones, compute_slowdown=1.0)
    assert free.high.tolist() == free.first.tolist() == [0.0, 0.0, 0.0]


@given(BLOCKS)
def test_shares_of_a_transfer_add_up_to_it(blocks: list[tuple[float, float]]) -> None:
    communication, compute = np.array(blocks).T
    whole = exposed(communication, compute, compute_slowdown=1.0)
    parts = [whole.share(communication * ratio) for ratio in (0.25, 0.75)]
    for field in ("expected", "high", "first"):
        assert sum(getattr(part, field) for part in parts) == pytest.approx(getattr(whole, field), abs=1e-9)
    n = len(blocks)
    assert sum(part.low_s(0, n) for part in parts) == pytest.approx(whole.low_s(0, n), abs=1e-9)


def test_with_every_overlap_any_computation_hides_any_transfer() -> None:
    found = exposed(np.array([3.0, 1.0]), np.array([1.0, 2.0]), compute_slowdown=1.0)
    assert found.expected.sum() == 2.0
    assert found.low_s(0, 2) == 1.0


def test_what_is_hidden_slows_down_what_hides_it() -> None:
    """At 1 / 1.25 of the speed, 4 s of transfer cost 0.8 s of computation; what is exposed costs itself."""
    found = exposed(np.array([4.0, 12.0]), np.array([10.0, 10.0]), compute_slowdown=1.25)
    assert found.expected == pytest.approx([0.2 * 4, 2 + 0.2 * 10])
    assert (found.expected + found.first).tolist() == [4.0, 12.0]
    assert found.low_s(0, 1) == 0
