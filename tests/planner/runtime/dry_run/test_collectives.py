"""Collectives of hand-written programs, counted by hand."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from planner.runtime.dry_run.collectives import Call, kind_of
from planner.runtime.dry_run.forked import in_children
from planner.runtime.dry_run.observe import Observer
from planner.runtime.dry_run.world import fake_tensors, fake_world
from tests.planner.runtime.dry_run.programs import DIM, HIDDEN, LAYERS, TOKENS, VOCAB, Program

ACTIVATION = TOKENS * DIM * 4
LAYER = (DIM + 2 * HIDDEN * DIM // 2) * 4
ENDS = 2 * VOCAB * DIM * 4


def issued(program: Program, rank: int) -> list[Call]:
    return program.observe(rank).collectives.calls


def counted(calls: list[Call]) -> dict[tuple[str, str], tuple[int, int]]:
    """(axis, kind) -> how many, and their bytes."""
    number, size = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for call in calls:
        number[call.axis, call.kind] += 1
        size[call.axis, call.kind] += call.num_bytes
    return {key: (number[key], size[key]) for key in number}


def test_one_stage_zero_3() -> None:
    [calls] = in_children([partial(issued, Program(), 3)])
    layers, microbatches = LAYERS, 2
    assert counted(calls) == {
        # Forward and backward; the root is not gathered again by itself, but its backward does.
        ("dp_shard", "all_gather"): (microbatches * 2 * (layers + 1), microbatches * 2 * (layers * LAYER + ENDS)),
        ("dp_shard", "reduce_scatter"): (microbatches * (layers + 1), microbatches * (layers * LAYER + ENDS)),
        ("tp", "all_reduce"): (microbatches * 2 * layers, microbatches * 2 * layers * ACTIVATION),
    }
    backward = [call for call in calls if call.axis == "tp" and call.backward]
    assert [call.fqn for call in backward[:LAYERS]] == [f"layers.{i}" for i in reversed(range(LAYERS))]
    gathers = [call.fqn for call in calls if call.kind == "all_gather"]
    assert gathers[: LAYERS + 1] == ["", *(f"layers.{i}" for i in range(LAYERS))]
    assert all(call.group == (1, 3, 5, 7) for call in calls if call.axis == "dp_shard")


@pytest.mark.parametrize("schedule", ["Schedule1F1B", "ScheduleInterleaved1F1B", "ScheduleZBVZeroBubble"])
def test_pipeline_messages(schedule: str) -> None:
    microbatches = 4
    program = Program(sizes=(2, 2, 2), schedule=schedule, microbatches=microbatches, reshard=False)
    first, last = in_children([partial(issued, program, rank) for rank in (0, 7)])
    # Boundaries between ranks: one, or of two chunks each three (interleaved) or two (V, which turns on the last rank).
    boundaries = {"Schedule1F1B": 1, "ScheduleInterleaved1F1B": 3, "ScheduleZBVZeroBubble": 2}[schedule]
    for calls, peer in ((first, 4), (last, 3)):
        messages = [call for call in calls if call.axis == "pp"]
        assert {call.peer for call in messages} == {peer}
        assert counted(messages) == {
            ("pp", kind): (microbatches * boundaries, microbatches * boundaries * ACTIVATION)
            for kind in ("send", "recv")
        }


def test_what_dtensor_does_by_itself() -> None:
    """Redistributions inside DTensor's operators are seen, on the right axis and once."""

    def run() -> list[Call]:
        with fake_world(1, 8):
            mesh = init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp_shard", "tp"))
            tp, dp = mesh["tp"], mesh["dp_shard"]
            axes = {m.get_group().group_name: name for name, m in (("tp", tp), ("dp_shard", dp))}
            with fake_tensors():
                a = DTensor.from_local(torch.empty(8, 16), tp, [Shard(1)], run_check=False)
                b = DTensor.from_local(torch.empty(16, 4), tp, [Shard(0)], run_check=False)
                observer = Observer({}, axes)
                with observer.watching():
                    partial_sum = a @ b
                    partial_sum.redistribute(tp, [Replicate()]).to_local()
                    a.full_tensor()
                    dist.broadcast(torch.empty(3), src=1, group=dp.get_group())
                    dist.barrier()
            return observer.collectives.calls

    [calls] = in_children([run])
    assert [(c.kind, c.axis, c.num_bytes) for c in calls] == [
        ("all_reduce", "tp", 8 * 4 * 4),
        ("all_gather", "tp", 8 * 32 * 4),
        ("broadcast", "dp_shard", 3 * 4),
    ]


def test_groups_of_one_do_not_communicate() -> None:
    [calls] = in_children([partial(issued, Program(sizes=(1, 8, 1)), 0)])
    assert {call.axis for call in calls} == {"dp_shard"}


def test_every_collective_of_torch_has_a_kind() -> None:
    from torch.distributed._tools.fake_collectives import collective_ops, sync_ops

    unknown = {op.name() for op in collective_ops - sync_ops if kind_of(op) is None}
    rare = {"c10d::reduce_", "c10d::gather_", "c10d::scatter_", "_c10d_functional::isend", "_c10d_functional::irecv"}
    assert unknown <= rare | {"_c10d_functional::batch_p2p_ops"}
