"""A schedule's dependencies as arrays, found once and then priced thousands of times.

Nodes stand in an order in which every node comes after those it waits for, so that pricing is one pass. Node 0 is the
begin of the step. Every other node waits for two: `previous`, which its rank ran before, and `awaited`, whose output it
needs from another stage (0 where it needs none). A `Pair` needs two outputs; an empty node in front of it joins them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from costmodels.schedules.actions import Action, Entry, Orders, Placement, parts
from costmodels.schedules.errors import DeadlockError


class Transfer(NamedTuple):
    """What leaves a stage for another rank: ``F`` the stage's output, ``B`` the gradient of its input."""

    kind: str
    stage: int


class Work(NamedTuple):
    """What decides the price of a node; few differ, so each is priced once."""

    runs: tuple[tuple[str, int], ...]
    """(kind, stage) of the entry's actions; none for a node that only joins."""
    receives: tuple[Transfer, ...]
    """What arrives for it from other ranks."""
    awaits: tuple[Transfer, ...]
    """What lies between `awaited` and the node."""
    joins: tuple[Transfer, ...]
    """What lies between `previous` and the node: only where that is no work of the same rank."""
    sent_before: tuple[Transfer, ...]
    """What the rank's previous entry sent."""


@dataclass(frozen=True)
class Graph:
    """Dependencies of a schedule (module docstring); the arrays leave node 0 out."""

    previous: tuple[int, ...]
    awaited: tuple[int, ...]
    work: tuple[int, ...]
    """Per node its place in `kinds`."""
    kinds: tuple[Work, ...]
    nodes: tuple[tuple[int, ...], ...]
    """Per rank the node of each entry."""

    @cached_property
    def rank_work(self) -> tuple[npt.NDArray[np.intp], ...]:
        """Per rank the place in `kinds` of each entry."""
        return tuple(np.array([self.work[node - 1] for node in nodes], dtype=np.intp) for nodes in self.nodes)


def build(orders: Orders, placements: Sequence[Placement]) -> Graph:
    """Dependencies of the orders; one visit of every action.

    A forward needs the previous stage's forward, a backward the next stage's backward and its own forward, the gradient
    of the weights that of the input.

    Raises:
        DeadlockError: ranks wait for each other.
    """
    builder = _Builder(orders, placements)
    ready = list(range(len(orders)))
    while ready:
        ready += builder.advance(ready.pop())
    stuck = [rank for rank, order in enumerate(orders) if len(builder.nodes[rank]) < len(order)]
    if stuck:
        raise DeadlockError(_stuck(stuck, builder))
    return builder.graph()


class _Builder:
    def __init__(self, orders: Orders, placements: Sequence[Placement]) -> None:
        self.orders = orders
        self.placements = placements
        self.last = len(placements[0]) - 1
        self.previous: list[int] = []
        self.awaited: list[int] = []
        self.work: list[int] = []
        self.kinds: dict[Work, int] = {}
        self.nodes: list[list[int]] = [[] for _ in orders]
        self.sent: list[tuple[Transfer, ...]] = [() for _ in orders]
        self.done: dict[Action, int] = {}
        """Node of every forward (``F``) and every gradient of an input (``B``) that is known."""
        self.waiting: dict[Action, int] = {}
        """Rank that waits for a forward or gradient."""

    def advance(self, rank: int) -> list[int]:
        """Take up a rank's entries until one lacks an input; the ranks that waited for what they yield."""
        woken: list[int] = []
        order, nodes = self.orders[rank], self.nodes[rank]
        while len(nodes) < len(order):
            entry = order[len(nodes)]
            missing = self.missing(entry)
            if missing is not None:
                self.waiting[missing] = rank
                break
            nodes.append(self.append(rank, entry))
            for yielded in map(_yields, parts(entry)):
                if yielded is not None:
                    self.done[yielded] = nodes[-1]
                    if yielded in self.waiting:
                        woken.append(self.waiting.pop(yielded))
        return woken

    def missing(self, entry: Entry) -> Action | None:
        for action in parts(entry):
            for need in (self.own(action), self.other(action)):
                if need is not None and need not in self.done:
                    return need
        return None

    def own(self, action: Action) -> Action | None:
        """What the same stage must have done before."""
        kind, stage, microbatch = action
        if kind == "F":
            return None
        return Action("B" if kind == "W" else "F", stage, microbatch)

    def other(self, action: Action) -> Action | None:
        """What another stage must have done before."""
        kind, stage, microbatch = action
        if kind == "F":
            return Action("F", stage - 1, microbatch) if stage else None
        return Action("B", stage + 1, microbatch) if kind != "W" and stage < self.last else None

    def append(self, rank: int, entry: Entry) -> int:
        actions = parts(entry)
        needs = [self.other(action) for action in actions]
        inputs = [self.done[need] if need else 0 for need in needs]
        arriving = [(Transfer(need.kind, need.stage),) if need and self.rank_of(need) != rank else () for need in needs]
        awaited, awaits = inputs[0], arriving[0]
        if len(actions) > 1:
            awaited, awaits = self.node(inputs[0], inputs[1], Work((), (), arriving[1], arriving[0], ())), ()
        previous = self.nodes[rank][-1] if self.nodes[rank] else 0
        runs = tuple((action.kind, action.stage) for action in actions)
        node = self.node(previous, awaited, Work(runs, sum(arriving, ()), awaits, (), self.sent[rank]))
        self.sent[rank] = sum(map(self.sends, actions), ())
        return node

    def node(self, previous: int, awaited: int, work: Work) -> int:
        self.previous.append(previous)
        self.awaited.append(awaited)
        self.work.append(self.kinds.setdefault(work, len(self.kinds)))
        return len(self.work)

    def sends(self, action: Action) -> tuple[Transfer, ...]:
        kind, stage, microbatch = action
        to = stage + 1 if kind == "F" else stage - 1
        if kind == "W" or not 0 <= to <= self.last:
            return ()
        here, there = self.rank_of(action), self.rank_of(Action(kind, to, microbatch))
        return (Transfer("F" if kind == "F" else "B", stage),) if here != there else ()

    def rank_of(self, action: Action) -> int:
        return self.placements[action.microbatch % len(self.placements)][action.stage]

    def graph(self) -> Graph:
        nodes = tuple(map(tuple, self.nodes))
        return Graph(tuple(self.previous), tuple(self.awaited), tuple(self.work), tuple(self.kinds), nodes)


def _yields(action: Action) -> Action | None:
    """The forward or the gradient that an action makes known to others."""
    if action.kind == "W":
        return None
    return Action("F" if action.kind == "F" else "B", action.stage, action.microbatch)


def _stuck(ranks: Sequence[int], builder: _Builder) -> str:
    waits = []
    for rank in ranks:
        entry = builder.orders[rank][len(builder.nodes[rank])]
        waits.append(f"rank {rank} at {entry}, which needs {builder.missing(entry)}")
    return (
        f"{len(ranks)} ranks wait for each other: {'; '.join(waits)}. A forward needs the previous stage's forward, a "
        "backward its own forward and the next stage's backward; put what is needed earlier into its rank's order."
    )
