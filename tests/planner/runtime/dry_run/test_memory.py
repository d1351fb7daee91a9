"""The ledger against the allocator's own record of the same program on real tensors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.profiler import ProfilerActivity, profile

from planner.runtime.dry_run.forked import in_children
from planner.runtime.dry_run.memory import Ledger, Peak
from planner.runtime.dry_run.whereabouts import Whereabouts
from tests.planner.runtime.dry_run.programs import DIM, HIDDEN, LAYERS, TOKENS, VOCAB, Program

MIXED = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
SCALARS = 64
"""Bytes of numbers that the optimizer's arithmetic wraps into tensors, unseen by dispatch modes."""


def allocated(program: Program, rank: int) -> int:
    """Peak of a step on real tensors, from torch's profiler: every allocation and every free."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        program.observe(rank, real=True)
    changes: list[tuple[int, int]] = []

    def collect(events: Iterable) -> None:
        for event in events:
            if event.tag == torch._C._profiler._EventType.Allocation:
                changes.append((event.start_time_ns, event.extra_fields.alloc_size))
            if event.name != "aten::_chunk_cat":  # the CPU's kernel copies what it converts; a GPU's does not
                collect(event.children)

    collect(profiler.profiler.kineto_results.experimental_event_tree())
    total = most = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        total += change
        most = max(most, total)
    return most


def peak(program: Program, rank: int) -> Peak:
    return program.observe(rank).memory.peak()


PROGRAMS = {
    "zero 3, mixed precision": Program(precision=MIXED),
    "zero 2": Program(precision=MIXED, reshard=False),
    "float32": Program(microbatches=1),
    "without tp": Program(sizes=(1, 8, 1)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_peak_is_the_allocators(name: str) -> None:
    program = PROGRAMS[name]
    fake, real = in_children([partial(peak, program, 3), partial(allocated, program, 3)])
    assert isinstance(fake, Peak) and isinstance(real, int)
    assert 0 <= real - fake.num_bytes <= SCALARS
    assert sum(fake.categories.values()) == fake.num_bytes == sum(fake.by_fqn.values())


def test_what_a_rank_keeps_is_its_share() -> None:
    [found] = in_children([partial(peak, Program(precision=MIXED), 3)])
    per_rank = (2 * VOCAB * DIM + LAYERS * (DIM + 2 * HIDDEN * DIM // 2)) * 4 // 4
    assert found.categories["parameters"] == per_rank
    assert per_rank * 2 <= found.categories["optimizer"] <= per_rank * 2 + 100 * LAYERS  # and step counters
    assert all(fqn == "" or fqn.split(".")[0] in ("layers", "head", "embedding") for _, fqn in found.by_fqn)


def test_a_pipeline_rank_holds_its_microbatches_in_flight() -> None:
    """Rank 0 of two has two microbatches of 1F1B in flight, however many there are; torch's own stages keep a buffer
    for the gradient of each, and the schedule its tokens."""
    few, many = in_children([partial(peak, Program(sizes=(2, 2, 2), microbatches=m, reshard=False), 0) for m in (4, 8)])
    assert many.num_bytes - few.num_bytes == 4 * (TOKENS * DIM * 4 + TOKENS * 8)


def test_storages_count_once_and_while_they_live() -> None:
    ledger = Ledger(Whereabouts({}))
    one = torch.empty(100)
    ledger.hold([one, one.view(10, 10), one[3:]], "parameters")
    other = torch.empty(50)
    ledger.hold([other], "buffers", "layers.0")
    assert ledger.live_bytes == 600
    with ledger.resizes():
        one.untyped_storage().resize_(0)
    assert ledger.live_bytes == 200
    del other
    assert ledger.live_bytes == 0
    found = ledger.peak()
    assert found.num_bytes == 600 and found.by_fqn["buffers", "layers.0"] == 200
    assert found.categories == {"gathered_parameters": 400, "buffers": 200}
