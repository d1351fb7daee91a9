"""Pipeline schedules as event lists, their simulation, and the closed form that the search uses.

A schedule is a list of actions per pipeline rank. `simulate` runs any such lists against the dependencies of a pipeline
(forward needs the previous stage's forward, backward the next stage's backward); a new schedule is a new generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Action(NamedTuple):
    """One slice of work of one pipeline rank."""

    kind: str
    """``F`` or ``B``."""
    microbatch: int


def one_f_one_b(rank: int, num_stages: int, num_microbatches: int) -> list[Action]:
    """Actions of one rank under 1F1B: warm up with forwards, alternate, drain (PipeDream-Flush, Narayanan et al.
    2021)."""
    warmup = in_flight(rank, num_stages, num_microbatches)
    actions = [Action("F", i) for i in range(warmup)]
    for i in range(num_microbatches):
        actions.append(Action("B", i))
        if i + warmup < num_microbatches:
            actions.append(Action("F", i + warmup))
    return actions


def in_flight(rank: int, num_stages: int, num_microbatches: int) -> int:
    """Microbatches whose activations rank ``rank`` holds at once under 1F1B: ``min(num_stages - rank,
    num_microbatches)``."""
    return min(num_stages - rank, num_microbatches)


def simulate(schedule: Sequence[Sequence[Action]], forward_s: Sequence[float], backward_s: Sequence[float]) -> float:
    """Seconds until the last action ends, each rank running its list in order as soon as inputs are there.

    Args:
        schedule: per rank, its actions; rank i is stage i.
        forward_s, backward_s: per stage, seconds of one microbatch.
    Raises:
        ValueError: the lists wait for each other in a circle.
    """
    last = len(schedule) - 1
    done: dict[tuple[str, int, int], float] = {}
    clock = [0.0] * len(schedule)
    position = [0] * len(schedule)
    while any(position[r] < len(schedule[r]) for r in range(len(schedule))):
        moved = False
        for rank, actions in enumerate(schedule):
            while position[rank] < len(actions):
                kind, microbatch = actions[position[rank]]
                if kind == "F":
                    needs = ("F", rank - 1, microbatch) if rank else None
                else:
                    needs = ("B", rank + 1, microbatch) if rank < last else ("F", rank, microbatch)
                if needs is not None and needs not in done:
                    break
                start = max(clock[rank], done[needs] if needs else 0.0)
                clock[rank] = start + (forward_s if kind == "F" else backward_s)[rank]
                done[kind, rank, microbatch] = clock[rank]
                position[rank] += 1
                moved = True
        if not moved:
            raise ValueError("the schedule's ranks wait for each other")
    return max(clock)


def closed_form_s(stage_s: Sequence[float], num_microbatches: int) -> float:
    """Seconds of 1F1B: ``sum_i t_i + (m - 1) max_i t_i`` with ``t_i`` forward + backward of one microbatch on stage i.

    Exact for equal stages and an upper bound for stages that share one ratio of backward to forward (compared with
    `simulate` in the tests); the form that stage splitting minimises (Zheng et al. 2022, Alpa, eq. 2).
    """
    return sum(stage_s) + (num_microbatches - 1) * max(stage_s)
