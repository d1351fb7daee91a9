"""A measured run in the planner's terms: its job and cluster, its layout, where its stages begin."""

from __future__ import annotations

from itertools import accumulate

from hardware_profiles.errors import UnknownNameError
from planner.capture.families import family_graph
from planner.graph import ModelGraph
from planner.job import Job
from planner.plan import Candidate
from planner.solvers.context import ContextKind
from planner.solvers.setting import Setting
from planner.validation.cases import CannotPriceError, Case
from planner.validation.clusters import cluster_of
from planner.validation.frameworks import execution_of, precision_of
from planner.validation.memory import default_zero_stage, fills_first_stages
from planner.validation.models import config_of


def layout_of(case: Case) -> tuple[Setting, Candidate, tuple[int, ...], tuple[str, ...]]:
    """A run in the planner's terms: job and cluster, layout, first segment of every stage; and what was assumed."""
    config, assumed = config_of(
        model=case.model, layers=case.layers, hidden=case.hidden, ffn=case.ffn, heads=case.heads,
        kv_heads=case.kv_heads, head_dim=case.head_dim, vocab=case.vocab, seq_len=case.seq_len,
        gated_mlp=case.gated_mlp, tied_embeddings=case.tied_embeddings, experts=case.experts, topk=case.topk,
        moe_ffn=case.moe_ffn, shared_expert_ffn=case.shared_expert_ffn,
    )  # fmt: skip
    gpus, seq_len, batch = (_stated(case, name) for name in ("gpus", "seq_len", "global_batch"))
    try:
        machine = cluster_of(
            case.hardware, interconnect=case.interconnect, note=None, gpus=gpus, gpus_per_node=case.gpus_per_node
        )
    except UnknownNameError as error:
        raise CannotPriceError(f"no profile is of {case.hardware!r}") from error
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
    tp, pp, cp, ep = case.tp or 1, case.pp or 1, case.cp or 1, case.ep or 1
    dp, rest = divmod(gpus, tp * pp * cp)
    if rest:
        raise CannotPriceError(f"{gpus} devices are no multiple of tp {tp} * pp {pp} * cp {cp}")
    per_rank, rest = divmod(batch, dp)
    if rest:
        raise CannotPriceError(f"a batch of {batch} is no multiple of {dp} data-parallel ranks")
    assumed: list[str] = []
    size = _microbatch_size(case, per_rank, assumed)
    zero_stage, shard = _sharding(case, dp, cp)
    recompute, blocks = _recompute(case, assumed)
    num_chunks = case.vpp or 1
    return (
        Candidate(
            pp=pp, dp_replicate=dp // shard, dp_shard=shard, tp=tp,
            sequence_parallel=_sequence_parallel(case, tp, assumed), zero_stage=zero_stage, microbatch_size=size,
            num_microbatches=per_rank // size, recompute=recompute, cp=cp, context=_context(case), ep=ep,
            num_chunks=num_chunks, schedule="interleaved-1f1b" if num_chunks > 1 else "1f1b", recomputed_blocks=blocks,
        ),
        tuple(assumed),
    )  # fmt: skip


def _microbatch_size(case: Case, per_rank: int, assumed: list[str]) -> int:
    """Samples of a microbatch, of those that a data-parallel rank has in a step."""
    size = case.micro_batch
    if size is None:
        size = per_rank // case.num_microbatches if case.num_microbatches else 1
        assumed.append(f"microbatch not stated: {size}")
    if size > per_rank or per_rank % size:
        raise CannotPriceError(f"microbatches of {size} do not divide the {per_rank} samples of a rank")
    return size


def _sharding(case: Case, dp: int, cp: int) -> tuple[int, int]:
    """(``zero_stage``, ``dp_shard``)."""
    zero_stage = default_zero_stage(case) if case.zero_stage is None else case.zero_stage
    shard = dp if zero_stage else 1
    if zero_stage and case.shard_size and dp % case.shard_size == 0:
        shard = case.shard_size
    return (0 if shard * cp == 1 else zero_stage), shard


def _sequence_parallel(case: Case, tp: int, assumed: list[str]) -> bool:
    if case.sp is None and tp > 1 and case.framework in ("megatron-bridge", "nemo", "torchtitan"):
        assumed.append("sequence parallelism not stated: on, the framework's recipes have it with tp")
        return True
    return bool(case.sp) and tp > 1


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
