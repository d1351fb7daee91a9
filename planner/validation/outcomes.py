"""A row and its price: what was predicted, what was measured, and by how much they differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodels.units import GIB, gib
from planner.validation.cases import CannotPriceError, Case
from planner.validation.memory import counter_bytes
from planner.validation.metrics import UNITS, measured_step_s, metric_at

if TYPE_CHECKING:
    from planner.validation.pricing import Priced


@dataclass(frozen=True)
class Outcome:
    """A row with its price, or why it has none."""

    case: Case
    priced: Priced | None
    why: str | None = None
    measured_s: float | None = None

    @property
    def time_error(self) -> float | None:
        """``(predicted - measured) / measured`` of the step; None where either is open."""
        return None if self.priced is None else _error(self.priced.step_s, self.measured_s)

    @property
    def memory_bytes(self) -> int | None:
        """Predicted memory as the row's counter sees it."""
        if self.priced is None:
            return None
        return counter_bytes(self.case, self.priced.allocated_bytes, self.priced.capacity_bytes)

    @property
    def memory_error(self) -> float | None:
        """``(predicted - measured) / measured`` of the fullest device's memory; None where either is open."""
        measured = self.case.peak_memory_gib
        return None if self.memory_bytes is None or not measured else _error(self.memory_bytes, measured * GIB)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the row is not scored, and why it has no price, as far as either holds."""
        return tuple(reason for reason in (self.case.why_not_scored, self.why) if reason is not None)

    @property
    def fits(self) -> bool | None:
        """Whether the prediction fits the device."""
        return None if self.priced is None else self.priced.peak_bytes <= self.priced.capacity_bytes


def price_all(
    cases: Iterable[Case],
    price: Callable[[Case], Priced],
    progress: Callable[[str], None] = lambda doing: None,
) -> tuple[Outcome, ...]:
    """Price every row; one that cannot be, for whatever reason, says so and the others go on."""
    outcomes = []
    for case in cases:
        progress(f"pricing {case.id}")
        priced, why = None, None
        try:
            priced = _sane(price(case))
        except CannotPriceError as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001 - one row's fault, ours or its own, is not to end the run
            why = f"{type(error).__name__}: {error}"
        outcomes.append(Outcome(case, priced, why, measured_step_s(case)))
    return tuple(outcomes)


def entries(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """The row as JSON: one object for its time, one for its memory, for what is measured of it.

    A run that was out of memory has a memory without a measured figure, a run without any figure a time without one.
    """
    case, priced = outcome.case, outcome.priced
    shared = {
        "core": case.core,
        "scored": case.scored,
        "why_not_scored": case.why_not_scored,
        "hardware": case.hardware,
        "main_kind": case.main_kind,
        "moe": case.moe,
        "assumptions": list(priced.assumptions) if priced else [],
    }
    has_memory = case.peak_memory_gib is not None or case.out_of_memory
    if outcome.measured_s is not None or not has_memory:
        predicted_s = priced.step_s if priced else None
        yield {
            **_entry(outcome, "time", predicted_s, outcome.measured_s, "s", outcome.time_error),
            **shared,
            "metrics": printed_metrics(outcome),
            "terms": dict(priced.terms) if priced else {},
        }
    if has_memory:
        predicted = None if outcome.memory_bytes is None else gib(outcome.memory_bytes)
        yield {
            **_entry(outcome, "memory", predicted, case.peak_memory_gib, "GiB", outcome.memory_error),
            **shared,
            "memory_kind": case.memory_kind,
            "out_of_memory": case.out_of_memory,
            "predicted_fits": outcome.fits,
        }


def printed_metrics(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Figures that stand in the row's source, as measured and as predicted by the source's own definition."""
    case, priced = outcome.case, outcome.priced
    return {
        name: {
            "predicted": metric_at(case, name, priced.step_s) if priced else None,
            "measured": getattr(case, name),
            "unit": UNITS[name],
        }
        for name in case.printed
    }


def _sane(priced: Priced) -> Priced:
    """The price; `ValueError` for one that is no time."""
    if not 0 < priced.step_s < math.inf:
        raise ValueError(f"a step of {priced.step_s} s")
    return priced


def _entry(
    outcome: Outcome, quantity: str, predicted: float | None, measured: float | None, unit: str, error: float | None
) -> dict[str, Any]:
    return {
        "id": outcome.case.id,
        "group": outcome.case.group,
        "quantity": quantity,
        "predicted": predicted,
        "measured": measured,
        "unit": unit,
        "error": error,
        "why": outcome.why,
    }


def _error(predicted: float, measured: float | None) -> float | None:
    return (predicted - measured) / measured if measured else None
