"""The price of a step with many microbatches from a simulation of few.

Between its fill and its drain a schedule repeats the same orders, shifted by a period of microbatches. End times are
maxima of sums, so once all ranks ran one period exactly ``d`` seconds after the one before, they do so for ever, and
every further period adds ``d`` seconds to the step and nothing to what a rank holds. How long that takes depends on the
stages (of two nearly equal bottlenecks the earlier one may lead for long), so it is checked, and where it has not come
about more microbatches are simulated, in the end all of them.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from math import ceil
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from costmodels.schedules.actions import Action, Entry, Pair, parts
from costmodels.schedules.catalogue import check, make, period
from costmodels.schedules.cost import Cost
from costmodels.schedules.graph import Graph
from costmodels.schedules.schedule import Schedule
from costmodels.schedules.timeline import Timeline, held_bytes, simulate

TOLERANCE = 1e-9
"""Largest relative difference between two periods that counts as none."""


class Step(NamedTuple):
    """What a step costs."""

    step_s: float
    peak_bytes: tuple[int, ...]
    """Per rank."""
    ends_s: tuple[float, ...]
    """Per rank, when its last action ends."""


class _Repeat(NamedTuple):
    """Nodes of the last periods before the drain, and the same work's one period earlier."""

    later: npt.NDArray[np.intp]
    earlier: npt.NDArray[np.intp]


def price_step(name: str, num_ranks: int, num_microbatches: int, cost: Cost, num_chunks: int = 1) -> Step:
    """Seconds and peak bytes of a step: as from `simulate`, in less time.

    Raises:
        UnknownNameError, ScheduleError: as `make` and `simulate`.
    """
    check(name, num_ranks, num_microbatches, num_chunks)
    for fewer in _fewer(name, num_ranks, num_microbatches, num_chunks):
        schedule = make(name, num_ranks, fewer, num_chunks)
        every = period(name, num_ranks, fewer, num_chunks) or 0
        repeat = _repeat(schedule, every)
        if repeat is None:
            continue
        timeline = simulate(schedule, cost)
        ends = np.array(timeline.ends_s)
        shifts = ends[repeat.later] - ends[repeat.earlier]
        if float(np.ptp(shifts)) <= TOLERANCE * float(shifts.max()):
            more_s = (num_microbatches - fewer) // every * float(shifts.mean())
            return Step(timeline.step_s + more_s, _peaks(timeline), tuple(end + more_s for end in _last_ends(timeline)))
    return simulate_step(make(name, num_ranks, num_microbatches, num_chunks), cost)


def simulate_step(schedule: Schedule, cost: Cost) -> Step:
    """Seconds and peak bytes of a step of any schedule, all of it simulated."""
    timeline = simulate(schedule, cost)
    return Step(timeline.step_s, _peaks(timeline), _last_ends(timeline))


def _last_ends(timeline: Timeline) -> tuple[float, ...]:
    return tuple(timeline.ends_s[nodes[-1]] for nodes in timeline.schedule.graph.nodes)


def _peaks(timeline: Timeline) -> tuple[int, ...]:
    return tuple(int(held.max()) for held in held_bytes(timeline.schedule, timeline.cost))


@lru_cache(maxsize=1024)
def _fewer(name: str, num_ranks: int, num_microbatches: int, num_chunks: int) -> tuple[int, ...]:
    """Numbers of microbatches to try, each with the same fill, period and drain, and worth the try."""
    every = period(name, num_ranks, num_microbatches, num_chunks)
    if every is None:
        return ()
    tries, enough = [], 2 * num_ranks + 4 * every
    while 2 * enough <= num_microbatches:
        fewer = num_microbatches - (num_microbatches - enough) // every * every
        if period(name, num_ranks, fewer, num_chunks) == every:
            tries.append(fewer)
        enough *= 3
    return tuple(tries)


@lru_cache(maxsize=256)
def _repeat(schedule: Schedule, every: int) -> _Repeat | None:
    """Enough of the steady part that what comes after depends on nothing before it; None if there is not."""
    sections = [_steady(order, every, schedule.num_microbatches) for order in schedule.orders]
    found = [section for section in sections if section]
    if len(found) < len(sections):
        return None
    reach = _reach(schedule.graph, found)
    if any(end - (reach + 1) * size < begin for begin, end, size in found):
        return None
    later: list[int] = []
    earlier: list[int] = []
    for nodes, (_, end, size) in zip(schedule.graph.nodes, found, strict=True):
        later += nodes[end - reach * size : end]
        earlier += nodes[end - (reach + 1) * size : end - size]
    return _Repeat(np.array(later, dtype=np.intp), np.array(earlier, dtype=np.intp))


class _Section(NamedTuple):
    """The steady part of a rank's order, and how many entries a period has there."""

    begin: int
    end: int
    size: int


def _steady(order: tuple[Entry, ...], every: int, num_microbatches: int) -> _Section | None:
    """The longest run of entries whose next period's lie equally far ahead, all of a period between them."""
    places = {entry: i for i, entry in enumerate(order)}
    per_period = sum(len(parts(entry)) for entry in order) * every // num_microbatches
    ahead = [places.get(_shifted(entry, every), i) - i for i, entry in enumerate(order)]
    sections, at = [], 0
    for size, run in groupby(ahead):
        length = len(list(run))
        if size > 0 and sum(len(parts(entry)) for entry in order[at : at + size]) == per_period:
            sections.append(_Section(at, at + length + size, size))
        at += length
    return max(sections, key=lambda section: section.end - section.begin, default=None)


def _shifted(entry: Entry, every: int) -> Entry:
    if isinstance(entry, Pair):
        return Pair(*(Action(a.kind, a.stage, a.microbatch + every) for a in entry))
    return Action(entry.kind, entry.stage, entry.microbatch + every)


def _reach(graph: Graph, sections: list[_Section]) -> int:
    """Periods before the drain that the last period and the drain depend on, and one more for the period to come."""
    places = {node: (rank, i) for rank, nodes in enumerate(graph.nodes) for i, node in enumerate(nodes)}
    reach = 1
    for nodes, section in zip(graph.nodes, sections, strict=True):
        for node in nodes[section.end - section.size :]:
            awaited = graph.awaited[node - 1]
            sources = [awaited]
            if awaited and awaited not in places:  # a join
                sources = [graph.previous[awaited - 1], graph.awaited[awaited - 1]]
            for rank, i in (places[source] for source in sources if source):
                reach = max(reach, 1 + ceil((sections[rank].end - i) / sections[rank].size))
    return reach
