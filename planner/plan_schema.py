"""The fields of a plan file: one model per object of the JSON. What binds them together is in `planner.plan_rules`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from planner.actions import ENTRY
from planner.job import Constraints

Axis = Literal["pp", "dp_replicate", "dp_shard", "cp", "tp"]
ShardingAxis = Literal["dp_replicate", "dp_shard", "cp", "tp", "ep"]
Placement = Annotated[str, StringConstraints(pattern=r"^(R|S\((0|[1-9]\d*)\))$")]
_OPERAND = r"([RBP]|S\((0|[1-9]\d*)(/[1-9]\d*)?\))"
OperandPlacement = Annotated[str, StringConstraints(pattern=rf"^{_OPERAND}(,{_OPERAND})*$")]
Collective = Literal["local", "all_gather", "reduce_scatter", "all_reduce", "all_to_all"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Positive = Annotated[int, Field(ge=1, lt=1 << 63)]
Seconds = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Recompute = Literal["none", "selective", "full"]
Policy = Literal["none", "selective", "half", "full"]
Context = Literal["all_gather", "ring", "ulysses", "ulysses_ring"]
ScheduleName = Literal[
    "1F1B", "GPipe", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV", "actions"
]
Action = Annotated[str, StringConstraints(pattern=ENTRY)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class JobPart(_Part):
    """What is trained."""

    global_batch: Positive
    seq_len: Positive
    precision: Name
    optimizer: Name


class PinPart(_Part):
    """A layout that the user settled."""

    fqn: Name
    layout: Name


class ConstraintsPart(_Part):
    """What the user pinned; null where the planner was free."""

    max_tp: Positive | None = None
    max_pp: Positive | None = None
    tp: Positive | None = None
    pp: Positive | None = None
    dp_replicate: Positive | None = None
    dp_shard: Positive | None = None
    microbatch_size: Positive | None = None
    recompute: Recompute | None = None
    pins: tuple[PinPart, ...] = ()
    memory_fraction: Annotated[float, Field(gt=0, le=1)] = Constraints().memory_fraction


class InputTensorPart(_Part):
    """One tensor of a batch: its sizes for one sample, ``seq_len`` where that is one."""

    name: Name | None = None
    dtype: Name
    shape: tuple[Positive | Literal["seq_len"], ...]


class InputsPart(_Part):
    """What the plan was computed from. A hash, count or version that is null is compared with nothing."""

    model: Name
    model_sha256: Sha256 | None = None
    num_parameters: Count | None = None
    hardware: Name
    hardware_sha256: Sha256 | None = None
    hardware_evidence: Literal["measured", "datasheet", "derived"] | None = None
    device_memory_bytes: Positive | None = None
    num_devices: Positive
    job: JobPart
    constraints: ConstraintsPart = ConstraintsPart()
    torch_version: Name | None = None
    batch: tuple[InputTensorPart, ...] = ()


class AxisPart(_Part):
    """One dimension of the device mesh."""

    name: Axis
    size: Positive


class ShardingPart(_Part):
    """What the axes carry besides what ``layouts`` says: of activations over ``tp`` and ``cp``, of parameters over
    ``dp_shard`` and ``cp``, of experts over ``ep`` of the ``dp_shard * cp * tp`` neighbours."""

    sequence_parallel: bool
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    context: Context = "all_gather"
    ulysses: Positive = 1
    ep: Positive = 1


class MeshPart(_Part):
    """Axes from outer to inner: rank = (((pp * size + dp_replicate) * size + dp_shard) * size + cp) * size + tp."""

    axes: tuple[AxisPart, ...]
    sharding: ShardingPart


class LayoutPart(_Part):
    """Placements, in DTensor notation, of the parameters whose FQN matches ``pattern``."""

    pattern: Name
    placements: dict[ShardingAxis, Placement]
    num_chunks: Positive = 1


class ExpertsPart(_Part):
    """Per expert of the blocks whose FQN matches, the ranks of ``ep`` that hold it."""

    block: Name
    ranks: Annotated[tuple[Annotated[tuple[Count, ...], Field(min_length=1)], ...], Field(min_length=1)]


class RedistributionPart(_Part):
    """What ranks of ``tp``, or of ``cp`` and ``tp``, communicate before an operation: collectives of a value and of its
    gradient."""

    source: OperandPlacement
    target: OperandPlacement
    forward: Collective
    backward: Collective
    num_bytes: Count
    forward_s: Seconds
    backward_s: Seconds


class OperationPart(_Part):
    """One operation over ``tp``, or over ``cp`` and ``tp`` where ``cp`` is not 1, for one microbatch."""

    module: str
    operation: Name
    inputs: tuple[OperandPlacement, ...]
    outputs: tuple[OperandPlacement, ...]
    implementation: Name
    forward_s: Seconds
    backward_s: Seconds
    redistributions: tuple[RedistributionPart, ...]


class BlockPart(_Part):
    """Operations of one distinct block, in execution order."""

    modules: tuple[Name, ...]
    calls: Positive
    operations: tuple[OperationPart, ...]


class StagePart(_Part):
    """Modules of one pipeline position, in execution order; ``layers.0-3`` stands for four."""

    modules: Annotated[tuple[Name, ...], Field(min_length=1)]


class PipelinePart(_Part):
    """How samples flow: stages in order of execution, ``num_chunks`` for each rank of ``pp``, dealt out by the
    schedule; ``actions`` are a schedule of one's own, per rank."""

    schedule: ScheduleName
    num_chunks: Positive = 1
    actions: tuple[tuple[Action, ...], ...] = ()
    stages: Annotated[tuple[StagePart, ...], Field(min_length=1)]
    num_microbatches: Positive
    microbatch_size: Positive


class RangePart(_Part):
    """Seconds of one step: with every overlap that could be had, as predicted, with none."""

    value: PositiveFloat
    low: Seconds
    high: PositiveFloat


class MemoryPart(_Part):
    """Peak bytes of one device of a stage."""

    total: Count
    parts: dict[Name, Count]


class TermPart(_Part):
    """One named part of the step's time."""

    term: Name
    seconds: Seconds
    low_s: Seconds
    high_s: Seconds
    evidence: Literal["measured", "datasheet", "derived"]


class PredictedPart(_Part):
    """What the plan is expected to do."""

    step_s: RangePart
    tokens_per_s: PositiveFloat
    mfu: Annotated[float, Field(ge=0)]
    memory_bytes: tuple[MemoryPart, ...]
    breakdown: tuple[TermPart, ...]
    assumptions: tuple[str, ...]


class SearchPart(_Part):
    """How the plan was found."""

    candidates: Count
    priced: Count
    rejected: dict[Name, Count]
    bound_s: PositiveFloat
    gap: float


class PlanFile(_Part):
    """A layout of one training job over the devices of one cluster, with its prediction; what is absent is left to
    Meshwright."""

    schema_version: Literal[1]
    inputs: InputsPart
    mesh: MeshPart
    layouts: tuple[LayoutPart, ...] = ()
    experts: tuple[ExpertsPart, ...] = ()
    operations: tuple[BlockPart, ...] = ()
    pipeline: PipelinePart
    recompute: Policy
    recomputed_blocks: Positive | None = None
    predicted: PredictedPart | None = None
    search: SearchPart | None = None
    warnings: tuple[str, ...] = ()
