from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import pytest

from planner.calibration.cross_validation import constants_without
from planner.calibration.fit import fit
from planner.calibration.shipped import product_of, shipped
from planner.validation.cases import Case
from planner.validation.facts import shipped_cases
from planner.validation.frameworks import execution_of
from planner.validation.observations import calibrate, left_out, observations, publication
from planner.validation.outcomes import price_all
from planner.validation.pricing import price, price_with

UNSCALED = {"step"}
"""Host time per step and copies to the host: no constant is theirs."""

MEDIAN, MOST = 0.005, 0.06
"""How far scaling classes may be from pricing again, in the middle and for nine of ten rows, where constants change as
leaving out a source changes them."""


@pytest.fixture(scope="module")
def some() -> list[Case]:
    """A few rows of every source that is scored, mixtures of experts among them."""
    taken: dict[tuple[str, bool], list[Case]] = {}
    for case in shipped_cases():
        if case.scored:
            taken.setdefault((publication(case), case.moe), []).append(case)
    return [case for cases in taken.values() for case in cases[:: max(1, len(cases) // 3)][:3]]


def test_a_factor_scales_its_class_and_nothing_else(some: list[Case]) -> None:
    """The step grows by the class's seconds times the factor's excess: classes are what factors act on."""
    gained: dict[str, list[float]] = {}
    for case in some[::4]:
        if execution_of(case)[0].overlap_experts:
            continue  # an exchange beside computation takes what that leaves: both scale it
        plain = price_with(case, {})
        assert sum(plain.classes.values()) == pytest.approx(plain.step_s, rel=1e-6)
        for kind, seconds in plain.classes.items():
            if seconds > 0.05 * plain.step_s and kind not in UNSCALED:
                scaled = price_with(case, {}, {kind: 1.01})
                assert scaled.factors[kind] == 1.01
                gained.setdefault(kind, []).append((scaled.step_s - plain.step_s) / (0.01 * seconds))
    assert {"gemm", "attention", "memory_bound", "tp", "dp"} <= set(gained)
    for kind, ratios in gained.items():
        assert np.median(ratios) == pytest.approx(1.0, abs=0.25), kind
    every = [ratio for ratios in gained.values() for ratio in ratios]
    assert np.median(every) == pytest.approx(1.0, abs=0.01)
    assert np.mean([0.8 < ratio < 1.25 for ratio in every]) > 0.9


def test_calibrated_prices_have_the_shipped_constants(some: list[Case]) -> None:
    case = some[0]
    assert price(case) == price_with(case, shipped().values)
    assert set(price(case, calibrated=False).factors.values()) == {1.0}


def test_rounds_end_where_prices_and_constants_agree(some: list[Case]) -> None:
    few = some[::2]
    fitted, observed = calibrate(few, price_with)
    again = observations(price_all(few, lambda case: price_with(case, fitted.values)))
    assert [row.id for row in again] == [row.id for row in observed]
    last = fit(again)
    changes = [abs(log(fitted.values[name] / value)) for name, value in last.values.items()]
    assert max(changes) < 0.1


def test_scaled_classes_agree_with_pricing_again(some: list[Case]) -> None:
    """What a fit takes the seconds to be with other constants, classes scaled, is what they are."""
    rows = {row.id: row for row in observations(price_all(some, price))}
    without = constants_without(list(rows.values()))
    errors = []
    for case in some:
        if case.id in rows:
            values = without[publication(case)]
            factors = dict(product_of(rows[case.id].constants, values))
            scaled = sum(factors.get(kind, 1.0) * seconds for kind, seconds in rows[case.id].seconds.items())
            errors.append(abs(log(scaled / price_with(case, values).step_s)))
    assert len(errors) > 40
    errors.sort()
    assert errors[len(errors) // 2] < MEDIAN and errors[int(0.9 * len(errors))] < MOST


def test_rows_that_ship_are_priced_without_their_source(monkeypatch: pytest.MonkeyPatch, some: list[Case]) -> None:
    few = some[:12]
    monkeypatch.setattr("planner.validation.observations.shipped_cases", lambda: few)
    new = replace(few[0], id="new")
    outcomes = price_all([*few, new], price)
    slow = [replace(o, measured_s=1.5 * (o.measured_s or 1)) if same(o.case, few[3]) else o for o in outcomes]
    first, second = left_out(outcomes, price_with), left_out(slow, price_with)
    for before, after, plain in zip(first, second, outcomes, strict=True):
        assert before.priced and after.priced and plain.priced
        if before.case.id == "new":
            assert before.priced == plain.priced
        else:
            assert (before.priced.step_s == after.priced.step_s) == same(before.case, few[3])
    assert left_out([outcome for outcome in outcomes if outcome.case is not few[0]], price_with) == ()


def same(one: Case, other: Case) -> bool:
    return publication(one) == publication(other)


def test_sources_are_tables_and_repositories_hold_them(some: list[Case]) -> None:
    case = some[0]
    assert publication(replace(case, repo="a/b", source="x")) != publication(replace(case, repo="a/b", source="y"))
