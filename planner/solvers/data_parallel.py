"""What data-parallel devices tell each other: gathers of parameters, reductions of gradients, and how much of it
computation leaves exposed, by what ``zero_stage`` shares out (see `costmodels.memory`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels import communication
from costmodels.overlap import Array, Exposed, exposed
from hardware_profiles.cluster import Group
from hardware_profiles.topology import group
from planner.plan import Candidate
from planner.solvers.prices import BlockPrice
from planner.solvers.setting import Setting


@dataclass(frozen=True, kw_only=True)
class Transfers:
    """Seconds of every segment's data-parallel communication, were nothing hidden."""

    gather_s: Array
    """All-gather of parameters over the devices that share state."""
    reduce_s: Array
    """Reduce-scatter of gradients over the same."""
    replicate_s: Array
    """All-reduce of gradient shards over ``dp_replicate``; over all data-parallel devices where no state is shared
    out."""


def state_shards(candidate: Candidate) -> int:
    """Devices over which parameters are padded and spread."""
    return candidate.state_shard if candidate.zero_stage else 1


def expert_shards(candidate: Candidate) -> int:
    """Devices that hold the same experts, of those that share state."""
    return max(1, candidate.state_shard * candidate.tp // candidate.ep)


def transfers(setting: Setting, candidate: Candidate, prices: Sequence[BlockPrice]) -> Transfers:
    """Calibrated seconds of a candidate's data-parallel communication."""
    c, precision, shards = candidate, setting.precision, state_shards(candidate)
    reduced = [p.reduced_numel(shards) for p in prices]

    def over_state(
        price: Callable[[Group, float], float], size: float, block_numel: Sequence[int], *, replicas: int = 1
    ) -> list[float]:
        """A collective over the devices that share state (and its replicas), of each block's parameters: experts over
        those that hold the same ones."""
        ranks = group(setting.cluster, size=replicas * c.state_shard, stride=c.tp)
        alike = max(1, replicas * c.state_shard * c.tp // c.ep)
        own = group(setting.cluster, size=alike, stride=c.ep) if c.ep > 1 else ranks
        experts = [p.expert_numel() for p in prices]
        return [
            price(ranks, size * (n - e)) + (price(own, size * e) if e else 0.0)
            for n, e in zip(block_numel, experts, strict=True)
        ]

    if not c.zero_stage:
        replicate = over_state(communication.all_reduce_s, precision.reduced_bytes, reduced, replicas=c.dp_replicate)
    else:
        replicas = group(setting.cluster, size=c.dp_replicate, stride=c.tp * c.state_shard)
        size = precision.reduced_bytes / c.state_shard
        replicate = [communication.all_reduce_s(replicas, size * n) for n in reduced]
    gather = over_state(communication.all_gather_s, precision.gathered_bytes, [p.numel(shards) for p in prices])
    reduce = over_state(communication.reduce_scatter_s, precision.reduced_bytes, reduced)
    factor = setting.execution.factor("dp")
    return Transfers(
        gather_s=factor * setting.per_segment(gather),
        reduce_s=factor * setting.per_segment(reduce),
        replicate_s=factor * setting.per_segment(replicate),
    )


def exposed_transfers(
    setting: Setting, zero_stage: int, found: Transfers, forward_s: Array, backward_s: Array
) -> tuple[dict[str, Exposed], dict[str, Exposed]]:
    """What is left exposed (per microbatch, per step), by term, beside these passes of every segment."""
    gather, reduce, replicate = found.gather_s, found.reduce_s, found.replicate_s
    slowdown, execution = setting.cluster.library.compute_slowdown, setting.execution

    def gathered() -> Exposed:
        return exposed(gather, forward_s * execution.overlap_gather, compute_slowdown=slowdown)

    def reduced(compute_s: Array, transfer: Array) -> Exposed:
        return exposed(transfer, compute_s * execution.overlap_gradients, compute_slowdown=slowdown)

    def replica_reduce(busy: Array) -> dict[str, Exposed]:
        """In the last microbatch, behind what backward the other communication (``busy``) leaves free."""
        return {"dp.replica_reduce": reduced(np.maximum(backward_s - busy, 0.0), replicate)}

    match zero_stage:
        case 0:
            return {}, {"dp.gradient_reduce": reduced(backward_s, replicate)}
        case 1:
            return {}, {
                "dp.parameter_gather": gathered(),
                "dp.gradient_reduce": reduced(backward_s, reduce + replicate),
            }
        case 2:
            return {"dp.gradient_reduce": reduced(backward_s, reduce)}, {
                "dp.parameter_gather": gathered(),
                **replica_reduce(reduce),
            }
        case _:
            both = reduced(backward_s, gather + reduce)
            return {
                "dp.parameter_gather": gathered(),
                "dp.parameter_regather": both.share(gather),
                "dp.gradient_reduce": both.share(reduce),
            }, replica_reduce(gather + reduce)


def stage_exposed_s(transfer: Exposed, a: int, b: int, *, opens: bool = True) -> float:
    """Expected exposed seconds of the stage of segments [a, b), with what its first transfer cannot hide where the
    stage ``opens`` the run of transfers."""
    return float(transfer.expected[a:b].sum() + (transfer.first[a] if opens else 0.0))
