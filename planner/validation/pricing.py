"""`price`: what the cost model says of one measured run, at exactly the run's own layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from planner.calibration.scopes import constants_of
from planner.calibration.shipped import product_of, shipped
from planner.layouts.model import analyse_model
from planner.solvers.classes import CLASSES
from planner.solvers.prices import price_blocks
from planner.solvers.segment_costs import SegmentCosts
from planner.solvers.step_price import price_step
from planner.validation.cases import Case
from planner.validation.layout import layout_of
from planner.validation.memory import least_driver_bytes


@dataclass(frozen=True)
class Priced:
    """What is predicted of one run."""

    step_s: float
    peak_bytes: int
    """Least that the fullest device must have, as its driver counts."""
    allocated_bytes: int
    """Tensors of the fullest device at their peak, as torch's allocator counts."""
    capacity_bytes: int
    terms: Mapping[str, float]
    """Seconds by named term; their sum is ``step_s``."""
    classes: Mapping[str, float]
    """The same seconds by class of operation."""
    assumptions: tuple[str, ...]
    constants: Mapping[str, tuple[str, ...]]
    """By class, the constants of calibration that belong to the run."""
    factors: Mapping[str, float]
    """By class, what the constants make of the seconds: ``classes`` have it in them."""


def price(case: Case, *, calibrated: bool = True) -> Priced:
    """Price the layout of a run, with the shipped constants of calibration or without any.

    Raises `CannotPriceError` with what is missing.
    """
    return price_with(case, shipped().values if calibrated else {})


def price_with(case: Case, values: Mapping[str, float], own: Mapping[str, float] = MappingProxyType({})) -> Priced:
    """The same with these constants of calibration, and further factors by class for this run alone."""
    setting, candidate, cuts, assumed = layout_of(case)
    names = constants_of(
        device=setting.cluster.device.name,
        execution=setting.execution,
        low_precision=setting.execution.linear_dtype is not None,
        experts=case.moe,
    )
    shared = dict(product_of(names, values))
    factors = {kind: shared.get(kind, 1.0) * own.get(kind, 1.0) for kind in CLASSES}
    setting = replace(setting, execution=replace(setting.execution, time_factor=tuple(factors.items())))
    prices = price_blocks(setting, candidate, analyse_model(setting.graph).blocks)
    found = price_step(SegmentCosts(setting, candidate, prices), cuts)
    return Priced(
        step_s=float(found.step_s),
        peak_bytes=least_driver_bytes(case, found.peak_bytes),
        allocated_bytes=found.peak_bytes,
        capacity_bytes=setting.cluster.device.memory_bytes,
        terms={term.name: float(term.seconds) for term in found.breakdown.terms},
        classes={kind: float(seconds) for kind, seconds in found.classes.items()},
        assumptions=assumed,
        constants=names,
        factors=factors,
    )
