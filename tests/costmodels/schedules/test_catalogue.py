from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from costmodels.schedules import NAMES, Cost, Schedule, ScheduleError, StageCost, make, simulate
from costmodels.schedules.actions import parts
from hardware_profiles.errors import UnknownNameError


def grid(name: str) -> list[Schedule]:
    """Every schedule of the name that exists in a grid of small numbers."""
    found = []
    for shape in product(range(1, 7), range(1, 15), range(1, 5)):
        try:
            found.append(make(name, *shape))
        except ScheduleError:
            continue
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_runs_what_it_holds_once_and_forward_before_backward(name: str) -> None:
    schedules = grid(name)
    assert len(schedules) >= 10
    for schedule in schedules:
        seen: Counter[tuple[str, int, int]] = Counter()
        for rank, order in enumerate(schedule.orders):
            steps = {action: i for i, entry in enumerate(order) for action in parts(entry)}
            for (kind, stage, microbatch), i in steps.items():
                assert schedule.rank_of(stage, microbatch) == rank
                before = {"F": "", "B": "F", "I": "F", "W": "I"}[kind]
                assert not before or steps[before, stage, microbatch] < i  # type: ignore[index]
            seen.update(action for entry in order for action in parts(entry))
        slices = list(product(range(schedule.num_stages), range(schedule.num_microbatches)))
        assert set(seen.values()) == {1}
        assert all(seen["F", s, m] == 1 for s, m in slices)
        assert all(seen["B", s, m] + seen["I", s, m] == 1 for s, m in slices)
        assert all(seen["I", s, m] == seen["W", s, m] for s, m in slices)


@pytest.mark.parametrize("name", NAMES)
def test_no_schedule_deadlocks_nor_beats_its_busiest_rank(name: str) -> None:
    for schedule in grid(name):
        stages = tuple(StageCost(1.0 + i, 0.5, 1.0, 0.1, 0.2) for i in range(schedule.num_stages))
        timeline = simulate(schedule, Cost(stages))
        assert timeline.step_s >= max(timeline.busy_s(rank) for rank in range(schedule.num_ranks)) * (1 - 1e-12)
        assert timeline.step_s >= sum(s.forward_s + s.input_grad_s for s in stages)


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_dealt_evenly_to_ranks(name: str) -> None:
    for schedule in grid(name):
        held = [schedule.stages_of(rank) for rank in range(schedule.num_ranks)]
        assert sorted(s for stages in held for s in stages) == sorted([*range(schedule.num_stages)] * schedule.copies)
        assert len({len(stages) for stages in held}) == 1
        assert schedule.copies == (2 if name in ("dualpipe", "bitpipe") else 1)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown schedule 'dualpip'. Did you mean 'dualpipe'\?.*zb-v"):
        make("dualpip", 2, 4)


@pytest.mark.parametrize(
    ("name", "shape", "rule"),
    [
        ("1f1b", (0, 4, 1), "at least 1 of each"),
        ("1f1b", (2, 4, 2), "one chunk per rank: ask for 1"),
        ("interleaved-1f1b", (2, 4, 1), "several chunks"),
        ("interleaved-1f1b", (2, 5, 2), "m // p equal rounds"),
        ("zb-v", (2, 4, 1), "two chunks"),
        ("dualpipe", (3, 6, 1), "even number of ranks"),
        ("dualpipe", (4, 6, 1), r"at least 2 \* ranks"),
        ("dualpipe-v", (4, 6, 2), r"at least 2 \* ranks"),
        ("wave", (4, 6, 3), "even number of chunks"),
        ("bitpipe", (4, 5, 2), "even number of ranks and of microbatches"),
    ],
)
def test_what_does_not_exist_is_refused_with_its_rule(name: str, shape: tuple[int, int, int], rule: str) -> None:
    p, m, v = shape
    with pytest.raises(
        ScheduleError, match=f"no schedule {name} of {p} ranks, {m} microbatches and {v} chunks.*{rule}"
    ):
        make(name, *shape)
