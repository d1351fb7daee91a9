"""Who speaks for whom, against every rank's own shares."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from planner.layouts.data_parallel import shard_dim
from planner.plan import Candidate, ParamLayout
from planner.runtime.dry_run.symmetry import place, representatives
from planner.runtime.parts import chunked

CANDIDATE = Candidate(
    pp=2, dp_replicate=2, dp_shard=4, tp=2, sequence_parallel=False, zero_stage=3, microbatch_size=1,
    num_microbatches=4, recompute="none",
)  # fmt: skip


def layout(**placements: str) -> ParamLayout:
    return ParamLayout(pattern="*", placements=placements)


def test_equal_shares_need_one_rank_per_position() -> None:
    found = representatives(CANDIDATE, [((64, 32), layout(tp="S(0)")), ((64,), layout(tp="R"))])
    assert [r.rank for r in found] == [0, 16]
    assert [r.represents for r in found] == [tuple(range(16)), tuple(range(16, 32))]
    assert "equal shares" in found[0].why


def test_uneven_shares_need_the_fullest_and_the_emptiest() -> None:
    """101 rows over tp 2 are 51 and 50; 7 rows over dp_shard 4 are 2, 2, 2 and 1."""
    params = [((101, 64), layout(tp="S(0)")), ((7,), layout(tp="R"))]
    found = representatives(CANDIDATE, params)

    def held(rank: int) -> tuple[int, int]:
        at = place(rank, CANDIDATE)
        return chunked(101, 2)[at["tp"]], chunked(7, 4)[at["dp_shard"]]

    first, last = found[0], found[1]
    assert held(first.rank) == (51, 2) and held(last.rank) == (50, 1)
    assert {held(rank) for rank in last.represents} == {(50, 1)}
    assert sorted(r for f in found for r in f.represents) == list(range(32))
    assert "fullest of 4" in first.why and "emptiest" in last.why
    assert shard_dim((51, 64), 4) == 1  # of the table, another dim divides


def test_rings_begin_and_end() -> None:
    ring = replace(CANDIDATE, dp_shard=2, cp=2, context="ring")
    found = representatives(ring, [((64, 32), layout(tp="R"))])
    assert [place(r.rank, ring)["cp"] for r in found] == [0, 1, 0, 1]
    assert Counter(place(rank, ring)["cp"] for rank in found[1].represents) == {1: 8}


def test_experts_are_cut_over_those_that_hold_them() -> None:
    """Of 4 experts two per rank of ep, 3 rows each, over the 4 devices that hold the same ones."""
    experts = replace(CANDIDATE, ep=2)
    found = representatives(experts, [((4, 3, 5), layout(ep="S(0)", tp="R"))])
    assert len(found) == 4 and found[0].represents + found[1].represents != ()
    even = representatives(experts, [((4, 8, 5), layout(ep="S(0)", tp="R"))])
    assert len(even) == 2


def test_places() -> None:
    at = [place(rank, CANDIDATE) for rank in range(32)]
    assert at[0] == dict.fromkeys(at[0], 0)
    assert at[1]["tp"] == 1 and at[2]["dp_shard"] == 1 and at[8]["dp_replicate"] == 1 and at[16]["pp"] == 1
