"""docs/accuracy.md and its picture: the same figures as `planner.validation.report`, for the documentation."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from planner.report.plotting import plotting
from planner.validation.outcomes import Outcome
from planner.validation.report import (
    coverage_words,
    feasibility_words,
    figures,
    percent,
    ranking_words,
    signed,
    step_times,
)
from planner.validation.statistics import Accuracy, Ranking, Summary

PICTURE = "accuracy.svg"
PAGE = "accuracy.md"

_ACCURACY_HEAD = ("rows", "priced", "median error", "90th percentile", "bias")
_SWEEPS = (
    "A sweep is one model, sequence length and precision on one machine with one framework; its runs differ in layout "
    "and batch."
)
_MEMORY = (
    "By what the source's counter counts. These errors are in-sample: no constant of calibration scales memory, but "
    "what the counters add to tensors, and what frameworks keep, was found on these rows "
    "([which](calibration.md#numbers-outside-of-the-fit-that-rows-informed))."
)
_INTRODUCTION = """\
# Accuracy

Every published training run that Meshwright knows is priced with exactly its layout and compared with what was
measured: seconds per optimizer step, and memory of the fullest device. Errors are relative to the measured figure,
medians and percentiles of their absolute values; the bias is the median with its sign, positive where predictions are
too slow. The headline counts at most five spread rows of each sweep, so that a large sweep does not dominate. Rows
that leave batch or layout open, repeat others or contradict themselves are priced and listed, but not counted. Of
counted rows about a third leave something smaller open (recomputation, the network, sequence parallelism): the
default of the framework is priced, never what fits better; `meshwright validate --json` says what was assumed.
"""


def render_page(
    outcomes: Sequence[Outcome], summary: Summary, *, date: str, command: str, calibration: str = ""
) -> str:
    """The page as Markdown; ``calibration`` is a section of its own, headline included."""
    sections = [
        _INTRODUCTION,
        f"Made on {date} with `{command}`: {coverage_words(summary)}.\n",
        table(("step time", *_ACCURACY_HEAD), _accuracies(step_times(summary, "headline"))),
        f"![Predicted and measured seconds per step of every scored row]({PICTURE})\n",
        "## Order of layouts\n",
        f"{_SWEEPS} {ranking_words(summary.rankings)}.\n",
        table(("sweep", "rows", "rank correlation", "place of the measured best"), _rankings(summary.rankings)),
        "## Memory\n",
        f"{_MEMORY} {feasibility_words(summary.feasibility)}.\n",
        table(("counter", *_ACCURACY_HEAD), _accuracies(summary.memory)),
        calibration,
        "## Step time in parts, in-sample\n",
        table(("source", *_ACCURACY_HEAD), _accuracies(summary.by_source)),
        table(("hardware", *_ACCURACY_HEAD), _accuracies(summary.by_hardware)),
        table(("kind of layout", *_ACCURACY_HEAD), _accuracies(summary.by_kind)),
        "## Every row\n",
        _rows("scored rows", [outcome for outcome in outcomes if outcome.case.scored]),
        _rows("rows that are not scored", [outcome for outcome in outcomes if not outcome.case.scored]),
    ]
    return "\n".join(section for section in sections if section)


def render_picture(outcomes: Iterable[Outcome]) -> str:
    """Predicted over measured seconds per step of the scored rows, as SVG; equal rows give equal bytes.

    Raises `MissingPackageError` without matplotlib.
    """
    mpl, Figure = plotting()  # noqa: N806
    points: dict[str, list[tuple[float, float]]] = {"dense": [], "mixture of experts": []}
    for outcome in outcomes:
        if outcome.case.scored and outcome.priced is not None and outcome.measured_s is not None:
            kind = "mixture of experts" if outcome.case.moe else "dense"
            points[kind].append((outcome.measured_s, outcome.priced.step_s))
    every = [value for pairs in points.values() for pair in pairs for value in pair] or [1.0]
    ends = [min(every) / 1.5, max(every) * 1.5]
    with mpl.rc_context({"svg.hashsalt": "meshwright", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(7.0, 6.5), layout="constrained")
        axes = figure.subplots()
        for factor, style in ((1.0, "-"), (1.2, ":"), (1 / 1.2, ":")):
            axes.plot(ends, [factor * end for end in ends], color="0.6", linestyle=style, linewidth=0.8)
        for name, pairs in points.items():
            axes.scatter([x for x, _ in pairs], [y for _, y in pairs], s=9, alpha=0.6, label=name, gid=name)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set(xlabel="measured, s per step", ylabel="predicted, s per step")
        axes.set_title("Scored rows; dotted: 20 % off", fontsize="medium")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, the first column to the left and all others to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _accuracies(groups: Mapping[str, Accuracy]) -> Iterator[Sequence[str]]:
    for name, group in groups.items():
        figures = (percent(group.median), percent(group.p90), signed(group.bias))
        yield _plain(name), f"{group.rows:,}", f"{group.priced:,}", *figures


def _rankings(rankings: Iterable[Ranking]) -> Iterator[Sequence[str]]:
    for ranking in rankings:
        correlation = "-" if ranking.spearman is None else f"{ranking.spearman:.2f}"
        yield _plain(ranking.sweep), str(ranking.rows), correlation, str(ranking.best_place)


def _rows(title: str, outcomes: Sequence[Outcome]) -> str:
    """A table that is folded away until a reader wants it."""
    head = ("row", "predicted", "measured", "error", "GiB predicted", "GiB measured", "error", "why not")
    found = table(head, map(_cells, outcomes))
    return f"<details><summary>{len(outcomes):,} {title}</summary>\n\n{found}\n</details>\n"


def _cells(outcome: Outcome) -> Sequence[str]:
    case = outcome.case
    return (
        _plain(case.id) + (" (headline)" if case.core and case.scored else ""),
        *figures(outcome),
        _plain("; ".join(outcome.reasons)),
    )


def _plain(words: str) -> str:
    """Text that a Markdown table takes as it is."""
    return html.escape(words, quote=False).replace("|", "\\|").replace("\n", " ")
