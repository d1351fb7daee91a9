"""A user's own measured steps: how far the device's figures are off on their cluster, beyond the shipped constants.

Every run that counts in validation (`Case.scored`) is priced with the shipped constants. On top, one constant for each
of the device's own figures (`FIGURES`) is fitted as `planner.calibration.fit` does, with 1 as prior: a cluster without
runs is what the published ones were. A constant that fewer than `MIN_RUNS` runs inform stays there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

from hardware_profiles.figures import Evidence
from planner.calibration.fit import INFORMING_SHARE, Observation, fit
from planner.calibration.profile import Refinement
from planner.calibration.shipped import shipped
from planner.errors import MeshwrightError
from planner.validation.cases import Case
from planner.validation.layout import layout_of
from planner.validation.metrics import measured_step_s
from planner.validation.observations import ROUNDS, observe
from planner.validation.outcomes import Outcome, price_all
from planner.validation.pricing import Priced, price_with

FIGURES: Mapping[str, str] = {
    "gemm": "products",
    "gemm-fp8": "products in fp8 or fp4",
    "attention": "fused attention",
    "memory": "memory bandwidth",
    "node": "collectives in the node",
    "network": "collectives over the network",
}

OWN_SD = 0.15
"""Prior standard deviation of a cluster's own constants, in logarithms: how far publications are from each other."""

OWN_NOISE_SD = 0.04
"""Of a cluster's own steps around the best prediction: repeats of one run differ by 4 % (median of BLOOM's repeats)."""

MIN_RUNS = 2
"""Fewer runs do not tell a figure from what is odd about one run."""


class CalibrationError(MeshwrightError):
    """Measured runs that nothing can be fitted to: which, why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """One figure's factor on its seconds: as shipped, and as fitted with its standard error.

    ``runs`` spend more than `INFORMING_SHARE` of their step on it; with fewer than `MIN_RUNS` of them it is as shipped.
    """

    figure: str
    shipped: float
    fitted: float
    sd: float
    runs: int

    @property
    def informed(self) -> bool:
        """Whether enough runs tell it."""
        return self.runs >= MIN_RUNS

    def refinement(self, source: str) -> Refinement:
        """What becomes of the profile's figures; ``source`` are the runs."""
        evidence: Evidence = "measured" if self.informed else "derived"
        return Refinement(self.fitted, evidence, source if self.informed else "Constants of calibration that ship")


@dataclass(frozen=True)
class OwnFit:
    """What the runs tell: the profile that they ran on, its figures, and every run before and after."""

    profile: str
    figures: tuple[Own, ...]
    before: tuple[Outcome, ...]
    after: tuple[Outcome, ...]


def fit_runs(
    cases: Sequence[Case], hardware: str | None = None, progress: Callable[[str], None] = lambda doing: None
) -> OwnFit:
    """Fit the figures of the device that the runs ran on; ``hardware`` takes only runs of this name or profile.

    Raises `CalibrationError` where no run is left, runs are of several profiles, or one cannot be priced.
    """
    runs = [case for case in cases if case.scored and measured_step_s(case) is not None]
    if not runs:
        why = "; ".join(f"{case.id!r}: {case.why_not_scored or 'says no time'}" for case in cases[:3])
        raise CalibrationError(f"no usable run among {len(cases)} rows ({why or 'the file has none'})")
    own: dict[str, Mapping[str, float]] = {}

    def price(case: Case) -> Priced:
        return price_with(case, shipped().values, own.get(case.id, {}))

    before = _of_one_profile(price_all(runs, price, progress), hardware)
    names = {outcome.case.id: _own_names(outcome.case) for outcome in before}
    after = before
    for _ in range(ROUNDS):
        observed = [observe(outcome, names[outcome.case.id], own.get(outcome.case.id, {})) for outcome in after]
        fitted = fit(_informed(observed), lambda _: OWN_SD, noise_sd=OWN_NOISE_SD)
        own |= {
            run: {kind: fitted.values.get(figure, 1.0) for kind, (figure,) in of.items()} for run, of in names.items()
        }
        after = price_all([outcome.case for outcome in before], price, progress)
    sd_of = {constant.name: constant.sd / constant.value for constant in fitted.constants}
    runs_of = _runs(observed)
    first, last = _mean_factors(before, names), _mean_factors(after, names)
    figures = tuple(
        Own(
            figure=figure, shipped=first[figure], fitted=last[figure],
            sd=last[figure] * sd_of.get(figure, OWN_SD), runs=runs_of[figure],
        )
        for figure in FIGURES
        if figure in first
    )  # fmt: skip
    return OwnFit(_profile(before[0]), figures, before, after)


def _of_one_profile(outcomes: Sequence[Outcome], hardware: str | None) -> tuple[Outcome, ...]:
    """Those of ``hardware``, all priced and all of one profile."""
    known = sorted({outcome.case.hardware for outcome in outcomes})
    if hardware is not None:
        outcomes = [o for o in outcomes if hardware in (o.case.hardware, _profile(o) if o.priced else None)]
        if not outcomes:
            raise CalibrationError(f"no usable run of {hardware}: the runs are of {', '.join(known)}")
    for outcome in outcomes:
        if outcome.priced is None:
            raise CalibrationError(
                f"run {outcome.case.id!r} cannot be priced: {outcome.why}; mend the row, or leave it out"
            )
    if len({_profile(outcome) for outcome in outcomes}) > 1:
        raise CalibrationError(f"runs of several devices, {', '.join(known)}: name one with --hardware")
    return tuple(outcomes)


def _profile(outcome: Outcome) -> str:
    setting, *_ = layout_of(outcome.case)
    return setting.cluster.device.name


def _own_names(case: Case) -> dict[str, tuple[str, ...]]:
    """By class of the run's seconds, the figure that they depend on; classes that depend on none have none."""
    setting, candidate, *_ = layout_of(case)
    cluster, execution = setting.cluster, setting.execution
    beyond = "network" if cluster.num_nodes > 1 else "node"
    figures = {
        "gemm": "gemm" if execution.linear_dtype is None else "gemm-fp8",
        "memory_bound": "memory",
        "optimizer": "memory",
        "tp": "node" if candidate.tp <= cluster.devices_per_node else "network",
        "cp": beyond,
        "ep": beyond,
        "dp": beyond,
    }
    if execution.attention != "unfused":
        figures["attention"] = "attention"
    return {kind: (figure,) for kind, figure in figures.items()}


def _shares(row: Observation) -> dict[str, float]:
    shares = dict.fromkeys(FIGURES, 0.0)
    for kind, (figure,) in row.constants.items():
        shares[figure] += row.seconds.get(kind, 0.0) / sum(row.seconds.values())
    return shares


def _runs(observed: Sequence[Observation]) -> dict[str, int]:
    """How many runs inform each figure."""
    return {figure: sum(_shares(row)[figure] > INFORMING_SHARE for row in observed) for figure in FIGURES}


def _informed(observed: Sequence[Observation]) -> list[Observation]:
    """The observations without the constants that too few of them inform."""
    told = {figure for figure, runs in _runs(observed).items() if runs >= MIN_RUNS}
    return [
        Observation(
            id=row.id, source=row.source, group=row.group, measured_s=row.measured_s, seconds=row.seconds,
            constants={kind: of for kind, of in row.constants.items() if told.issuperset(of)},
        )
        for row in observed
    ]  # fmt: skip


def _mean_factors(outcomes: Sequence[Outcome], names: Mapping[str, Mapping[str, tuple[str, ...]]]) -> dict[str, float]:
    """Factor on each figure's seconds, where any are spent on it: geometric mean over runs and classes, weighted with
    these seconds."""
    seconds, logarithms = defaultdict[str, float](float), defaultdict[str, float](float)
    for outcome in outcomes:
        priced = outcome.priced
        assert priced is not None, outcome.case.id
        for kind, (figure,) in names[outcome.case.id].items():
            seconds[figure] += priced.classes[kind]
            logarithms[figure] += priced.classes[kind] * log(priced.factors[kind])
    return {figure: exp(logarithms[figure] / spent) for figure, spent in seconds.items() if spent}
