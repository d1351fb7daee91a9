"""The harness itself: a test that cannot fail proves nothing."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from tests.planner.runtime.gloo import launch, run_ranks


def _sum(start: int) -> float:
    value = torch.tensor([float(start + dist.get_rank())])
    dist.all_reduce(value)
    return value.item()


def _fail_on_two() -> None:
    if dist.get_rank() == 2:
        raise ValueError("nothing to see")
    dist.barrier()


def _die() -> None:
    if dist.get_rank() == 1:
        os._exit(7)


def test_results_come_back_from_every_rank() -> None:
    assert run_ranks(4, _sum, 10) == [46.0] * 4


def test_the_first_failure_is_named_with_its_rank() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 2 of 4:.*ValueError: nothing to see"):
        run_ranks(4, _fail_on_two)


def test_how_processes_end() -> None:
    codes = [end.code for end in launch(2, _die, timeout_s=10)]
    assert codes[1] == 7 and codes[0] != 0
