"""What a validation found, as text for a terminal: every row, then the summaries; equal values give equal text."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from costmodels.units import format_seconds, gib
from planner.report.columns import columns, text
from planner.validation.outcomes import Outcome
from planner.validation.statistics import BEST, Accuracy, Feasibility, Ranking, Summary

_MAX_REASONS = 8
"""Why rows have no price stands with every row; so many reasons are counted."""


def render(outcomes: Sequence[Outcome], summary: Summary, *, width: int, color: bool = False) -> str:
    """Rows that are scored, those without a price and those that are not scored, each row once; then the summaries."""
    scored = [outcome for outcome in outcomes if outcome.case.scored and outcome.priced is not None]
    missed = [outcome for outcome in outcomes if outcome.case.scored and outcome.priced is None]
    others = [outcome for outcome in outcomes if not outcome.case.scored]
    sections = [
        _rows(found, title)
        for found, title in (
            (scored, "scored row, * of the headline"),
            (missed, "scored row without a price, and why"),
            (others, "row that is not scored, and why"),
        )
        if found
    ]
    return text([*sections, *_summaries(summary)], width=width, color=color)


def percent(value: float | None) -> str:
    """A share with its sign left out, ``-`` for None."""
    return "-" if value is None else f"{value:.1%}"


def signed(value: float | None) -> str:
    """A share with its sign, ``-`` for None."""
    return "-" if value is None else f"{value:+.1%}"


def seconds(value: float | None) -> str:
    """A time, ``-`` for None."""
    return "-" if value is None else format_seconds(value)


def gibibytes(num_bytes: float | None) -> str:
    """A size in GiB without its unit, ``-`` for None."""
    return "-" if num_bytes is None else f"{gib(num_bytes):.1f}"


def measured_gib(outcome: Outcome) -> str:
    """Measured memory in GiB without its unit; ``OOM`` for a run that did not fit."""
    if outcome.case.out_of_memory:
        return "OOM"
    return "-" if outcome.case.peak_memory_gib is None else f"{outcome.case.peak_memory_gib:.1f}"


def step_times(summary: Summary, headline: str) -> dict[str, Accuracy]:
    """Errors of step times by what they are of; ``headline`` is what its rows are called.

    Predictions of rows that the constants of calibration were fitted to are called in-sample.
    """
    held, own = (", left out by source", ", in-sample") if summary.in_sample else ("", "")
    return {
        **{f"{headline}, {name}{held}": group for name, group in summary.headline.items()},
        **{f"{headline}, {name}{own}": group for name, group in summary.in_sample.items()},
        **{f"all scored, {name}{own}": group for name, group in summary.all_scored.items()},
    }


def coverage_words(summary: Summary) -> str:
    """How many rows there are, are scored and have a price."""
    priced = sum(group.priced for group in summary.all_scored.values())
    return f"{summary.rows:,} rows, {summary.scored:,} scored, {priced:,} of these priced"


def feasibility_words(found: Feasibility) -> str:
    """How often it is right what fits."""
    return (
        f"{found.ran_predicted:,} of {found.ran:,} runs that ran are predicted to fit, "
        f"{found.out_of_memory_predicted:,} of {found.out_of_memory:,} that were out of memory not to"
    )


def figures(outcome: Outcome) -> tuple[str, ...]:
    """Seconds per step and GiB of the fullest device, each predicted, measured and the error."""
    return (
        seconds(outcome.priced.step_s if outcome.priced else None),
        seconds(outcome.measured_s),
        signed(outcome.time_error),
        gibibytes(outcome.memory_bytes),
        measured_gib(outcome),
        signed(outcome.memory_error),
    )


def ranking_words(rankings: Sequence[Ranking]) -> str:
    """Mean and median rank correlation over sweeps, and how often the best run is found."""
    correlations = [ranking.spearman for ranking in rankings if ranking.spearman is not None]
    if not correlations:
        return "no sweep has enough priced rows"
    chance = sum(min(1.0, BEST / ranking.rows) for ranking in rankings)
    mean, middle = statistics.fmean(correlations), statistics.median(correlations)
    found = sum(ranking.best_found for ranking in rankings)
    return (
        f"{len(rankings)} sweeps: rank correlation {mean:.2f} in the mean, {middle:.2f} in the median, "
        f"measured best among our {BEST} best in {found} of them ({chance:.0f} by chance)"
    )


def _rows(outcomes: Iterable[Outcome], title: str) -> Table:
    table = columns(">predicted", ">measured", ">error", ">GiB", ">measured", ">error", title)
    for outcome in outcomes:
        case = outcome.case
        star = " *" if case.core and case.scored else ""
        table.add_row(
            *figures(outcome),
            Text(f"{case.id}{star}{''.join(f'; {reason}' for reason in outcome.reasons)}"),
        )
    return table


def _summaries(summary: Summary) -> Iterable[RenderableType]:
    yield _accuracies("step time", step_times(summary, "headline (*)"))
    if summary.in_sample:
        yield Text("Left out by source: predicted by constants fitted to all other sources. All else is in-sample.")
        yield _accuracies("by source, left out", summary.left_out_by_source)
    yield _accuracies("by source", summary.by_source)
    yield _accuracies("by hardware", summary.by_hardware)
    yield _accuracies("by kind", summary.by_kind)
    yield _accuracies("memory, by counter", summary.memory)
    yield _rankings(summary.rankings)
    lines = Table.grid(padding=(0, 2))
    lines.add_row(Text("coverage", style="bold"), coverage_words(summary))
    lines.add_row(Text("fits", style="bold"), feasibility_words(summary.feasibility))
    lines.add_row(Text("ranks", style="bold"), ranking_words(summary.rankings))
    reasons = list(summary.not_priced.items())
    for reason, count in reasons[:_MAX_REASONS]:
        lines.add_row(Text("no price", style="bold"), Text(f"{count:,} rows: {reason}", overflow="ellipsis"))
    if rest := reasons[_MAX_REASONS:]:
        lines.add_row(Text("no price", style="bold"), f"{sum(count for _, count in rest):,} rows: see there")
    yield lines


def _accuracies(title: str, groups: Mapping[str, Accuracy]) -> Table:
    table = columns(">rows", ">priced", ">median", ">90 %", ">bias", title)
    for name, group in groups.items():
        figures = (percent(group.median), percent(group.p90), signed(group.bias))
        table.add_row(f"{group.rows:,}", f"{group.priced:,}", *figures, Text(name, overflow="ellipsis"))
    return table


def _rankings(rankings: Sequence[Ranking]) -> Table:
    table = columns(">rows", ">rank corr.", ">place of best", "sweep")
    for ranking in rankings:
        correlation = "-" if ranking.spearman is None else f"{ranking.spearman:.2f}"
        table.add_row(str(ranking.rows), correlation, str(ranking.best_place), Text(ranking.sweep, overflow="ellipsis"))
    return table
