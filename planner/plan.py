"""The Plan: one frozen value that says everything a runtime needs; the only thing that travels further than the
solvers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from costmodels.breakdown import Breakdown
from costmodels.schedules import Schedule, make
from planner.actions import own_schedule
from planner.graph import InputTensor
from planner.job import Constraints, Job

SCHEMA_VERSION = 1
AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""Mesh axes, outer to inner: neighbouring ranks differ in ``tp`` first, so the busiest axis gets the nearest links."""

ContextKind = Literal["all_gather", "ring", "ulysses", "ulysses_ring"]

ACTIONS = "actions"
"""The schedule of a plan that lists every rank's actions itself."""

TORCH_SCHEDULES = {
    "1f1b": "1F1B",
    "gpipe": "GPipe",
    "interleaved-1f1b": "Interleaved1F1B",
    "looped-bfs": "LoopedBFS",
    "zb-h1": "InterleavedZeroBubble",
    "zb-v": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}
"""Names of `costmodels.schedules` -> those of ``torch.distributed.pipelining``."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One point of the searched space."""

    pp: int
    dp_replicate: int
    dp_shard: int
    tp: int
    sequence_parallel: bool
    """Activations outside the tensor-parallel regions are sharded over ``tp`` along the sequence."""
    zero_stage: int
    """What ``dp_shard`` shards: 0 nothing (``dp_shard`` = 1), 1 optimizer states, 2 and gradients, 3 and parameters."""
    microbatch_size: int
    """Samples per data-parallel rank and microbatch."""
    num_microbatches: int
    recompute: str
    """``none``, ``selective`` (only GEMM and attention outputs are kept), ``full`` (only block inputs are kept), or
    another of `planner.solvers.saved.POLICIES`."""
    cp: int = 1
    """Devices that share the sequence of a sample; they hold parameters like ``dp_shard`` does."""
    context: ContextKind = "all_gather"
    """How attention reaches the keys of other ``cp`` devices."""
    ulysses: int = 1
    """Of ``cp``, neighbours that exchange heads for tokens under ``ulysses_ring``; rings join what they leave."""
    ep: int = 1
    """Devices, out of ``dp_shard * cp * tp`` neighbours, that share the experts of a layer."""
    num_chunks: int = 1
    """Stages per pipeline rank."""
    schedule: str = "1f1b"
    """A name of `costmodels.schedules`, or `ACTIONS`."""
    recomputed_blocks: int | None = None
    """Blocks of every stage that ``recompute`` applies to; all of them where ``None``."""

    @property
    def data_parallel(self) -> int:
        return self.dp_replicate * self.dp_shard

    @property
    def state_shard(self) -> int:
        """Devices over which ``zero_stage`` spreads what every one of them would otherwise hold."""
        return self.dp_shard * self.cp

    @property
    def expert_shard(self) -> int:
        """Devices that hold the same experts within a ``dp_replicate`` group, and shard their states."""
        return self.dp_shard * self.cp * self.tp // self.ep

    @property
    def num_devices(self) -> int:
        return self.pp * self.data_parallel * self.cp * self.tp


@dataclass(frozen=True, kw_only=True)
class ParamLayout:
    """Placements of all parameters whose FQN matches ``pattern`` (``*`` stands for one path component)."""

    pattern: str
    placements: Mapping[str, str]
    """Mesh axis -> DTensor placement, ``R`` or ``S(dim)``; ``pp`` is absent: it places whole blocks. ``dp_shard`` and
    ``cp`` divide a dim together. Experts have one under ``ep`` too; their ``dp_shard`` and ``cp`` stand for the
    ``dp_shard * cp * tp / ep`` devices that hold the same experts."""
    num_chunks: int = 1
    """Along the ``tp`` dim the tensor is ``num_chunks`` equal tensors stored one after another (fused QKV): each is
    sharded on its own."""


@dataclass(frozen=True, kw_only=True)
class ExpertPlacement:
    """Who holds which experts of a block; blocks without one spread them evenly in order, each expert once."""

    block: str
    """FQN of the block (``layers.3``); ``*`` stands for one path component."""
    ranks: tuple[tuple[int, ...], ...]
    """Per expert the ranks of ``ep`` that hold it, ascending; several hold replicas."""


@dataclass(frozen=True, kw_only=True)
class Redistribution:
    """What ``tp`` ranks communicate so that an operation finds an argument as it wants it."""

    source: str
    target: str
    """Placements over ``tp`` before and after."""
    forward: str
    backward: str
    """Collectives of the value and of its gradient: ``all_gather``, ``reduce_scatter``, ``all_reduce``,
    ``all_to_all``, or ``local`` where nothing is communicated."""
    num_bytes: int
    """The whole value over ``tp``."""
    forward_s: float
    backward_s: float


@dataclass(frozen=True, kw_only=True)
class OperationLayout:
    """One operation of a block over ``tp``, for one microbatch. Over ``dp_replicate`` and ``dp_shard`` activations lie
    along the batch and parameters are whole while they are used."""

    module: str
    """FQN of the module that issues it, relative to the block; empty for the block itself."""
    operation: str
    """ATen name; of several that are laid out together (experts, a loss) that with most FLOP, or the last."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """Placements (`planner.layouts.placements`)."""
    implementation: str
    """``local``, or how the operation communicates inside (docs/layouts.md)."""
    forward_s: float
    backward_s: float
    redistributions: tuple[Redistribution, ...]
    """Before it runs."""


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """Layouts of the operations that launch kernels, of all calls of one distinct block."""

    modules: tuple[str, ...]
    """FQNs of its calls, or of what runs in it; ``*`` stands for any number, ``1-3`` for a run of them. None for
    bare operations."""
    calls: int
    operations: tuple[OperationLayout, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of blocks on one pipeline position; a rank of ``pp`` has ``num_chunks`` of them (`Plan.stage_ranks`)."""

    modules: tuple[str, ...]
    """FQNs of the modules that the stage owns, in execution order."""


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Peak memory of one device of a stage, by part; the total is their sum."""

    parts: Mapping[str, int]
    """``parameters``, ``gradients``, ``optimizer``, ``activations``, ``gathered_parameters``, ``buffers``, ... in
    bytes."""

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Prediction:
    breakdown: Breakdown
    tokens_per_s: float
    """Tokens (samples for models without a sequence) per second over the whole cluster."""
    mfu: float
    """Model FLOP (forward and backward as traced, nothing computed again, causal attention counted in full) per second
    over the cluster's dense peak."""
    memory: tuple[StageMemory, ...]
    assumptions: tuple[str, ...]

    @property
    def step_s(self) -> float:
        return self.breakdown.step_s

    @property
    def peak_bytes(self) -> int:
        return max(stage.total_bytes for stage in self.memory)


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """How the plan was found."""

    candidates: int
    """Points of the enumerated space; = priced + the sum of ``rejected``."""
    priced: int
    rejected: Mapping[str, int]
    """Reason -> number of candidates; ``bound`` are those that provably cannot beat what was already found."""
    bound_s: float
    """No candidate of the space has a smaller ``step_s``."""

    def gap(self, step_s: float) -> float:
        """Relative distance of a plan to the proven bound; 0 = proven best of the space."""
        return step_s / self.bound_s - 1.0


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """What the plan was computed from; equal inputs give equal plans. What is ``None`` nobody recorded, and nothing is
    compared with it."""

    model: str
    model_sha256: str | None = None
    num_parameters: int | None = None
    hardware: str
    hardware_sha256: str | None = None
    hardware_evidence: str | None = None
    device_memory_bytes: int | None = None
    num_devices: int
    job: Job
    constraints: Constraints = field(default_factory=Constraints)
    torch_version: str | None = None
    batch: tuple[InputTensor, ...] = ()
    """What the model is fed, one entry per tensor."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    inputs: PlanInputs
    candidate: Candidate
    layouts: tuple[ParamLayout, ...] = ()
    """Of every parameter; where there are none, what `planner.layouts.model.param_layouts` says."""
    experts: tuple[ExpertPlacement, ...] = ()
    stages: tuple[Stage, ...]
    """In order of execution."""
    actions: tuple[tuple[str, ...], ...] = ()
    """Per rank of ``pp`` what it computes, in order (`planner.actions`), under the schedule `ACTIONS`."""
    predicted: Prediction | None = None
    """``None`` in plans that were written by hand."""
    search: SearchReport | None = None
    """``None`` where nothing was searched."""
    operations: tuple[BlockLayout, ...] = ()
    """Per distinct block, in order of execution; where there are none, what costs least is taken."""
    warnings: tuple[str, ...] = ()

    @property
    def schedule(self) -> str:
        """Name as in ``torch.distributed.pipelining`` (``1F1B``), or `ACTIONS`."""
        return TORCH_SCHEDULES.get(self.candidate.schedule, self.candidate.schedule)

    @property
    def order(self) -> Schedule:
        """Who runs what in which order."""
        c = self.candidate
        if self.actions:
            return own_schedule(self.actions, c.num_microbatches)
        return make(c.schedule, c.pp, c.num_microbatches, c.num_chunks)

    @property
    def stage_ranks(self) -> tuple[int, ...]:
        """Per stage the rank of ``pp`` that runs it."""
        return self.order.placements[0]


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A runner-up: the best plan with another mesh than any plan above it."""

    candidate: Candidate
    predicted: Prediction


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """What ``planner.plan`` returns: the plan, its runners-up and how long it took (never part of the plan)."""

    plan: Plan
    alternatives: tuple[Alternative, ...]
    seconds: Mapping[str, float]
    """Wall seconds of ``capture``, ``search`` and ``total``."""

    @property
    def predicted(self) -> Prediction:
        """Of the plan, which was priced to be found."""
        return known(self.plan.predicted)


T = TypeVar("T")


def known(said: T | None) -> T:
    """What only plans written by hand may leave open, of one that was found."""
    assert said is not None, "whoever finds a plan says what it was found from"
    return said
