"""Ranks that are lost in the middle of a step, as real processes."""

from __future__ import annotations

import os
import re
import time

import pytest
import torch
import torch.distributed as dist

from planner.errors import UsageError
from planner.runtime.watch import watched
from tests.planner.runtime.gloo import launch, run_ranks


def _train(fate: str) -> None:
    with watched(time_limit_s=6.0, silence_limit_s=4.0) as watch:
        for step in range(3):
            watch.step()
            if step == 1 and dist.get_rank() == 2:
                if fate == "dies":
                    os._exit(9)
                elif fate == "hangs":
                    time.sleep(60)
                elif fate == "fails":
                    raise ValueError("no more data")
                elif fate == "errs":
                    raise UsageError("another batch")
            dist.all_reduce(torch.ones(4))


@pytest.mark.parametrize(
    ("fate", "said", "code"),
    [
        ("dies", "rank 2 on .* died, or its host no longer answers, in step 1", 5),
        ("hangs", "all ranks wait inside of the same call for 6 s, in step 1", 5),
        ("fails", "rank 2 on .* failed in step 1: ValueError: no more data", 5),
        ("errs", "another batch", 2),
    ],
)
def test_all_ranks_end_and_name_the_one_that_was_lost(fate: str, said: str, code: int) -> None:
    began = time.monotonic()
    exits = launch(4, _train, fate, timeout_s=40)
    assert time.monotonic() - began < 35
    for rank, end in enumerate(exits):
        if fate == "dies" and rank == 2:
            assert end.code == 9
        else:
            assert end.code == code
            assert re.search(f"training ended early: {said}", end.stderr)


def test_nothing_is_said_of_ranks_that_train_to_the_end() -> None:
    assert run_ranks(2, _train, "lives") == [None, None]
