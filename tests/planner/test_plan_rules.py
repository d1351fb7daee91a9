"""Rules that bind fields of plan files together, for axes that the search does not choose."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.pipelining.schedules import get_schedule_class

from planner import plan_file
from planner.errors import PlanFileError
from planner.plan import TORCH_SCHEDULES, Plan

PAGE = Path(__file__).parents[2] / "docs" / "plan_file.md"
OWN = [["0F0", "0F1", "0B0", "0B1"], ["1F0", "1I0", "1F1", "1W0", "1B1"]]


def by_hand(**changes: Any) -> dict[str, Any]:
    """The page's example, with ``a__b`` = value put at ``a.b``."""
    block = re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    content = json.loads(block[1])
    for path, value in changes.items():
        place, *keys = content, *path.split("__")
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
    return dict(content)


def sized(**sizes: int) -> list[dict[str, Any]]:
    named = {"pp": 4, "dp_replicate": 1, "dp_shard": 16, "cp": 1, "tp": 2} | sizes
    return [{"name": name, "size": size} for name, size in named.items()]


def read(content: dict[str, Any]) -> Plan:
    return plan_file.from_json(json.dumps(content), "hand.json")


def test_the_pages_example_is_a_plan_and_survives_writing() -> None:
    plan = read(by_hand())
    assert plan.candidate.ep == 8
    assert plan.candidate.expert_shard == 4
    assert plan.stages[0].modules == ("tok_embeddings", *(f"layers.{i}" for i in range(8)))
    assert plan.predicted is plan.search is plan.inputs.model_sha256 is None
    assert plan.layouts == plan.operations == ()
    assert plan_file.from_json(plan_file.to_json(plan), "written.json") == plan


@pytest.mark.parametrize(
    ("schedule", "chunks", "ranks"),
    [
        ("1F1B", 1, (0, 1, 2, 3)),
        ("Interleaved1F1B", 2, (0, 1, 2, 3, 0, 1, 2, 3)),
        ("LoopedBFS", 2, (0, 1, 2, 3, 0, 1, 2, 3)),
        ("ZBVZeroBubble", 2, (0, 1, 2, 3, 3, 2, 1, 0)),
        ("DualPipeV", 2, (0, 1, 2, 3, 3, 2, 1, 0)),
    ],
)
def test_stages_are_dealt_to_ranks_by_the_schedule(schedule: str, chunks: int, ranks: tuple[int, ...]) -> None:
    stages = [{"modules": [f"layers.{i}"]} for i in range(4 * chunks)]
    plan = read(by_hand(pipeline__schedule=schedule, pipeline__num_chunks=chunks, pipeline__stages=stages))
    assert plan.stage_ranks == ranks
    assert plan.schedule == schedule


def own(actions: list[list[str]]) -> dict[str, Any]:
    return by_hand(
        mesh__axes=sized(pp=2), inputs__num_devices=64, inputs__job__global_batch=32, pipeline__num_microbatches=2,
        pipeline__stages=[{"modules": ["a"]}, {"modules": ["b"]}], pipeline__schedule="actions",
        pipeline__actions=actions,
    )  # fmt: skip


def test_own_actions_are_a_schedule() -> None:
    plan = read(own(OWN))
    assert plan.stage_ranks == (0, 1)
    assert [str(entry) for entry in plan.order.orders[1]][:2] == ["F0 of stage 1", "I0 of stage 1"]
    assert plan_file.from_json(plan_file.to_json(plan), "written.json") == plan


def test_overlapped_actions_count_as_both() -> None:
    rows = [["0F0", "0F1", "0B0", "0B1"], ["1F0", "(1F1;1B0)OVERLAP_F_B", "1B1"]]
    assert len(read(own(rows)).order.orders[1]) == 3


def changed(row: int, place: int, to: str) -> list[list[str]]:
    rows = [list(actions) for actions in OWN]
    rows[row][place] = to
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (OWN[:1], "pipeline.actions: 1 rows: must be one for each of the 2 ranks of pp"),
        (changed(0, 0, "1F0"), "pipeline.actions: stage 1 runs on ranks 0, 1: must be on one"),
        (changed(1, 1, "1B0"), "pipeline.actions: stage 1, microbatch 0: F 1, B 1, I 0, W 1 times: must be F once"),
        (changed(0, 1, "0F7"), "pipeline.actions: stage 0, microbatch 1: F 0, B 1, I 0, W 0 times"),
        ([*OWN[:1], ["2F0"]], "pipeline.actions: stages 0, 2: must be 0 to 1"),
        (changed(0, 0, "0X0"), 'pipeline.actions[0][0] = "0X0": String should match'),
        ([["0B0", "0F0", "0F1", "0B1"], OWN[1]], "pipeline.actions: "),
    ],
)
def test_actions_that_are_no_schedule(rows: list[list[str]], message: str) -> None:
    with pytest.raises(PlanFileError) as error:
        read(own(rows))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh__sharding__ep": 3}, "mesh.sharding.ep = 3: must divide dp_shard 16 * cp 1 * tp 2 = 32"),
        ({"mesh__sharding__sequence_parallel": False}, "mesh.sharding.ep = 8: with tp 2 it needs sequence_parallel"),
        (
            {"mesh__sharding__zero_stage": 0},
            "mesh.sharding.zero_stage = 0: must be 0 where dp_shard * cp is 1 and 1, 2 or 3 elsewhere; dp_shard is 16",
        ),
        (
            {"mesh__sharding__ulysses": 2},
            "mesh.sharding.ulysses = 2: must be 1 unless context is ulysses_ring; it is all_gather",
        ),
        (
            {"mesh__axes": sized(dp_shard=8, cp=2), "mesh__sharding__context": "ulysses_ring",
             "pipeline__num_microbatches": 64},
            "mesh.sharding.ulysses = 1: must divide cp 2, and be neither 1 (ring) nor cp (ulysses)",
        ),
        ({"inputs__job__seq_len": 4095}, "inputs.job.seq_len = 4095: must be a multiple of the devices that share a"),
        (
            {"mesh__axes": sized(dp_shard=8, cp=2), "mesh__sharding__context": "ring", "inputs__job__seq_len": 4098,
             "pipeline__num_microbatches": 64, "mesh__sharding__sequence_parallel": False},
            "inputs.job.seq_len = 4098: must be a multiple of 4: a ring of 2 gives each two runs",
        ),
        ({"pipeline__schedule": "Zigzag"}, 'pipeline.schedule = "Zigzag": Input should be'),
        ({"pipeline__schedule": "ZBVZeroBubble"}, "pipeline.schedule = ZBVZeroBubble: no schedule zb-v of 4 ranks"),
        ({"pipeline__num_chunks": 2}, "pipeline.stages = 4 stages: must be as many as pp 4 * num_chunks 2 = 8"),
        ({"pipeline__schedule": "actions"}, "pipeline.schedule = actions: must be actions where pipeline.actions are"),
        (
            {"pipeline__schedule": "InterleavedZeroBubble", "mesh__sharding__zero_stage": 3},
            "mesh.sharding.zero_stage = 3: InterleavedZeroBubble halves backward passes",
        ),
        (
            {"pipeline__num_microbatches": 2, "inputs__job__global_batch": 32},
            "pipeline.num_microbatches = 2: must be pp 4 or more: torch's 1F1B runs no fewer",
        ),
        (
            {"recompute": "none", "recomputed_blocks": 2},
            "recomputed_blocks = 2: must be null where recompute is none",
        ),
        (
            {"experts": [{"block": "layers.*", "ranks": [[0], [1], [2], [3], [4], [5], [6], [8]]}]},
            "experts[0].ranks = 8: the ranks of ep are 0 to 7",
        ),
        (
            {"experts": [{"block": "layers.*", "ranks": [[0, 1], [1], [2], [3], [4], [5], [6], [7]]}]},
            "experts[0].ranks: every rank of ep must hold as many experts as the others; they hold 1, 2, 1, 1",
        ),
        (
            {"experts": [{"block": "layers.*", "ranks": [[1, 0], [0, 1], *([r, r + 1] for r in (2, 2, 4, 4, 6, 6))]}]},
            "experts[0].ranks: the ranks that hold an expert must ascend",
        ),
        (
            {"layouts": [{"pattern": "a", "placements": {"tp": "S(1)", "ep": "S(0)"}}]},
            "layouts[0].placements.tp = S(1): must be R for what ep divides",
        ),
        (
            {"mesh__sharding__ep": 1, "layouts": [{"pattern": "a", "placements": {"ep": "S(0)"}}]},
            "layouts[0].placements.ep = S(0): mesh.sharding.ep is 1",
        ),
        (
            {"search": {"candidates": 1, "priced": 1, "rejected": {}, "bound_s": 1.0, "gap": 0.0}},
            "search: must be null where predicted is",
        ),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanFileError) as error:
        read(by_hand(**changes))
    assert f"hand.json: {message}" in str(error.value)


def test_replicas_of_experts() -> None:
    ranks = [[0, 1], [0, 1], *([r, r + 1] for r in (2, 2, 4, 4, 6, 6))]
    plan = read(by_hand(experts=[{"block": "layers.*", "ranks": ranks}]))
    assert plan.experts[0].ranks[2] == (2, 3)


def test_every_schedule_has_torchs_name() -> None:
    for name in TORCH_SCHEDULES.values():
        assert get_schedule_class(name).__name__ == f"Schedule{name}"
