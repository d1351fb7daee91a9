from __future__ import annotations

import dataclasses

import pytest

from costmodels.breakdown import Breakdown, Term


def term(name: str, seconds: float) -> Term:
    return Term(name=name, seconds=seconds, low_s=seconds / 2, high_s=seconds * 2, evidence="datasheet")


def test_totals_are_sums_of_the_terms() -> None:
    found = Breakdown((term("compute.gemm", 3.0), term("pp.bubble", 1.0)))
    assert (found.low_s, found.step_s, found.high_s) == (2.0, 4.0, 8.0)


def test_a_prefix_sums_what_lies_below_it_by_whole_parts_of_the_name() -> None:
    found = Breakdown((term("dp.gather", 1.0), term("dp.reduce", 2.0), term("dpx", 4.0), term("dp", 8.0)))
    assert found.seconds("dp") == 11.0
    assert found.seconds("dp.reduce") == 2.0
    assert found.seconds("d") == 0.0


def test_nothing_can_be_changed_and_nothing_is_zero() -> None:
    assert Breakdown(()).step_s == 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        Breakdown(()).terms = ()  # type: ignore[misc]
