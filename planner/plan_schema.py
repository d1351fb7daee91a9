"""The rules of a plan file: one model per object of the JSON, and what binds their fields together."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from planner.plan import AXES

Axis = Literal["pp", "dp_replicate", "dp_shard", "tp"]
ShardingAxis = Literal["dp_replicate", "dp_shard", "tp"]
Placement = Annotated[str, StringConstraints(pattern=r"^(R|S\((0|[1-9]\d*)\))$")]
OperandPlacement = Annotated[str, StringConstraints(pattern=r"^([RBP]|S\((0|[1-9]\d*)(/[1-9]\d*)?\))$")]
Collective = Literal["local", "all_gather", "reduce_scatter", "all_reduce", "all_to_all"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Positive = Annotated[int, Field(ge=1, lt=1 << 63)]
Seconds = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Recompute = Literal["none", "selective", "full"]


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

    max_tp: Positive | None
    max_pp: Positive | None
    tp: Positive | None
    pp: Positive | None
    dp_replicate: Positive | None
    dp_shard: Positive | None
    microbatch_size: Positive | None
    recompute: Recompute | None
    pins: tuple[PinPart, ...]
    memory_fraction: Annotated[float, Field(gt=0, le=1)]


class InputsPart(_Part):
    """What the plan was computed from."""

    model: Name
    model_sha256: Sha256
    num_parameters: Count
    hardware: Name
    hardware_sha256: Sha256
    hardware_evidence: Literal["measured", "datasheet", "derived"]
    device_memory_bytes: Positive
    num_devices: Positive
    job: JobPart
    constraints: ConstraintsPart
    torch_version: Name


class AxisPart(_Part):
    """One dimension of the device mesh."""

    name: Axis
    size: Positive


class ShardingPart(_Part):
    """What the axes carry besides what ``layouts`` says."""

    sequence_parallel: bool
    zero_stage: Annotated[int, Field(ge=0, le=3)]


class MeshPart(_Part):
    """Axes from outer to inner: rank = ((pp * size + dp_replicate) * size + dp_shard) * size + tp."""

    axes: tuple[AxisPart, ...]
    sharding: ShardingPart


class LayoutPart(_Part):
    """Placements, in DTensor notation, of the parameters whose FQN matches ``pattern``."""

    pattern: Name
    placements: dict[ShardingAxis, Placement]
    num_chunks: Positive


class RedistributionPart(_Part):
    """What ranks of ``tp`` communicate before an operation: collectives of a value and of its gradient."""

    source: OperandPlacement
    target: OperandPlacement
    forward: Collective
    backward: Collective
    num_bytes: Count
    forward_s: Seconds
    backward_s: Seconds


class OperationPart(_Part):
    """One operation over ``tp``, for one microbatch."""

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
    """Modules of one pipeline position, in execution order."""

    modules: Annotated[tuple[Name, ...], Field(min_length=1)]


class PipelinePart(_Part):
    """How samples flow: stages, schedule and microbatches."""

    schedule: Name
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
    warnings: tuple[str, ...]


class SearchPart(_Part):
    """How the plan was found."""

    candidates: Count
    priced: Count
    rejected: dict[Name, Count]
    bound_s: PositiveFloat
    gap: float


class PlanFile(_Part):
    """A layout of one training job over the devices of one cluster, with its prediction."""

    schema_version: Literal[1]
    inputs: InputsPart
    mesh: MeshPart
    layouts: Annotated[tuple[LayoutPart, ...], Field(min_length=1)]
    operations: tuple[BlockPart, ...]
    pipeline: PipelinePart
    recompute: Recompute
    predicted: PredictedPart
    search: SearchPart


def contradictions(file: PlanFile) -> Iterator[str]:
    """Rules that bind several fields: each broken one as ``field = value: rule`` with its numbers."""
    inputs, pipeline, predicted, search = file.inputs, file.pipeline, file.predicted, file.search
    names = tuple(axis.name for axis in file.mesh.axes)
    if names != AXES:
        yield f"mesh.axes = {', '.join(names)}: the axes are {', '.join(AXES)}, from outer to inner"
        return
    size: dict[str, int] = {axis.name: axis.size for axis in file.mesh.axes}

    devices = math.prod(size.values())
    if devices != inputs.num_devices:
        product = " * ".join(f"{axis} {size[axis]}" for axis in AXES)
        yield f"inputs.num_devices = {inputs.num_devices}: must be the product of the axes, {product} = {devices}"

    zero_stage = file.mesh.sharding.zero_stage
    if (zero_stage == 0) != (size["dp_shard"] == 1):
        yield (
            f"mesh.sharding.zero_stage = {zero_stage}: must be 0 where dp_shard is 1 and 1, 2 or 3 elsewhere; "
            f"dp_shard is {size['dp_shard']}"
        )

    data_parallel = size["dp_replicate"] * size["dp_shard"]
    samples = data_parallel * pipeline.num_microbatches * pipeline.microbatch_size
    if samples != inputs.job.global_batch:
        yield (
            f"inputs.job.global_batch = {inputs.job.global_batch}: must be dp_replicate * dp_shard {data_parallel} * "
            f"num_microbatches {pipeline.num_microbatches} * microbatch_size {pipeline.microbatch_size} = {samples}"
        )

    if len(pipeline.stages) != size["pp"]:
        yield f"pipeline.stages = {len(pipeline.stages)} stages: must be as many as pp, {size['pp']}"
    if len(predicted.memory_bytes) != len(pipeline.stages):
        yield (
            f"predicted.memory_bytes = {len(predicted.memory_bytes)} entries: must be one for each of the "
            f"{len(pipeline.stages)} stages"
        )
    yield from _repeated("pipeline.stages", "module", (m for stage in pipeline.stages for m in stage.modules))
    yield from _repeated("layouts", "pattern", (layout.pattern for layout in file.layouts))

    for index, stage in enumerate(predicted.memory_bytes):
        total = sum(stage.parts.values())
        if stage.total != total:
            yield f"predicted.memory_bytes[{index}].total = {stage.total}: must be the sum of its parts, {total}"
    for index, term in enumerate(predicted.breakdown):
        if not (_at_most(term.low_s, term.seconds) and _at_most(term.seconds, term.high_s)):
            yield (
                f"predicted.breakdown[{index}].seconds = {term.seconds}: must lie between low_s {term.low_s} and "
                f"high_s {term.high_s}"
            )
    step = predicted.step_s
    for field, value, total_s in (
        ("value", step.value, sum(term.seconds for term in predicted.breakdown)),
        ("low", step.low, sum(term.low_s for term in predicted.breakdown)),
        ("high", step.high, sum(term.high_s for term in predicted.breakdown)),
    ):
        if not math.isclose(value, total_s):
            yield f"predicted.step_s.{field} = {value}: must be the sum over predicted.breakdown, {total_s}"
    tokens_per_s = inputs.job.global_batch * inputs.job.seq_len / step.value
    if not math.isclose(predicted.tokens_per_s, tokens_per_s):
        yield (
            f"predicted.tokens_per_s = {predicted.tokens_per_s}: must be global_batch {inputs.job.global_batch} * "
            f"seq_len {inputs.job.seq_len} / step_s {step.value} = {tokens_per_s}"
        )

    accounted = search.priced + sum(search.rejected.values())
    if search.candidates != accounted:
        yield f"search.candidates = {search.candidates}: must be priced + all rejected, {accounted}"
    if not _at_most(search.bound_s, step.value):
        yield f"search.bound_s = {search.bound_s}: must not be above step_s, {step.value}"
    ratio = step.value / search.bound_s
    if not math.isclose(1 + search.gap, ratio):
        yield f"search.gap = {search.gap}: must be step_s / bound_s - 1, {ratio - 1}"


def _at_most(low: float, high: float) -> bool:
    """``low <= high`` but for the rounding that two ways of adding the same numbers show."""
    return low <= high or math.isclose(low, high)


def _repeated(field: str, kind: str, names: Iterable[str]) -> Iterator[str]:
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        yield f"{field}: {kind} {json.dumps(name)} stands {count} times: must stand once"
