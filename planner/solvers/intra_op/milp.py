"""The problem as a linear programme and, with whole numbers, as a MILP, by HiGHS.

    x_iu in {0, 1}, sum_u x_iu = 1                      one strategy per node
    y_ij,uw >= 0, sum_w y = x_iu, sum_u y = x_jw        one pair per edge, only pairs of finite cost have a column
    sum_i sum_u usage_it(u) x_iu <= limit               memory rows, added when they are violated

For a trade-off the limit is a column ``z`` and the objective is ``cost_weight * cost + peak_weight * z``.

Costs are divided by the median cost of a pair, memory rows by a thousandth of the limit. Nothing of HiGHS' arithmetic
is trusted: duals become multipliers of `planner.solvers.intra_op.lagrange`, solutions become choices, priced anew.
"""

from __future__ import annotations

import time

import highspy
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from planner.solvers.intra_op.lagrange import Multipliers
from planner.solvers.intra_op.network import Network
from planner.solvers.intra_op.pieces import Pieces, Profile, profile

ROWS_PER_ROUND = 20
VIOLATION = 1e-7
"""Of the limit; what is violated less is left to the check of the choice."""
PARTS = 1000
"""Of the most that memory rows count: HiGHS likes numbers near one."""


class Model:
    """A network's LP, which grows memory rows."""

    def __init__(self, net: Network, *, cost_weight: float = 1.0, peak_weight: float | None = None) -> None:
        """With a ``peak_weight`` the network's limit does not count."""
        self._net = net
        self._weights = cost_weight, peak_weight
        self._nodes = net.nodes
        sizes = [len(net.costs(i)) for i in self._nodes]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self._offset = dict(zip(self._nodes, starts.tolist(), strict=False))
        self._num_values = int(starts[-1])
        self._times: list[int] = []
        self._edges: list[tuple[int, int, int]] = []
        live = [(i, pieces) for i in self._nodes if (pieces := net.pieces(i)) is not None]
        self._live: list[tuple[int, Pieces]] = live
        self._highs = highspy.Highs()
        for name, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
            self._highs.setOptionValue(name, value)
        bytes_scale = self._most() if peak_weight is not None else net.limit
        self._unit = bytes_scale / PARTS or 1.0
        self._load()

    def relax(self, seconds: float) -> Multipliers:
        """Solve the LP with all memory rows that matter; the duals of what was solved when time ran out."""
        until = time.monotonic() + seconds
        while True:
            self._run(until - time.monotonic())
            values = np.array(self._highs.getSolution().col_value[: self._num_values])
            if self._highs.getModelStatus() != highspy.HighsModelStatus.kOptimal or not self._add_violated(values):
                return self._multipliers()

    def rounded(self) -> dict[int, int]:
        """Per node the strategy of the largest share."""
        return {i: int(shares.argmax()) for i, shares in self.shares().items()}

    def shares(self) -> dict[int, NDArray[np.float64]]:
        """Per node the LP's share of each strategy."""
        values = np.array(self._highs.getSolution().col_value[: self._num_values])
        if not len(values):  # time ran out before anything was known
            values = np.zeros(self._num_values)
        return {i: values[at : at + len(self._net.costs(i))] for i, at in self._offset.items()}

    def whole(self, seconds: float) -> dict[int, int] | None:
        """A choice of HiGHS' branch and bound: within the limit, and its best when time sufficed."""
        kinds = np.full(self._num_values, highspy.HighsVarType.kInteger)
        self._highs.changeColsIntegrality(self._num_values, np.arange(self._num_values, dtype=np.int32), kinds)
        for name in ("mip_rel_gap", "mip_abs_gap"):
            self._highs.setOptionValue(name, 0.0)
        until = time.monotonic() + seconds
        while True:
            self._run(until - time.monotonic())
            values = np.array(self._highs.getSolution().col_value[: self._num_values])
            if (
                not len(values)
                or self._highs.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible
            ):
                return None
            if not self._add_violated(values.round()):
                return self.rounded()
            if time.monotonic() > until:
                return None

    def _load(self) -> None:
        net = self._net
        cost_weight, peak_weight = self._weights
        costs = [net.costs(i) for i in self._nodes]
        size = [len(c) for c in costs]
        rows = [np.repeat(np.arange(len(self._nodes)), size)]
        columns = [np.arange(self._num_values)]
        entries = [np.ones(self._num_values)]
        height, width = len(self._nodes), self._num_values
        pairs = []
        for i in self._nodes:
            for j, table in net.tables[i].items():
                if j < i:
                    continue
                u, w = np.nonzero(table < np.inf)
                pairs.append(table[u, w])
                made = width + np.arange(len(u))
                first, second = table.shape
                rows += [height + u, height + first + w, height + np.arange(first + second)]
                columns += [made, made, self._offset[i] + np.arange(first), self._offset[j] + np.arange(second)]
                entries += [np.ones(2 * len(u)), np.full(first + second, -1.0)]
                self._edges.append((i, j, height))
                height, width = height + first + second, width + len(u)
        sizes = np.abs(np.concatenate(pairs or costs))
        self._scale = float(np.median(sizes[sizes > 0])) if sizes.any() else 1.0
        matrix = csc_array((np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))), (height, width))
        right = np.zeros(height)
        right[: len(self._nodes)] = 1.0
        lp = highspy.HighsLp()
        lp.num_row_, lp.num_col_ = height, width
        lp.col_cost_ = np.concatenate([*costs, *pairs]) * (cost_weight / self._scale)
        lp.col_lower_, lp.col_upper_ = np.zeros(width), np.full(width, highspy.kHighsInf)
        lp.row_lower_ = lp.row_upper_ = right
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        self._highs.passModel(lp)
        self._height, self._peak_column = height, width
        self.num_pairs = width - self._num_values
        if peak_weight is not None:
            self._highs.addCol(peak_weight * self._unit / self._scale, 0.0, highspy.kHighsInf, 0, [], [])

    def _run(self, seconds: float) -> None:
        self._highs.setOptionValue("time_limit", self._highs.getRunTime() + max(seconds, 0.01))
        self._highs.run()

    def _most(self) -> float:
        used = [p.amounts.max(axis=1) for _, p in self._live]
        return float(self._profile(used).max(initial=0.0))

    def _limit(self) -> float:
        if self._weights[1] is None:
            return self._net.limit
        return float(self._highs.getSolution().col_value[self._peak_column]) * self._unit

    def _profile(self, amounts: list[NDArray[np.float64]]) -> Profile:
        net = self._net
        if not self._live:
            return net.held
        starts, ends = (np.concatenate([p[side] for _, p in self._live]) for side in (0, 1))
        return net.held + profile(len(net.held), starts, ends, np.concatenate(amounts))

    def _add_violated(self, values: NDArray[np.float64]) -> bool:
        """Add the most violated memory rows, apart from each other in time; whether there was one."""
        used = [p.amounts @ values[self._offset[i] : self._offset[i] + p.amounts.shape[1]] for i, p in self._live]
        excess = self._profile(used) - self._limit()
        excess[self._times] = -np.inf
        apart = max(1, len(excess) // 200)
        added = 0
        while added < ROWS_PER_ROUND and excess.max(initial=-np.inf) > VIOLATION * PARTS * self._unit:
            t = int(excess.argmax())
            self._add_row(t)
            excess[max(0, t - apart) : t + apart + 1] = -np.inf
            added += 1
        return added > 0

    def _add_row(self, t: int) -> None:
        columns, amounts = [], []
        for i, pieces in self._live:
            p = int(np.searchsorted(pieces.starts, t, side="right")) - 1
            if p >= 0 and pieces.ends[p] > t:
                used = np.flatnonzero(pieces.amounts[p])
                columns.append(self._offset[i] + used)
                amounts.append(pieces.amounts[p][used])
        room = -float(self._net.held[t])
        if self._weights[1] is None:
            room += self._net.limit
        else:
            columns.append(np.array([self._peak_column]))
            amounts.append(np.array([-self._unit]))
        at = np.concatenate(columns).astype(np.int32)
        self._highs.addRow(-highspy.kHighsInf, room / self._unit, len(at), at, np.concatenate(amounts) / self._unit)
        self._times.append(t)

    def _multipliers(self) -> Multipliers:
        duals = np.array(self._highs.getSolution().row_dual)
        memory = np.zeros(len(self._net.held))
        messages = {}
        if len(duals) and np.isfinite(duals).all():
            memory[self._times] = np.maximum(0.0, -duals[self._height :]) * self._scale / self._unit
            for i, j, row in self._edges:
                first, second = self._net.tables[i][j].shape
                messages[i, j] = duals[row : row + first] * self._scale
                messages[j, i] = duals[row + first : row + first + second] * self._scale
        return Multipliers(memory, messages)
