"""What the search uses of 1F1B: closed forms of its step and of what its ranks hold.

Orders and simulation of this and of other schedules are in `costmodels.schedules`.
"""

from __future__ import annotations

from collections.abc import Sequence


def in_flight(rank: int, num_stages: int, num_microbatches: int) -> int:
    """Microbatches whose activations rank ``rank`` holds at once under 1F1B: ``min(num_stages - rank,
    num_microbatches)``."""
    return min(num_stages - rank, num_microbatches)


def closed_form_s(stage_s: Sequence[float], num_microbatches: int) -> float:
    """Seconds of 1F1B: ``sum_i t_i + (m - 1) max_i t_i`` with ``t_i`` forward + backward of one microbatch on stage i.

    Exact for equal stages and an upper bound for stages that share one ratio of backward to forward (compared with
    `costmodels.schedules` in the tests); the form that stage splitting minimises (Zheng et al. 2022, Alpa, eq. 2).
    """
    return sum(stage_s) + (num_microbatches - 1) * max(stage_s)
