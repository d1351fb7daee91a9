"""The section of docs/accuracy.md on calibration: what it changes, and the constants that ship."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.calibration.scopes import meaning
from planner.calibration.shipped import Shipped
from planner.validation.page import table
from planner.validation.report import percent, signed
from planner.validation.statistics import Accuracy, Summary

_HEAD = """\
## Calibration

Each class of operation (products, attention, memory-bound operations, each kind of communication, ...) is multiplied by
constants fitted to the rows of this page ([how](calibration.md)). *Datasheet* predictions have no constants.
*In-sample* ones have all, fitted to the very rows that they are compared with. *Left out by source* says what to expect
of a run elsewhere: every row is predicted by constants fitted without any row of its source, a table or a paper; *by
repository*, without any row of the repository that the source stands in.
"""


def section(shipped: Shipped, datasheet: Summary, calibrated: Summary, by_repository: Summary) -> str:
    """The section as Markdown, of the same rows priced with datasheets alone, with all constants, and with those that
    know no row of a repository."""
    fitted = (
        f"The constants, fitted on {shipped.date} to {shipped.rows:,} rows of {shipped.sources} sources; a row informs "
        "a constant that multiplies more than 5 % of its step:\n"
    )
    errors = ("rows", "median error", "90th percentile", "bias")
    parts = [
        _HEAD,
        table(("headline", "constants", *errors), _headline(datasheet, calibrated, by_repository)),
        "By source, median errors of all scored rows, and the bias with the source left out:\n",
        table(("source", "rows", "datasheet", "in-sample", "left out", "bias"), _by_source(datasheet, calibrated)),
        fitted,
        table(("constant", "applies to", "value", "+-", "rows", "sources"), _constants(shipped)),
    ]
    return "\n".join(parts)


def _headline(datasheet: Summary, calibrated: Summary, by_repository: Summary) -> Iterator[Sequence[str]]:
    for name, plain in datasheet.headline.items():
        for constants, found in (
            ("none (datasheet)", plain),
            ("all, in-sample", calibrated.in_sample[name]),
            ("left out by source", calibrated.headline[name]),
            ("left out by repository", by_repository.headline[name]),
        ):
            yield name, constants, f"{found.priced:,}", percent(found.median), percent(found.p90), signed(found.bias)


def _by_source(datasheet: Summary, calibrated: Summary) -> Iterator[Sequence[str]]:
    nothing = Accuracy(0, 0, None, None, None)
    for source, held in calibrated.left_out_by_source.items():
        plain, own = datasheet.by_source.get(source, nothing), calibrated.by_source.get(source, nothing)
        medians = (percent(found.median) for found in (plain, own, held))
        yield source.replace("|", "\\|"), f"{held.priced:,}", *medians, signed(held.bias)


def _constants(shipped: Shipped) -> Iterator[Sequence[str]]:
    for name, constant in shipped.constants.items():
        value = (f"{constant.value:.3f}", f"{constant.sd:.3f}")
        yield f"`{name}`", meaning(name), *value, f"{constant.rows:,}", str(constant.sources)
