from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planner.solvers.intra_op.pieces import Pieces, combine, kept_times, least_within, lifted, profile

spans = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=8)


def by_time(pieces: Pieces, length: int) -> np.ndarray:
    held = np.zeros((length, pieces.amounts.shape[1]))
    for start, end, amounts in zip(*pieces, strict=True):
        held[start:end] += amounts
    return held


@given(spans, st.integers(0, 10**6))
def test_parts_combine_into_disjoint_pieces_of_the_same_sum(found: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    starts = np.array([start for start, _ in found])
    ends = np.array([start + length for start, length in found])
    parts = [
        Pieces(starts[i : i + 1], ends[i : i + 1], random.integers(0, 4, (1, 3)).astype(float))
        for i in range(len(found))
    ]
    whole = combine(parts)
    assert np.array_equal(by_time(whole, 15), sum(by_time(part, 15) for part in parts))
    assert (whole.starts[1:] >= whole.ends[:-1]).all()
    first = whole.amounts[:, 0]
    assert np.array_equal(profile(15, whole.starts, whole.ends, first), by_time(whole, 15)[:, 0])
    assert np.array_equal(lifted(np.ones(15), whole.starts, whole.ends, first), 1 + by_time(whole, 15)[:, 0])


@given(spans)
def test_kept_times_reach_every_peak(found: list[tuple[int, int]]) -> None:
    starts, ends = [start for start, _ in found], [start + length for start, length in found]
    live = [{i for i in range(len(found)) if starts[i] <= t < ends[i]} for t in range(15)]
    kept = kept_times(starts, ends)
    assert all(any(now <= live[t] for t in kept) for now in live if now)


def test_least_within() -> None:
    values = np.array([3.0, 1.0, 2.0, 5.0])
    found = least_within(values, np.array([0, 2, 3, 0]), np.array([2, 3, 4, 4]))
    assert found.tolist() == [1.0, 2.0, 5.0, 1.0]
