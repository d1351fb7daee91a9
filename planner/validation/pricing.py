"""`price`: what the cost model says of one measured run, at exactly the run's own layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType

from planner.calibration.scopes import constants_of
from planner.calibration.shipped import product_of, shipped
from planner.capture.families import family_graph
from planner.graph import ModelGraph
from planner.job import Job
from planner.layouts.model import ModelLayouts, analyse_model
from planner.plan import Candidate
from planner.solvers.classes import CLASSES
from planner.solvers.context import ContextKind
from planner.solvers.prices import BlockPrice, price_block
from planner.solvers.stage_costs import Setting, StageCosts
from planner.solvers.step_price import price_step
from planner.validation.cases import CannotPriceError, Case
from planner.validation.clusters import cluster_of
from planner.validation.frameworks import execution_of, precision_of
from planner.validation.memory import default_zero_stage, fills_first_stages, least_driver_bytes
from planner.validation.models import config_of


@dataclass(frozen=True)
class Priced:
    """What is predicted of one run."""

    step_s: float
    peak_bytes: int
    """Least that the fullest device must have, as its driver counts."""
    allocated_bytes: int
    """Tensors of the fullest device at their peak, as torch's allocator counts."""
    capacity_bytes: int
    terms: Mapping[str, float]
    """Seconds by named term; their sum is ``step_s``."""
    classes: Mapping[str, float]
    """The same seconds by class of operation."""
    assumptions: tuple[str, ...]
    constants: Mapping[str, tuple[str, ...]]
    """By class, the constants of calibration that belong to the run."""
    factors: Mapping[str, float]
    """By class, what the constants make of the seconds: ``classes`` have it in them."""


def price(case: Case, *, calibrated: bool = True) -> Priced:
    """Price the layout of a run, with the shipped constants of calibration or without any.

    Raises `CannotPriceError` with what is missing.
    """
    return price_with(case, shipped().values if calibrated else {})


def price_with(case: Case, values: Mapping[str, float], own: Mapping[str, float] = MappingProxyType({})) -> Priced:
    """The same with these constants of calibration, and further factors by class for this run alone."""
    setting, candidate, cuts, assumed = layout_of(case)
    names = constants_of(
        device=setting.cluster.device.name,
        execution=setting.execution,
        low_precision=setting.execution.linear_dtype is not None,
        experts=case.moe,
    )
    shared = dict(product_of(names, values))
    factors = {kind: shared.get(kind, 1.0) * own.get(kind, 1.0) for kind in CLASSES}
    setting = replace(setting, execution=replace(setting.execution, time_factor=tuple(factors.items())))
    found = price_step(_costs(setting, candidate), cuts)
    return Priced(
        step_s=float(found.step_s),
        peak_bytes=least_driver_bytes(case, found.peak_bytes),
        allocated_bytes=found.peak_bytes,
        capacity_bytes=setting.cluster.device.memory_bytes,
        terms={term.name: float(term.seconds) for term in found.breakdown.terms},
        classes={kind: float(seconds) for kind, seconds in found.classes.items()},
        assumptions=assumed,
        constants=names,
        factors=factors,
    )


def layout_of(case: Case) -> tuple[Setting, Candidate, tuple[int, ...], tuple[str, ...]]:
    """A run in the planner's terms: job and cluster, layout, first segment of every stage; and what was assumed."""
    config, assumed = config_of(
        model=case.model, layers=case.layers, hidden=case.hidden, ffn=case.ffn, heads=case.heads,
        kv_heads=case.kv_heads, head_dim=case.head_dim, vocab=case.vocab, seq_len=case.seq_len,
        gated_mlp=case.gated_mlp, tied_embeddings=case.tied_embeddings, experts=case.experts, topk=case.topk,
        moe_ffn=case.moe_ffn, shared_expert_ffn=case.shared_expert_ffn,
    )  # fmt: skip
    gpus, seq_len, batch = (_stated(case, name) for name in ("gpus", "seq_len", "global_batch"))
    machine = cluster_of(
        case.hardware, interconnect=case.interconnect, note=None, gpus=gpus, gpus_per_node=case.gpus_per_node
    )
    execution, more = execution_of(case)
    candidate, most = _candidate(case, gpus, batch)
    graph = family_graph(config)
    job = Job(global_batch=batch, seq_len=seq_len, precision=precision_of(case))
    setting = Setting(graph, machine.cluster, job, execution)
    return setting, candidate, cuts_of(graph, case, candidate), (*assumed, *machine.assumptions, *more, *most)


def _stated(case: Case, name: str) -> int:
    value = getattr(case, name)
    if value is None:
        raise CannotPriceError(f"the source does not state {name}")
    return int(value)


def _candidate(case: Case, gpus: int, batch: int) -> tuple[Candidate, tuple[str, ...]]:
    """The run's layout; what the source leaves open follows from the rest."""
    assumed: list[str] = []
    tp, pp, cp, ep = case.tp or 1, case.pp or 1, case.cp or 1, case.ep or 1
    dp, rest = divmod(gpus, tp * pp * cp)
    if rest:
        raise CannotPriceError(f"{gpus} devices are no multiple of tp {tp} * pp {pp} * cp {cp}")
    per_rank, rest = divmod(batch, dp)
    if rest:
        raise CannotPriceError(f"a batch of {batch} is no multiple of {dp} data-parallel ranks")
    size = case.micro_batch
    if size is None:
        size = per_rank // case.num_microbatches if case.num_microbatches else 1
        assumed.append(f"microbatch not stated: {size}")
    if size > per_rank or per_rank % size:
        raise CannotPriceError(f"microbatches of {size} do not divide the {per_rank} samples of a rank")
    zero_stage = case.zero_stage
    if zero_stage is None:
        zero_stage = default_zero_stage(case)
    shard = dp if zero_stage else 1
    if zero_stage and case.shard_size and dp % case.shard_size == 0:
        shard = case.shard_size
    if shard * cp == 1:
        zero_stage = 0
    recompute, blocks = _recompute(case, assumed)
    schedule, num_chunks = "1f1b", case.vpp or 1
    if num_chunks > 1:
        schedule = "interleaved-1f1b"
    sequence_parallel = bool(case.sp) if case.sp is not None else False
    if case.sp is None and tp > 1 and case.framework in ("megatron-bridge", "nemo", "torchtitan"):
        sequence_parallel = True
        assumed.append("sequence parallelism not stated: on, the framework's recipes have it with tp")
    return (
        Candidate(
            pp=pp, dp_replicate=dp // shard, dp_shard=shard, tp=tp, sequence_parallel=sequence_parallel and tp > 1,
            zero_stage=zero_stage, microbatch_size=size, num_microbatches=per_rank // size, recompute=recompute,
            cp=cp, context=_context(case), ep=ep, num_chunks=num_chunks, schedule=schedule, recomputed_blocks=blocks,
        ),
        tuple(assumed),
    )  # fmt: skip


def _context(case: Case) -> ContextKind:
    if case.cp_kind is not None:
        return case.cp_kind
    return "all_gather" if case.framework == "torchtitan" else "ring"


def _recompute(case: Case, assumed: list[str]) -> tuple[str, int | None]:
    policy = case.recompute
    if policy is None:
        policy = "none"
        assumed.append("recomputation not stated: none, the default of the framework")
    if case.recompute_layers == 0:
        return "none", None
    match policy:
        case "none":
            return "none", None
        case "selective" if "moe" in case.recompute_modules:
            return "experts", None
        case "selective" if "moe_act" in case.recompute_modules:
            return "activations", None
        case "selective":
            return ("half" if case.framework in ("torchtitan", "fsdp") else "attention"), None
        case _:
            return "full", case.recompute_layers


def cuts_of(graph: ModelGraph, case: Case, candidate: Candidate) -> tuple[int, ...]:
    """First segment of every stage: blocks spread evenly unless the source says how, embedding in front, head last."""
    blocks = [i for i, segment in enumerate(graph.segments) if segment.prefix]
    num_stages = candidate.pp * candidate.num_chunks
    counts = list(case.stage_layers)
    if len(counts) == num_stages and sum(counts) == len(blocks) + 2:
        counts[0], counts[-1] = counts[0] - 1, counts[-1] - 1
    if len(counts) != num_stages or sum(counts) != len(blocks):
        if num_stages > len(blocks) + 2:
            raise CannotPriceError(f"{num_stages} stages for {len(blocks)} blocks")
        few, more = divmod(len(blocks), num_stages)
        if more and fills_first_stages(case) and (few + 1) * (num_stages - 1) < len(blocks):
            counts = [few + 1] * (num_stages - 1)
            counts.append(len(blocks) - sum(counts))
        else:
            # Stages in the middle take what is left over: the first has the embedding, the last the head. Where blocks
            # are too few, these two are all that first and last stage have (Megatron-Core counts them as layers).
            start = (num_stages - more) // 2
            counts = [few + (start <= i < start + more) for i in range(num_stages)]
    bounds = [*blocks, blocks[-1] + 1]
    starts = [0, *(bounds[n] for n in accumulate(counts[:-1])), len(graph.segments)]
    return tuple(starts)


def _costs(setting: Setting, candidate: Candidate) -> StageCosts:
    return StageCosts(setting, candidate, _prices(setting, candidate))


@lru_cache(maxsize=256)
def _layouts(graph_id: int, graph: ModelGraph) -> ModelLayouts:
    return analyse_model(graph)


def _prices(setting: Setting, candidate: Candidate) -> tuple[BlockPrice, ...]:
    graph = setting.graph
    repeated = {segment.block for segment in graph.segments if segment.prefix}
    return tuple(
        price_block(
            block, layout, setting.cluster, tp=candidate.tp, sequence_parallel=candidate.sequence_parallel,
            batch=candidate.microbatch_size, seq_len=setting.job.seq_len, recomputable=index in repeated,
            trained=setting.trained[index], cp=candidate.cp, context=candidate.context, ep=candidate.ep,
            execution=setting.execution,
        )
        for index, (block, layout) in enumerate(zip(graph.blocks, analyse_model(graph).blocks, strict=True))
    )  # fmt: skip
