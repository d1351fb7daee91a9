"""The best plan over mesh, sharding level, microbatch, recomputation and stage cuts: exact over the enumerated space.

Space: every factorisation ``pp * dp_replicate * dp_shard * tp = num_devices``; every microbatch size that divides the
samples per data-parallel rank into at least ``pp`` microbatches (torch's 1F1B refuses fewer); recomputation none,
selective or full; ZeRO stage 1, 2 or 3 where ``dp_shard`` > 1.
For each point the stages are cut optimally (`planner.solvers.inter_op`).

Candidates are visited in order of a lower bound on their step time (`StageCosts.lower_bound_s`); once the bound is no
better than the worst of the plans to report, no later candidate can enter, and the rest is rejected by ``bound``. So
the first plan is optimal in this space and the gap is zero. Ties go to the candidate that sorts first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import pairwise

from costmodels.step import step_breakdown
from planner import ops
from planner.graph import ModelGraph
from planner.job import Constraints
from planner.layouts.model import ModelLayouts, analyse_model
from planner.plan import Candidate, Prediction, SearchReport
from planner.solvers.inter_op import Split, least_peak, split_stages
from planner.solvers.prices import BlockPrice, price_blocks
from planner.solvers.runtime_memory import RuntimeBytes
from planner.solvers.setting import Setting
from planner.solvers.stage_costs import StageCosts
from planner.solvers.stage_terms import stage_seconds
from planner.solvers.step_price import price_step

RECOMPUTE = ("none", "selective", "full")
ZERO_STAGES = (1, 2, 3)
NEAREST = 32
"""Candidates whose stages are cut for least memory when nothing fits, in order of a bound on it."""


@dataclass(frozen=True)
class Found:
    """One priced candidate with its optimal cuts."""

    costs: StageCosts
    split: Split

    @property
    def mesh(self) -> tuple[int, ...]:
        c = self.costs.candidate
        return c.pp, c.dp_replicate, c.dp_shard, c.tp

    @property
    def order(self) -> tuple[object, ...]:
        return (self.split.step_s, *astuple(self.costs.candidate))


@dataclass(frozen=True)
class SearchResult:
    best: tuple[Found, ...]
    """Best first, one per mesh."""
    report: SearchReport
    layouts: ModelLayouts
    tightest: tuple[StageCosts, float] | None
    """When nothing fits: the candidate that comes closest, and the bytes that its fullest device needs."""


def search(setting: Setting, constraints: Constraints, *, top: int) -> SearchResult:
    """Solve; see the module docstring.

    Args:
        top: plans to return, each with another mesh.
    """
    space = _Space(setting, constraints)
    candidates = sorted(
        ((space.costs(c).lower_bound_s, astuple(c), c) for c in space.candidates()), key=lambda item: item[:2]
    )
    capacity = constraints.memory_fraction * setting.cluster.device.memory_bytes
    best: dict[tuple[int, ...], Found] = {}
    misfits: list[StageCosts] = []
    priced = 0
    rejected = space.rejected
    bound_s = float("inf")
    for position, (lower, _, candidate) in enumerate(candidates):
        leaders = sorted(best.values(), key=lambda found: found.order)[:top]
        if len(leaders) == top and lower >= leaders[-1].split.step_s:
            rejected["bound"] += len(candidates) - position
            break
        costs = space.costs(candidate)
        if costs.least_peak_bytes > capacity:
            rejected["memory"] += 1
            misfits.append(costs)
            continue
        split = split_stages(costs.microbatch_s, costs.remaining_s, costs.fits(capacity))
        if split is None:
            rejected["memory"] += 1
            misfits.append(costs)
            continue
        priced += 1
        found = Found(costs, split)
        bound_s = min(bound_s, split.step_s)
        if found.mesh not in best or found.order < best[found.mesh].order:
            best[found.mesh] = found
    report = SearchReport(
        candidates=priced + sum(rejected.values()),
        priced=priced,
        rejected=dict(sorted(rejected.items())),
        bound_s=bound_s,
    )
    leaders = sorted(best.values(), key=lambda found: found.order)[:top]
    return SearchResult(tuple(leaders), report, space.layouts, None if leaders else _tightest(misfits))


def _tightest(misfits: list[StageCosts]) -> tuple[StageCosts, float] | None:
    if not misfits:
        return None
    near = sorted(misfits, key=lambda costs: (costs.least_peak_bytes, astuple(costs.candidate)))[:NEAREST]
    peaks = [(least_peak(costs.peak_bytes), astuple(costs.candidate), costs) for costs in near]
    peak, _, nearest = min(peaks, key=lambda item: item[:2])
    return nearest, peak


class _Space:
    """Enumeration with reasons, and prices shared between candidates."""

    def __init__(self, setting: Setting, constraints: Constraints) -> None:
        self.setting = setting
        self.constraints = constraints
        self.layouts = analyse_model(setting.graph, constraints.pins)
        self.rejected: Counter[str] = Counter()
        self._prices: dict[tuple[int, int], tuple[BlockPrice, ...]] = {}

    def candidates(self) -> Iterator[Candidate]:
        """All legal points; illegal ones are counted by reason."""
        limits = self.constraints
        num_devices = self.setting.cluster.num_devices
        most_stages = self.setting.named.sum()
        obstacles = {tp: self.layouts.obstacle(tp) for tp in divisors(num_devices)}
        allowed = {
            "pp": _allowed(limits.pp, limits.max_pp),
            "tp": _allowed(limits.tp, limits.max_tp),
            "dp_replicate": _allowed(limits.dp_replicate, None),
            "dp_shard": _allowed(limits.dp_shard, None),
        }
        policies = RECOMPUTE if limits.recompute is None else (limits.recompute,)
        for mesh in meshes(num_devices):
            sizes = dict(zip(("pp", "dp_replicate", "dp_shard", "tp"), mesh, strict=True))
            zero_stages = ZERO_STAGES if sizes["dp_shard"] > 1 else (0,)
            variants = len(policies) * len(zero_stages)
            data_parallel = sizes["dp_replicate"] * sizes["dp_shard"]
            microbatches = self._microbatch_sizes(data_parallel)
            enough = [s for s in microbatches if self._num_microbatches(data_parallel, s) >= sizes["pp"]]
            if not all(low <= sizes[axis] <= high for axis, (low, high) in allowed.items()):
                self.rejected["constraint"] += variants
            elif obstacles[sizes["tp"]] is not None:
                self.rejected["tp does not divide"] += variants
            elif sizes["pp"] > most_stages:
                self.rejected["more stages than blocks"] += variants
            elif not microbatches:
                self.rejected["batch not divisible"] += variants
            elif not enough:
                self.rejected["fewer microbatches than stages"] += variants
            else:
                yield from (
                    self._candidate(mesh, size, policy, zero_stage)
                    for size in enough
                    for policy in policies
                    for zero_stage in zero_stages
                )

    def _microbatch_sizes(self, data_parallel: int) -> list[int]:
        batch = self.setting.job.global_batch
        if batch % data_parallel:
            return []
        pinned = self.constraints.microbatch_size
        return [s for s in divisors(batch // data_parallel) if pinned is None or s == pinned]

    def _num_microbatches(self, data_parallel: int, size: int) -> int:
        return self.setting.job.global_batch // (data_parallel * size)

    def _candidate(self, mesh: tuple[int, int, int, int], size: int, policy: str, zero_stage: int) -> Candidate:
        pp, dp_replicate, dp_shard, tp = mesh
        return Candidate(
            pp=pp,
            dp_replicate=dp_replicate,
            dp_shard=dp_shard,
            tp=tp,
            sequence_parallel=self.layouts.sequence_parallel(tp, self.setting.job.seq_len),
            zero_stage=zero_stage,
            microbatch_size=size,
            num_microbatches=self._num_microbatches(dp_replicate * dp_shard, size),
            recompute=policy,
        )

    def costs(self, candidate: Candidate) -> StageCosts:
        key = (candidate.tp, candidate.microbatch_size)
        if key not in self._prices:
            self._prices[key] = price_blocks(self.setting, candidate, self.layouts.at(candidate.tp))
        return StageCosts(self.setting, candidate, self._prices[key])


def predict(found: Found) -> Prediction:
    """The prediction of a priced candidate, term by term. Memory is followed over time; the search's own is a sum of
    maxima."""
    costs, cuts = found.costs, found.split.cuts
    setting, candidate = costs.setting, costs.candidate
    job, cluster = setting.job, setting.cluster
    stages = list(pairwise(cuts))
    breakdown = step_breakdown(
        [stage_seconds(costs, a, b) for a, b in stages], candidate.num_microbatches, cluster.evidence
    )
    peak = cluster.device.peak(setting.precision.compute_dtype) * cluster.num_devices
    flop = model_flop(setting.graph, seq_len=job.seq_len) * job.global_batch
    return Prediction(
        breakdown=breakdown,
        tokens_per_s=job.global_batch * job.seq_len / breakdown.step_s,
        mfu=flop / breakdown.step_s / peak,
        memory=price_step(costs, cuts, memory=RuntimeBytes(costs)).memory,
        assumptions=ASSUMPTIONS,
    )


ASSUMPTIONS = (
    "eager kernels: pointwise operations are not fused (torch.compile would shorten compute.memory_bound)",
    "tensor-parallel collectives and pipeline sends are not overlapped; gathers and reductions are, one block ahead",
    "activations are kept as autograd saves them; the allocator wastes nothing inside the memory limit",
)


def model_flop(graph: ModelGraph, *, seq_len: int) -> int:
    """FLOP of forward and backward of one sample by the convention of MFU (`planner.ops.model_flop`)."""
    per_block = []
    for block in graph.blocks:
        shapes = [value.shape(1, seq_len) for value in block.values]
        per_block.append(sum(ops.model_flop(op, shapes) for op in block.ops))
    return sum(per_block[segment.block] for segment in graph.segments)


def meshes(num_devices: int) -> Iterator[tuple[int, int, int, int]]:
    """All (pp, dp_replicate, dp_shard, tp) whose product is ``num_devices``."""
    for pp in divisors(num_devices):
        for tp in divisors(num_devices // pp):
            data_parallel = num_devices // pp // tp
            for dp_shard in divisors(data_parallel):
                yield pp, data_parallel // dp_shard, dp_shard, tp


def divisors(n: int) -> list[int]:
    """Divisors of ``n`` in increasing order."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def _allowed(pinned: int | None, most: int | None) -> tuple[float, float]:
    return (pinned, pinned) if pinned is not None else (1, most if most is not None else float("inf"))
