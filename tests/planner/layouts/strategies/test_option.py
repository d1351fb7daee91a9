"""Which axes an option is for."""

from __future__ import annotations

import pytest

from planner.layouts.placements import shard
from planner.layouts.strategies import Option


@pytest.mark.parametrize(
    ("size", "uneven", "num_ranks", "splits"),
    [
        (8, False, 4, True),
        (6, False, 4, False),
        (6, True, 4, False),  # two each for three, none for the fourth
        (7, True, 4, True),
        (3, True, 4, False),
        (50257, True, 8, True),
    ],
)
def test_a_factor_is_divided_evenly_or_so_that_none_is_left_with_nothing(
    size: int, uneven: bool, num_ranks: int, splits: bool
) -> None:
    option = Option((shard(0),), (shard(0),), factor=0, size=size, uneven=uneven)
    assert option.splits(num_ranks) == splits


def test_what_is_replicated_is_so_on_any_number() -> None:
    assert Option((), ()).splits(7)
