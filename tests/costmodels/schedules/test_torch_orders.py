"""Orders action by action against torch's own schedules."""

from __future__ import annotations

from typing import Any

import pytest
from torch.distributed.pipelining import schedules as torchs

from costmodels.schedules import Action, Entry, Pair, make

SHAPES = [(1, 2), (2, 2), (2, 6), (3, 3), (3, 8), (4, 4), (4, 10), (4, 16), (5, 12)]
"""(ranks, microbatches)"""


class RecordingStage:
    """Stands in for torch's `PipelineStage` and notes the order of its work."""

    is_last = False

    def __init__(self, stage_index: int) -> None:
        self.stage_index = stage_index
        self.done: list[Entry] = []

    def forward_one_chunk(self, microbatch: int, *_: Any, **__: Any) -> None:
        self.done.append(Action("F", self.stage_index, microbatch))

    def backward_one_chunk(self, microbatch: int, **_: Any) -> None:
        self.done.append(Action("B", self.stage_index, microbatch))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("get_"):
            return lambda *_: None
        return lambda _: []


@pytest.mark.parametrize(("name", "kind"), [("gpipe", torchs.ScheduleGPipe), ("1f1b", torchs.Schedule1F1B)])
@pytest.mark.parametrize(("num_ranks", "num_microbatches"), SHAPES)
def test_what_a_single_stage_is_made_to_do(name: str, kind: Any, num_ranks: int, num_microbatches: int) -> None:
    """Sends and receives are empty lists, so no process group is needed.

    (`_get_pipeline_order` would be simpler, but torch 2.13 starts the last rank of 1F1B there at microbatch 1.)
    """
    for rank, ours in enumerate(make(name, num_ranks, num_microbatches).orders):
        stage = RecordingStage(rank)
        schedule = kind.__new__(kind)
        schedule._stage, schedule._num_stages, schedule._n_microbatches = stage, num_ranks, num_microbatches
        schedule._loss_fn, schedule._internal_losses, schedule.scale_grads = None, [], True
        schedule._has_backward, schedule._initialize_stage = True, lambda *_: None
        schedule._step_microbatches([()] * num_microbatches, [{}] * num_microbatches, [None] * num_microbatches)
        assert tuple(stage.done) == ours


@pytest.mark.parametrize(
    ("name", "kind", "num_chunks"),
    [
        ("interleaved-1f1b", torchs.ScheduleInterleaved1F1B, 2),
        ("interleaved-1f1b", torchs.ScheduleInterleaved1F1B, 3),
        ("looped-bfs", torchs.ScheduleLoopedBFS, 1),
        ("looped-bfs", torchs.ScheduleLoopedBFS, 3),
        ("zb-h1", torchs.ScheduleInterleavedZeroBubble, 1),
        ("zb-h1", torchs.ScheduleInterleavedZeroBubble, 3),
        ("zb-v", torchs.ScheduleZBVZeroBubble, 2),
        ("dualpipe-v", torchs.ScheduleDualPipeV, 2),
    ],
)
@pytest.mark.parametrize(("num_ranks", "num_microbatches"), SHAPES)
def test_what_ranks_with_chunks_are_made_to_do(
    name: str, kind: Any, num_chunks: int, num_ranks: int, num_microbatches: int
) -> None:
    if name == "dualpipe-v" and num_microbatches < 2 * num_ranks:
        pytest.skip("DualPipeV takes two microbatches per rank")
    schedule = kind.__new__(kind)
    schedule.pp_group_size, schedule._n_microbatches = num_ranks, num_microbatches
    schedule.n_local_stages, schedule._stages = num_chunks, [None] * num_chunks
    schedule.num_stages = num_ranks * num_chunks
    schedule.microbatches_per_round = num_microbatches // max(1, num_microbatches // num_ranks)
    for rank, ours in enumerate(make(name, num_ranks, num_microbatches, num_chunks).orders):
        expected = [entry(action) for action in schedule._calculate_single_rank_operations(rank) if action is not None]
        assert ours == tuple(expected)


def entry(action: Any) -> Entry:
    if action.sub_actions is not None:
        forward, backward = (
            Action(a.computation_type.value, a.stage_index, a.microbatch_index) for a in action.sub_actions
        )
        return Pair(forward, backward)
    return Action(action.computation_type.value, action.stage_index, action.microbatch_index)
