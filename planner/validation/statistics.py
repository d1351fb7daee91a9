"""How far prices are from what was measured: errors of step time and memory, ranks within sweeps, what fits.

Errors are relative to what was measured; medians and 90th percentiles are of their absolute values. Groups are judged
on the rows that are scored; headline and totals tell dense models from mixtures of experts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.validation.cases import Case
from planner.validation.outcomes import Outcome

Quantity = Literal["time", "memory"]

SWEEP_ROWS = 5
"""Fewer priced rows say nothing of ranks."""

BEST = 3
"""A sweep's best run is found where it is among as many best predictions."""


@dataclass(frozen=True)
class Accuracy:
    """Errors of a group of rows; ``rows`` have a measured figure, ``priced`` of them a price. None without a price."""

    rows: int
    priced: int
    median: float | None
    p90: float | None
    bias: float | None


@dataclass(frozen=True)
class Ranking:
    """One sweep: runs of one model, length and precision on one machine, with one framework.

    ``spearman``: rank correlation of predicted and measured seconds per token, None where either is the same for all;
    ``best_place``: place that the predictions give the run that was measured best, 1 for the first.
    """

    sweep: str
    rows: int
    spearman: float | None
    best_place: int

    @property
    def best_found(self) -> bool:
        """Whether the measured best is among our `BEST` best."""
        return self.best_place <= BEST


@dataclass(frozen=True)
class Feasibility:
    """What fits: of the runs that ran, and of those that ran out of memory, how many are predicted to do so."""

    ran: int
    ran_predicted: int
    out_of_memory: int
    out_of_memory_predicted: int


@dataclass(frozen=True)
class Summary:
    """All that is said of a set of outcomes. Keys of ``headline``, ``in_sample``, ``all_scored``: ``dense``, ``moe``.

    Where constants were left out by source, ``headline`` and ``left_out_by_source`` are of these predictions and
    ``in_sample`` is the headline with all constants, as everything else is; otherwise both are empty.
    """

    rows: int
    scored: int
    headline: dict[str, Accuracy]
    in_sample: dict[str, Accuracy]
    left_out_by_source: dict[str, Accuracy]
    all_scored: dict[str, Accuracy]
    by_source: dict[str, Accuracy]
    by_hardware: dict[str, Accuracy]
    by_kind: dict[str, Accuracy]
    memory: dict[str, Accuracy]
    feasibility: Feasibility
    rankings: tuple[Ranking, ...]
    not_priced: dict[str, int]


def summarise(outcomes: Sequence[Outcome], left_out: Sequence[Outcome] = ()) -> Summary:
    """Statistics of all rows that are scored, headline and the rest; reasons also of rows that are not.

    ``left_out``: the same rows, predicted by constants that do not know a row's source
    (`planner.validation.observations.left_out`).
    """
    scored = [outcome for outcome in outcomes if outcome.case.scored]
    held = [outcome for outcome in left_out if outcome.case.scored]
    headline, held_headline = (
        accuracies([outcome for outcome in of if outcome.case.core], _density) for of in (scored, held)
    )
    with_memory = [outcome for outcome in scored if outcome.case.peak_memory_gib is not None]
    return Summary(
        rows=len(outcomes),
        scored=len(scored),
        headline=held_headline if left_out else headline,
        in_sample=headline if left_out else {},
        left_out_by_source=accuracies(held, lambda case: case.source),
        all_scored=accuracies(scored, _density),
        by_source=accuracies(scored, lambda case: case.source),
        by_hardware=accuracies(scored, lambda case: case.hardware),
        by_kind=accuracies(scored, lambda case: case.main_kind),
        memory=accuracies(with_memory, lambda case: case.memory_kind or "unspecified", "memory"),
        feasibility=feasibility(outcomes),
        rankings=rankings(scored),
        not_priced=dict(Counter(outcome.why for outcome in outcomes if outcome.why is not None).most_common()),
    )


def accuracy(outcomes: Iterable[Outcome], quantity: Quantity = "time") -> Accuracy:
    """Errors of one group of rows."""
    found = list(outcomes)
    all_errors = [outcome.time_error if quantity == "time" else outcome.memory_error for outcome in found]
    errors = [error for error in all_errors if error is not None]
    if not errors:
        return Accuracy(len(found), 0, None, None, None)
    sizes = np.abs(errors)
    return Accuracy(
        rows=len(found),
        priced=len(errors),
        median=float(np.median(sizes)),
        p90=float(np.percentile(sizes, 90)),
        bias=float(np.median(errors)),
    )


def accuracies(
    outcomes: Iterable[Outcome], key: Callable[[Case], str], quantity: Quantity = "time"
) -> dict[str, Accuracy]:
    """Errors by group, the group with most rows first."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[key(outcome.case)].append(outcome)
    largest_first = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: accuracy(members, quantity) for name, members in largest_first}


def feasibility(outcomes: Iterable[Outcome]) -> Feasibility:
    """Fits and misfits over the priced rows: scored ones, which ran, and those that ran out of memory."""
    priced = [outcome for outcome in outcomes if outcome.priced is not None]
    ran = [outcome for outcome in priced if outcome.case.scored]
    failed = [outcome for outcome in priced if outcome.case.out_of_memory]
    return Feasibility(
        ran=len(ran),
        ran_predicted=sum(outcome.fits is True for outcome in ran),
        out_of_memory=len(failed),
        out_of_memory_predicted=sum(outcome.fits is False for outcome in failed),
    )


def rankings(outcomes: Iterable[Outcome]) -> tuple[Ranking, ...]:
    """Ranks within every sweep of at least `SWEEP_ROWS` priced rows, the largest sweep first."""
    sweeps: dict[tuple[object, ...], list[tuple[float, float]]] = defaultdict(list)
    for outcome in outcomes:
        case, priced = outcome.case, outcome.priced
        if priced is None or outcome.measured_s is None or not case.global_batch:
            continue
        sweeps[_sweep(case)].append((priced.step_s / case.global_batch, outcome.measured_s / case.global_batch))
    found = [_ranking(_sweep_name(key), pairs) for key, pairs in sweeps.items() if len(pairs) >= SWEEP_ROWS]
    return tuple(sorted(found, key=lambda ranking: (-ranking.rows, ranking.sweep)))


def _ranking(sweep: str, pairs: Sequence[tuple[float, float]]) -> Ranking:
    from scipy.stats import spearmanr

    predicted, measured = zip(*pairs, strict=True)
    varied = len(set(predicted)) > 1 and len(set(measured)) > 1
    best = min(range(len(pairs)), key=measured.__getitem__)
    return Ranking(
        sweep=sweep,
        rows=len(pairs),
        spearman=float(spearmanr(predicted, measured).statistic) if varied else None,
        best_place=1 + sum(seconds < predicted[best] for seconds in predicted),
    )


def _density(case: Case) -> str:
    return "moe" if case.moe else "dense"


def _sweep(case: Case) -> tuple[object, ...]:
    """What a user who looks for a layout has given: all runs that agree in it are alternatives of each other."""
    job = (case.group, case.model, case.hardware, case.gpus, case.seq_len)
    return (*job, case.precision, case.framework, case.framework_version)


def _sweep_name(key: tuple[object, ...]) -> str:
    group, _, hardware, gpus, seq_len, precision, _, version = key
    software = "" if version is None else f" {version}"
    return f"{group}{software}: {gpus} x {hardware}, {seq_len} tokens, {precision}"
