"""Multipliers of large networks by message passing and subgradients, where an LP takes too long.

A sweep visits the nodes in order and back. At node ``i`` every edge first gives all that it can,
``m_ij(u) += min_w theta_ij(u, w)``; then the node's costs are shared among the edges that lead on (sequential
reparametrised messages: no step lowers the bound of `planner.solvers.intra_op.lagrange`). Between sweeps the memory
multipliers follow the subgradient, what the locally best strategies hold beyond the limit, smoothed; a step that does
not improve the bound for a while is taken back and halved.
"""

from __future__ import annotations

import time

import numpy as np

from planner.solvers.intra_op.lagrange import Multipliers
from planner.solvers.intra_op.network import Network, edges_of
from planner.solvers.intra_op.pieces import Profile, profile
from planner.solvers.intra_op.problem import Costs

SMOOTHING = 0.7
PATIENCE = 5
FIRST_STEP, GROWTH, CUT = 0.1, 1.2, 0.5
LEAST_STEP = 1e-3

State = tuple[Profile, dict[int, Costs], dict[tuple[int, int], Costs], dict[tuple[int, int], Costs]]


class Ascent:
    """A network's costs, moved between nodes and edges."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self._nodes = net.nodes
        self._theta = {i: net.costs(i) for i in self._nodes}
        self._edges = {(i, j): table.copy() for i, j, table in edges_of(net)}
        self._messages = {(i, j): np.zeros(len(net.costs(i))) for i in self._nodes for j in net.tables[i]}
        self._memory = np.zeros(len(net.held))
        self._live = [(i, pieces) for i in self._nodes if (pieces := net.pieces(i)) is not None]
        nothing = np.zeros(0, dtype=np.intp)
        self._starts = np.concatenate([p.starts for _, p in self._live] or [nothing])
        self._ends = np.concatenate([p.ends for _, p in self._live] or [nothing])

    def climb(self, until: float) -> Multipliers:
        """Sweep until ``until`` (of `time.monotonic`) or until steps are too small; the best multipliers found."""
        for _ in range(PATIENCE):
            self._sweep()
        best, state = self._bound(), self._state()
        step, failed, smooth = FIRST_STEP, 0, np.zeros(0)
        while time.monotonic() < until and step > LEAST_STEP:
            excess = self._held() - self._net.limit
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * excess if len(smooth) else excess
            ascent = np.where((self._memory <= 0) & (smooth < 0), 0.0, smooth)
            if not ascent.any():
                break
            move = step * abs(best) / float(ascent @ ascent)
            self._price(np.maximum(0.0, self._memory + move * ascent))
            self._sweep()
            bound = self._bound()
            if bound > best:
                best, state, failed, step = bound, self._state(), 0, step * GROWTH
                continue
            failed += 1
            if failed == PATIENCE:
                self._restore(state)
                failed, step, smooth = 0, step * CUT, np.zeros(0)
        self._restore(state)
        return Multipliers(self._memory, self._messages)

    def _sweep(self) -> None:
        place = {i: a for a, i in enumerate(self._nodes)}
        for order in (self._nodes, self._nodes[::-1]):
            on = 1 if order is self._nodes else -1
            for i in order:
                self._visit(i, [(j, on * (place[j] - place[i]) > 0) for j in self._net.tables[i]])

    def _visit(self, i: int, near: list[tuple[int, bool]]) -> None:
        theta = self._theta[i]
        forward = []
        for j, leads_on in near:
            table = self._edges[i, j] if i < j else self._edges[j, i].T
            given = table.min(axis=1)
            theta = theta + given
            if leads_on:
                forward.append((j, table, given))
            else:
                table -= given[:, None]
                self._messages[i, j] += given
        if forward:
            share = theta / max(len(forward), len(near) - len(forward))
            for j, left, given in forward:
                moved = given - share
                left -= moved[:, None]  # noqa: PLW2901  a view of the edge's table
                self._messages[i, j] += moved
            theta = theta - len(forward) * share
        self._theta[i] = theta

    def _bound(self) -> float:
        nodes = sum(float(theta.min()) for theta in self._theta.values())
        edges = sum(float(table.min()) for table in self._edges.values())
        return self._net.constant + nodes + edges - float(self._memory @ (self._net.limit - self._net.held))

    def _held(self) -> Profile:
        """What the locally best strategies hold."""
        amounts = []
        for i, pieces in self._live:
            marginal = self._theta[i] + sum(
                (self._edges[i, j].min(axis=1) if i < j else self._edges[j, i].min(axis=0)) for j in self._net.tables[i]
            )
            amounts.append(pieces.amounts[:, marginal.argmin()])
        total = np.concatenate(amounts or [np.zeros(0)])
        return self._net.held + profile(len(self._net.held), self._starts, self._ends, total)

    def _price(self, memory: Profile) -> None:
        total = np.append(0.0, (memory - self._memory).cumsum())
        for i, pieces in self._live:
            self._theta[i] = self._theta[i] + (total[pieces.ends] - total[pieces.starts]) @ pieces.amounts
        self._memory = memory

    def _state(self) -> State:
        edges = {pair: table.copy() for pair, table in self._edges.items()}
        return (
            self._memory,
            dict(self._theta),
            edges,
            {pair: message.copy() for pair, message in self._messages.items()},
        )

    def _restore(self, state: State) -> None:
        self._memory, theta, edges, messages = state
        self._theta = dict(theta)
        self._edges = {pair: table.copy() for pair, table in edges.items()}
        self._messages = {pair: message.copy() for pair, message in messages.items()}
