"""When every action of a schedule runs, and what its ranks hold meanwhile."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from costmodels.schedules.actions import Entry, parts
from costmodels.schedules.cost import Cost
from costmodels.schedules.errors import ScheduleError
from costmodels.schedules.graph import Graph
from costmodels.schedules.schedule import Schedule


class Span(NamedTuple):
    """An entry of a rank's order and its seconds from the begin of the step; receives that block are part of it."""

    entry: Entry
    start_s: float
    end_s: float


class Peak(NamedTuple):
    """The most bytes of a rank, when they are first reached, and of how many microbatches it holds activations then."""

    bytes: int
    at_s: float
    microbatches: int


@dataclass(frozen=True)
class Timeline:
    """A simulated step."""

    schedule: Schedule
    cost: Cost
    ends_s: tuple[float, ...]
    """Per node of the schedule's graph."""

    @cached_property
    def step_s(self) -> float:
        """Seconds until the last action ends."""
        return max(self.ends_s)

    def spans(self, rank: int) -> tuple[Span, ...]:
        """What the rank runs and when, in order."""
        graph, table = self.schedule.graph, priced(self.schedule.graph, self.cost)
        return tuple(
            Span(entry, self.ends_s[node] - table[graph.work[node - 1]][2], self.ends_s[node])
            for entry, node in zip(self.schedule.orders[rank], graph.nodes[rank], strict=True)
        )

    def busy_s(self, rank: int) -> float:
        """Seconds in which the rank computes."""
        graph = self.schedule.graph
        counts = Counter(graph.rank_work[rank].tolist())
        return sum(n * self.cost.runs_s(graph.kinds[kind].runs) for kind, n in counts.items())

    def idle_s(self, rank: int) -> float:
        """The bubble: seconds of the step in which the rank does not compute."""
        return self.step_s - self.busy_s(rank)

    def span_s(self, rank: int) -> float:
        """Seconds from the rank's first action to its last: what counts where no rank waits between steps."""
        spans = self.spans(rank)
        return spans[-1].end_s - spans[0].start_s

    def peak(self, rank: int) -> Peak:
        """The most that the rank holds at once.

        What a rank holds follows from its own order alone, so only the peak's time is the simulation's.
        """
        levels = held_bytes(self.schedule, self.cost)[rank]
        at = int(levels.argmax())
        order = self.schedule.orders[rank]
        begun = [action for entry in order[: at + 1] for action in parts(entry)]
        ended = [action for entry in order[:at] for action in parts(entry)]
        under_way = Counter(action.microbatch for action in begun if action.kind == "F")
        under_way.subtract(action.microbatch for action in ended if action.kind in "BW")
        return Peak(int(levels[at]), self.spans(rank)[at].start_s, sum(slices > 0 for slices in under_way.values()))


def held_bytes(schedule: Schedule, cost: Cost) -> list[npt.NDArray[np.int64]]:
    """Per rank the bytes held while each entry of its order runs: static, saved and the entry's transient."""
    prices = np.array([cost.runs_bytes(work.runs) for work in schedule.graph.kinds], dtype=np.int64)
    held = []
    for work, static in zip(schedule.graph.rank_work, cost.static_bytes or (0,) * schedule.num_ranks, strict=True):
        taken, transient, freed = prices[work].T
        held.append(static + taken.cumsum() - freed.cumsum() + freed + transient)
    return held


def simulate(schedule: Schedule, cost: Cost) -> Timeline:
    """Run every rank's order, each entry as soon as the rank is free and its inputs are there.

    A transfer between ranks delays only who waits for it, or with `Cost.sends_block` occupies the sender after and the
    receiver before the work (without waiting for each other: what was sent lies ready). One pass over the actions.

    Raises:
        DeadlockError: ranks wait for each other.
        ScheduleError: the cost is of another number of stages or ranks.
    """
    if len(cost.stages) != schedule.num_stages or len(cost.static_bytes) not in (0, schedule.num_ranks):
        raise ScheduleError(
            f"costs of {len(cost.stages)} stages and static bytes of {len(cost.static_bytes)} ranks for "
            f"{schedule.name} with {schedule.num_stages} stages on {schedule.num_ranks} ranks: give one cost per "
            "virtual stage, and static bytes for every rank or none."
        )
    return Timeline(schedule, cost, tuple(_ends_s(schedule.graph, cost)))


def _ends_s(graph: Graph, cost: Cost) -> list[float]:
    table = priced(graph, cost)
    ends = [0.0]
    append = ends.append
    for previous, awaited, work in zip(graph.previous, graph.awaited, graph.work, strict=True):
        gap_s, latency_s, seconds = table[work]
        free_s, there_s = ends[previous] + gap_s, ends[awaited] + latency_s
        append((free_s if free_s > there_s else there_s) + seconds)
    return ends


def priced(graph: Graph, cost: Cost) -> list[tuple[float, float, float]]:
    """Per kind of work the seconds after `previous`, after `awaited` and of the node itself."""
    if cost.sends_block:
        return [
            (cost.transfers_s(work.sent_before), 0.0, cost.runs_s(work.runs) + cost.transfers_s(work.receives))
            for work in graph.kinds
        ]
    return [
        (cost.transfers_s(work.joins), cost.transfers_s(work.awaits), cost.runs_s(work.runs)) for work in graph.kinds
    ]
