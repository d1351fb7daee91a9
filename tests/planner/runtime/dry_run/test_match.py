"""All ranks of a small job communicate alike; one that does not is found."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from planner.runtime.dry_run.collectives import Call
from planner.runtime.dry_run.forked import ChildError, in_children
from planner.runtime.dry_run.match import mismatches, trace_ranks
from tests.planner.runtime.dry_run.programs import Program


def trace(program: Program, rank: int) -> list[Call]:
    return program.observe(rank).collectives.calls


def talkative(program: Program, rank: int) -> list[Call]:
    """Rank 5 alone reduces something more behind its first layer."""

    def extra(layer: nn.Module, tp: DeviceMesh) -> None:
        layer.register_forward_pre_hook(
            lambda _, inputs: dist.all_reduce(torch.zeros_like(inputs[0]), group=tp.get_group())
        )

    changed = Program(**{**vars(program), "on_layer": extra if rank == 5 else None})
    return trace(changed, rank)


@pytest.mark.parametrize("schedule", ["Schedule1F1B", "ScheduleZBVZeroBubble"])
def test_ranks_match(schedule: str) -> None:
    program = Program(sizes=(2, 2, 2), schedule=schedule, microbatches=4, reshard=False)
    logs = trace_ranks(partial(trace, program), 8)
    assert all(logs.values()) and mismatches(logs) == []


def test_an_extra_collective_is_found() -> None:
    program = Program(sizes=(2, 2, 2), microbatches=2, reshard=False)
    [found] = mismatches(trace_ranks(partial(talkative, program), 8))
    assert (found.axis, found.ranks) == ("tp", (4, 5))
    assert "rank 5 issues all_reduce of 1x32x64 float32 in layers.2 (forward)" in str(found)
    assert "rank 4 issues nothing" in str(found)


def call(kind: str, fqn: str = "", *, peer: int | None = None, size: int = 8) -> Call:
    return Call(
        kind=kind, axis="pp" if peer is not None else "tp", group=(0, 1), shapes=((size,),), dtype="float32",
        num_bytes=4 * size, fqn=fqn, backward=False, peer=peer,
    )  # fmt: skip


def test_sends_and_receives() -> None:
    sent, received = call("send", "layers.3", peer=1), call("recv", peer=0)
    assert mismatches({0: [sent, sent], 1: [received, received]}) == []
    [short] = mismatches({0: [sent, sent], 1: [received]})
    assert short.ranks == (0, 1) and "rank 1 receives nothing" in short.message
    [other] = mismatches({0: [sent], 1: [call("recv", peer=0, size=9)]})
    assert "send of 8 float32 in layers.3" in other.message and "recv of 9" in other.message


def test_who_stays_away_is_named() -> None:
    [found] = mismatches({0: [call("all_reduce")], 1: []})
    assert "nothing" in found.message
    [sizes] = mismatches({0: [call("all_reduce")], 1: [call("all_reduce", size=9)]})
    assert "all_reduce of 8" in sizes.message and "all_reduce of 9" in sizes.message


def test_children_give_results_in_order_and_errors_with_their_traceback() -> None:
    assert in_children([partial(pow, 2, n) for n in range(5)]) == [1, 2, 4, 8, 16]
    with pytest.raises(ChildError, match="ZeroDivisionError"):
        in_children([partial(divmod, 1, 0)])
