"""The moments of a backward pass under ``fully_shard``, written down one by one for a small model."""

from __future__ import annotations

import pytest

from planner.plan import Candidate
from planner.solvers.prices import price_blocks
from planner.solvers.runtime_memory import BESIDE, RuntimeBytes
from planner.solvers.segment_costs import SegmentCosts
from planner.solvers.stage_memory import TRACED_BESIDE, StageBytes
from tests.planner.solvers.small import setting

BF16, FP32 = 2, 4


def bytes_of(kind: type[StageBytes], **changes: object) -> StageBytes:
    named: dict[str, object] = {
        "pp": 1, "dp_replicate": 1, "dp_shard": 4, "tp": 1, "sequence_parallel": False, "zero_stage": 3,
        "microbatch_size": 1, "num_microbatches": 4, "recompute": "full",
    }  # fmt: skip
    case, c = setting("gqa"), Candidate(**(named | changes))  # type: ignore[arg-type]
    return kind(SegmentCosts(case, c, price_blocks(case, c, case.layouts.at(c.tp))))


def test_the_loss_needs_less_than_it_was_traced_with() -> None:
    rows, classes = 64, 40
    less = bytes_of(StageBytes).transient_bytes - bytes_of(RuntimeBytes).transient_bytes
    assert less[-1] == (TRACED_BESIDE - BESIDE) * rows * classes
    assert not less[:-1].any()


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_every_segments_moments(zero_stage: int) -> None:
    found = bytes_of(RuntimeBytes, zero_stage=zero_stage)
    costs, kept, temporary = found.costs, found.kept_bytes, found.transient_bytes
    again = costs.per_segment(lambda p: p.rematerialised_bytes("full"))
    numel = costs.numel
    for i, work in enumerate(found.work_bytes):
        ahead = BF16 * numel[i - 1] if i and zero_stage == 3 else 0.0
        own = BF16 * numel[i] if zero_stage == 3 else 0.0
        behind = FP32 * numel[i + 1] if i + 1 < len(numel) else 0.0
        gathering = 2 * own
        computing = temporary[i] + costs.recomputed[i] * again[i] + own + ahead + behind
        reducing = ahead + (BF16 + FP32 + FP32 / 4) * numel[i] - kept[i]
        assert work == max(gathering, computing, reducing)


def test_copies_to_compute_with_are_reduced_on_one_device_too() -> None:
    alone = bytes_of(RuntimeBytes, dp_shard=1, zero_stage=0)
    assert alone.costs.setting.precision.copy_bytes == BF16
    assert alone.work_bytes[0] >= (BF16 + 2 * FP32) * alone.costs.numel[0] - alone.kept_bytes[0]


def test_one_microbatch_has_no_gradients_to_begin_with() -> None:
    one, several = (bytes_of(RuntimeBytes, num_microbatches=m) for m in (1, 4))
    n = len(one.kept_bytes)
    gradients = FP32 * float(one.costs.owned_numel.sum())
    (saved, forward, backward), (same, later_forward, later_backward) = (
        found.working_bytes(0, n) for found in (one, several)
    )
    assert saved == same
    assert later_forward - forward == pytest.approx(gradients, abs=1)
    assert 0 < later_backward - backward < gradients
