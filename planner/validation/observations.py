"""From priced rows to what calibration is fitted to, and back: constants, and predictions with sources left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from planner.calibration.cross_validation import constants_without, seconds_without
from planner.calibration.fit import Fit, Observation, fit
from planner.validation.cases import Case
from planner.validation.facts import shipped_cases
from planner.validation.outcomes import Outcome, price_all

if TYPE_CHECKING:
    from planner.validation.pricing import Priced

ROUNDS = 4
"""Of pricing and fitting: what hides behind what changes with the constants, and has settled by then."""


def publication(case: Case) -> str:
    """What is left out at once: the table or paper that a row is from, as the file of rows names it."""
    return case.source


def observations(outcomes: Iterable[Outcome]) -> tuple[Observation, ...]:
    """The rows that have a price and a measured step, with the constants that belong to each."""
    return tuple(
        observe(outcome, outcome.priced.constants, outcome.priced.factors)
        for outcome in outcomes
        if outcome.priced is not None and outcome.measured_s is not None
    )


def observe(outcome: Outcome, constants: Mapping[str, tuple[str, ...]], factors: Mapping[str, float]) -> Observation:
    """A priced row with ``constants`` by class in place of the ``factors`` by class that its price has in it."""
    case, priced = outcome.case, outcome.priced
    assert priced is not None and outcome.measured_s is not None, case.id
    return Observation(
        id=case.id,
        source=publication(case),
        group=case.group,
        measured_s=outcome.measured_s,
        seconds={kind: seconds / factors.get(kind, 1.0) for kind, seconds in priced.classes.items()},
        constants=constants,
    )


def calibrate(
    cases: Iterable[Case],
    price_with: Callable[..., Priced],
    progress: Callable[[str], None] = lambda doing: None,
) -> tuple[Fit, tuple[Observation, ...]]:
    """Constants of the rows that are scored, and the observations of the last round: price with what was found, fit.

    ``price_with`` is `planner.validation.pricing.price_with`.
    """
    scored = [case for case in cases if case.scored]
    fitted = Fit((), {})
    for _ in range(ROUNDS):
        outcomes = price_all(scored, partial(price_with, values=fitted.values), progress)
        observed = observations(outcomes)
        fitted = fit(observed)
    return fitted, observed


def left_out(
    outcomes: Sequence[Outcome],
    price_with: Callable[..., Priced],
    progress: Callable[[str], None] = lambda doing: None,
) -> tuple[Outcome, ...]:
    """The calibrated outcomes, each shipped row that is scored priced again with constants that do not know its source.

    Rows that do not ship stay as they are: the constants never saw them. Empty where shipped rows are missing, without
    which the constants cannot be fitted. ``price_with`` is `planner.validation.pricing.price_with`.
    """
    trained = {case.id for case in shipped_cases() if case.scored}
    if not trained <= {outcome.case.id for outcome in outcomes}:
        return ()
    values = constants_without(observations(outcome for outcome in outcomes if outcome.case.id in trained))
    held = [o.case for o in outcomes if o.case.id in trained and o.priced is not None and o.measured_s is not None]

    def price(case: Case) -> Priced:
        return price_with(case, values[publication(case)])

    again = {outcome.case.id: outcome for outcome in price_all(held, price, progress)}
    return tuple(again.get(outcome.case.id, outcome) for outcome in outcomes)


def left_out_by_repository(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """The scored rows, each predicted by constants that know no row of its repository: stricter than by source, where
    tables of one repository count apart. In closed form (`planner.calibration.cross_validation.seconds_without`)."""
    scored = {outcome.case.id: outcome for outcome in outcomes if outcome.case.scored}
    cases = {row_id: outcome.case for row_id, outcome in scored.items()}
    rows = [replace(row, source=cases[row.id].repo or cases[row.id].source) for row in observations(scored.values())]
    found = []
    for row_id, step_s in seconds_without(rows).items():
        priced = scored[row_id].priced
        assert priced is not None, row_id
        found.append(replace(scored[row_id], priced=replace(priced, step_s=step_s)))
    return tuple(found)
