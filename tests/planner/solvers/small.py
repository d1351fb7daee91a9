"""A small job on a small cluster, and all its candidates by plain enumeration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product

from hardware_profiles.load import load_cluster
from planner.job import Constraints, Job
from planner.layouts.model import ModelLayouts, analyse_model
from planner.plan import Candidate
from planner.solvers.prices import BlockPrice, price_blocks
from planner.solvers.setting import Setting
from planner.solvers.stage_costs import StageCosts
from tests.planner.layouts.small import graph

TOY = "tests/hardware_profiles/toy.toml"
"""16 GiB devices, 4 to a node, a slow network."""


@dataclass(frozen=True, eq=False)
class Case(Setting):
    """A setting with what its candidates share."""

    @cached_property
    def layouts(self) -> ModelLayouts:
        return analyse_model(self.graph)

    @cached_property
    def prices(self) -> dict[tuple[int, int], tuple[BlockPrice, ...]]:
        return {}


@cache
def setting(family: str = "gqa", *, shape: str = "2x4", global_batch: int = 16, seq_len: int = 64,
            optimizer: str = "adamw", precision: str = "bf16", vocab_size: int = 40) -> Case:  # fmt: skip
    job = Job(global_batch=global_batch, seq_len=seq_len, optimizer=optimizer, precision=precision)
    return Case(graph(family, vocab_size=vocab_size), load_cluster(f"{TOY}:{shape}"), job)


def candidates(case: Case, constraints: Constraints | None = None) -> Iterator[Candidate]:
    """All legal points of the space, straight from its definition."""
    pins = constraints or Constraints()
    n, layouts = case.cluster.num_devices, case.layouts
    sizes = range(1, n + 1)
    for pp, replicate, shard, tp in product(sizes, sizes, sizes, sizes):
        if pp * replicate * shard * tp != n or pp > sum(bool(segment.modules) for segment in case.graph.segments):
            continue
        if tp > 1 and layouts.obstacle(tp):
            continue
        if any(pin not in (None, size) for pin, size in zip(
            (pins.pp, pins.dp_replicate, pins.dp_shard, pins.tp), (pp, replicate, shard, tp), strict=True
        )):  # fmt: skip
            continue
        if pp > (pins.max_pp or n) or tp > (pins.max_tp or n):
            continue
        for size in range(1, case.job.global_batch + 1):
            count, rest = divmod(case.job.global_batch, replicate * shard * size)
            if rest or count < pp or pins.microbatch_size not in (None, size):
                continue
            for recompute in ("none", "selective", "full") if pins.recompute is None else (pins.recompute,):
                for zero_stage in (1, 2, 3) if shard > 1 else (0,):
                    yield Candidate(
                        pp=pp, dp_replicate=replicate, dp_shard=shard, tp=tp,
                        sequence_parallel=layouts.sequence_parallel(tp, case.job.seq_len), zero_stage=zero_stage,
                        microbatch_size=size, num_microbatches=count, recompute=recompute,
                    )  # fmt: skip


def costs(case: Case, candidate: Candidate) -> StageCosts:
    """A candidate's prices, block by block."""
    tp, batch = candidate.tp, candidate.microbatch_size
    if (tp, batch) not in case.prices:
        case.prices[tp, batch] = price_blocks(case, candidate, case.layouts.at(tp))
    return StageCosts(case, candidate, case.prices[tp, batch])
