"""Data-parallel communication of one candidate, by hand: which collective, over whom, hidden behind what."""

from __future__ import annotations

import numpy as np
import pytest

from costmodels import communication
from costmodels.overlap import exposed
from hardware_profiles.topology import group
from planner.plan import Candidate
from planner.solvers.data_parallel import exposed_transfers, stage_exposed_s, transfers
from tests.planner.solvers.small import costs, setting


def candidate(zero_stage: int, *, dp_replicate: int = 2, dp_shard: int = 4) -> Candidate:
    return Candidate(
        pp=1, dp_replicate=dp_replicate, dp_shard=dp_shard, tp=1, sequence_parallel=False, zero_stage=zero_stage,
        microbatch_size=1, num_microbatches=2, recompute="none",
    )  # fmt: skip


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_state_is_gathered_and_reduced_inside_and_its_shards_over_replicas(zero_stage: int) -> None:
    case, chosen = setting(), candidate(zero_stage)
    found = costs(case, chosen)
    moved = transfers(case, chosen, found.prices)
    inside, replicas = group(case.cluster, size=4, stride=1), group(case.cluster, size=2, stride=4)
    for i, block in enumerate(case.block_of):
        numel = found.prices[block].numel(4)
        assert moved.gather_s[i] == communication.all_gather_s(inside, 2 * numel)
        assert moved.reduce_s[i] == communication.reduce_scatter_s(inside, 4 * numel)
        assert moved.replicate_s[i] == communication.all_reduce_s(replicas, 4 * numel / 4)


def test_without_sharing_every_device_reduces_with_all_others() -> None:
    case, chosen = setting(), candidate(0, dp_replicate=8, dp_shard=1)
    found = costs(case, chosen)
    everyone = group(case.cluster, size=8, stride=1)
    for i, block in enumerate(case.block_of):
        expected = communication.all_reduce_s(everyone, 4 * found.prices[block].numel())
        assert transfers(case, chosen, found.prices).replicate_s[i] == pytest.approx(expected)


def test_what_is_repeated_every_microbatch_follows_from_what_is_shared_out() -> None:
    case = setting()
    names = {}
    for zero_stage in (0, 1, 2, 3):
        chosen = candidate(zero_stage) if zero_stage else candidate(0, dp_replicate=8, dp_shard=1)
        names[zero_stage] = tuple(sorted(terms) for terms in costs(case, chosen).data_parallel)
    reduce, gather, replicas = "dp.gradient_reduce", "dp.parameter_gather", "dp.replica_reduce"
    assert names == {
        0: ([], [reduce]),
        1: ([], [reduce, gather]),
        2: ([reduce], [gather, replicas]),
        3: ([reduce, gather, "dp.parameter_regather"], [replicas]),
    }


def test_replicas_reduce_behind_what_the_backward_pass_has_left() -> None:
    case, chosen = setting(), candidate(2)
    found = costs(case, chosen)
    moved = transfers(case, chosen, found.prices)
    slowdown = case.cluster.library.compute_slowdown
    for backward_s in (found.backward_s, moved.reduce_s / 2, moved.reduce_s + moved.replicate_s / 2):
        _, once = exposed_transfers(case, 2, moved, found.forward_s, backward_s)
        free = np.maximum(backward_s - moved.reduce_s, 0.0)
        expected = exposed(moved.replicate_s, free, compute_slowdown=slowdown)
        np.testing.assert_array_equal(once["dp.replica_reduce"].expected, expected.expected)


def test_a_stage_hides_nothing_of_its_first_transfer() -> None:
    found = exposed(np.array([3.0, 2.0, 4.0]), np.array([1.0, 5.0, 1.0]), compute_slowdown=1.0)
    assert stage_exposed_s(found, 0, 3) == (3 - 1) + (2 - 2) + (4 - 1) + 1
    assert stage_exposed_s(found, 1, 3) == (2 - 2) + (4 - 1) + 2
