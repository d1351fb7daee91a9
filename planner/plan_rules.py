"""What binds the fields of a plan file together."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from costmodels.schedules import ScheduleError
from costmodels.schedules.catalogue import check
from planner.actions import breaches
from planner.plan import ACTIONS, AXES, TORCH_SCHEDULES
from planner.plan_schema import PlanFile, PredictedPart

SCHEDULES = {torch: name for name, torch in TORCH_SCHEDULES.items()} | {ACTIONS: ACTIONS}
"""Names in plan files -> those of `planner.plan.Candidate`."""

_SPLIT = ("InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
"""Schedules that compute gradients of inputs and of weights apart."""


def contradictions(file: PlanFile) -> Iterator[str]:
    """Rules that bind several fields: each broken one as ``field = value: rule`` with its numbers."""
    names = tuple(axis.name for axis in file.mesh.axes)
    if names != AXES:
        yield f"mesh.axes = {', '.join(names)}: the axes are {', '.join(AXES)}, from outer to inner"
        return
    size: dict[str, int] = {axis.name: axis.size for axis in file.mesh.axes}
    yield from _mesh(file, size)
    yield from _sequence(file, size)
    yield from _experts(file, size)
    yield from _pipeline(file, size)
    yield from _repeated("layouts", "pattern", (layout.pattern for layout in file.layouts))
    if file.recomputed_blocks is not None and file.recompute == "none":
        yield f"recomputed_blocks = {file.recomputed_blocks}: must be null where recompute is none"
    if file.predicted is not None:
        yield from _predicted(file, file.predicted, size["pp"])
    if file.search is not None:
        yield from _search(file)


def _mesh(file: PlanFile, size: Mapping[str, int]) -> Iterator[str]:
    inputs, pipeline = file.inputs, file.pipeline
    devices = math.prod(size.values())
    if devices != inputs.num_devices:
        product = " * ".join(f"{axis} {size[axis]}" for axis in AXES)
        yield f"inputs.num_devices = {inputs.num_devices}: must be the product of the axes, {product} = {devices}"

    zero_stage = file.mesh.sharding.zero_stage
    if (zero_stage == 0) != (size["dp_shard"] * size["cp"] == 1):
        yield (
            f"mesh.sharding.zero_stage = {zero_stage}: must be 0 where dp_shard * cp is 1 and 1, 2 or 3 elsewhere; "
            f"dp_shard is {size['dp_shard']}, cp is {size['cp']}"
        )

    data_parallel = size["dp_replicate"] * size["dp_shard"]
    samples = data_parallel * pipeline.num_microbatches * pipeline.microbatch_size
    if samples != inputs.job.global_batch:
        yield (
            f"inputs.job.global_batch = {inputs.job.global_batch}: must be dp_replicate * dp_shard {data_parallel} * "
            f"num_microbatches {pipeline.num_microbatches} * microbatch_size {pipeline.microbatch_size} = {samples}"
        )


def _sequence(file: PlanFile, size: Mapping[str, int]) -> Iterator[str]:
    sharding, seq_len, cp, tp = file.mesh.sharding, file.inputs.job.seq_len, size["cp"], size["tp"]
    context, ulysses = sharding.context, sharding.ulysses
    if context == "ulysses_ring" and (cp % ulysses or ulysses in (1, cp)):
        yield f"mesh.sharding.ulysses = {ulysses}: must divide cp {cp}, and be neither 1 (ring) nor cp (ulysses)"
    if context != "ulysses_ring" and ulysses != 1:
        yield f"mesh.sharding.ulysses = {ulysses}: must be 1 unless context is ulysses_ring; it is {context}"
    parts = cp * (tp if sharding.sequence_parallel else 1)
    if seq_len % parts:
        over = f"cp {cp} * tp {tp}" if sharding.sequence_parallel else f"cp {cp}"
        yield f"inputs.job.seq_len = {seq_len}: must be a multiple of the devices that share a sequence, {over}"
    elif cp > 1 and "ring" in context and seq_len % (2 * (ring := cp // ulysses)):
        yield f"inputs.job.seq_len = {seq_len}: must be a multiple of {2 * ring}: a ring of {ring} gives each two runs"


def _experts(file: PlanFile, size: Mapping[str, int]) -> Iterator[str]:
    ep, neighbours = file.mesh.sharding.ep, size["dp_shard"] * size["cp"] * size["tp"]
    if neighbours % ep:
        yield (
            f"mesh.sharding.ep = {ep}: must divide dp_shard {size['dp_shard']} * cp {size['cp']} * tp {size['tp']} = "
            f"{neighbours}"
        )
    if ep > 1 and size["tp"] > 1 and not file.mesh.sharding.sequence_parallel:
        yield f"mesh.sharding.ep = {ep}: with tp {size['tp']} it needs sequence_parallel, for each sends its own tokens"
    for index, layout in enumerate(file.layouts):
        if ep == 1 and "ep" in layout.placements:
            yield f"layouts[{index}].placements.ep = {layout.placements['ep']}: mesh.sharding.ep is 1"
        if "ep" in layout.placements and layout.placements.get("tp", "R") != "R":
            yield f"layouts[{index}].placements.tp = {layout.placements['tp']}: must be R for what ep divides"
    for index, placed in enumerate(file.experts):
        field = f"experts[{index}].ranks"
        held = Counter(rank for ranks in placed.ranks for rank in ranks)
        if wrong := [rank for rank in held if rank >= ep]:
            yield f"{field} = {max(wrong)}: the ranks of ep are 0 to {ep - 1}"
        elif len(held) < ep or len(set(held.values())) > 1:
            counts = ", ".join(str(held[rank]) for rank in range(ep))
            yield f"{field}: every rank of ep must hold as many experts as the others; they hold {counts}"
        if any(list(ranks) != sorted(set(ranks)) for ranks in placed.ranks):
            yield f"{field}: the ranks that hold an expert must ascend"
    yield from _repeated("experts", "block", (placed.block for placed in file.experts))


def _pipeline(file: PlanFile, size: Mapping[str, int]) -> Iterator[str]:
    pipeline, pp = file.pipeline, size["pp"]
    schedule, chunks, microbatches, stages = (
        pipeline.schedule, pipeline.num_chunks, pipeline.num_microbatches, len(pipeline.stages),
    )  # fmt: skip
    if stages != pp * chunks:
        named = f"pp {pp} * num_chunks {chunks} = {pp * chunks}" if chunks > 1 else f"pp, {pp}"
        yield f"pipeline.stages = {stages} stages: must be as many as {named}"
    yield from _repeated("pipeline.stages", "module", (m for stage in pipeline.stages for m in stage.modules))
    if (schedule == ACTIONS) != bool(pipeline.actions):
        yield f"pipeline.schedule = {schedule}: must be {ACTIONS} where pipeline.actions are given, and nowhere else"
    elif schedule == ACTIONS:
        found = breaches(pipeline.actions, pp=pp, num_stages=pp * chunks, num_microbatches=microbatches)
        yield from (f"pipeline.actions: {breach}" for breach in found)
    else:
        try:
            check(SCHEDULES[schedule], pp, microbatches, chunks)
        except ScheduleError as error:
            yield f"pipeline.schedule = {schedule}: {error}"
    splits = schedule in _SPLIT or any("I" in action for row in pipeline.actions for action in row)
    if splits and file.mesh.sharding.zero_stage == 3:
        yield f"mesh.sharding.zero_stage = 3: {schedule} halves backward passes, for which parameters must stay: take 2"
    if schedule == "1F1B" and microbatches < pp:
        yield f"pipeline.num_microbatches = {microbatches}: must be pp {pp} or more: torch's 1F1B runs no fewer"


def _predicted(file: PlanFile, predicted: PredictedPart, pp: int) -> Iterator[str]:
    if len(predicted.memory_bytes) != pp:
        yield (
            f"predicted.memory_bytes = {len(predicted.memory_bytes)} entries: must be one for each of the {pp} ranks "
            f"of pp"
        )
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
    step, job = predicted.step_s, file.inputs.job
    for field, value, total_s in (
        ("value", step.value, sum(term.seconds for term in predicted.breakdown)),
        ("low", step.low, sum(term.low_s for term in predicted.breakdown)),
        ("high", step.high, sum(term.high_s for term in predicted.breakdown)),
    ):
        if not math.isclose(value, total_s):
            yield f"predicted.step_s.{field} = {value}: must be the sum over predicted.breakdown, {total_s}"
    tokens_per_s = job.global_batch * job.seq_len / step.value
    if not math.isclose(predicted.tokens_per_s, tokens_per_s):
        yield (
            f"predicted.tokens_per_s = {predicted.tokens_per_s}: must be global_batch {job.global_batch} * "
            f"seq_len {job.seq_len} / step_s {step.value} = {tokens_per_s}"
        )


def _search(file: PlanFile) -> Iterator[str]:
    search, predicted = file.search, file.predicted
    assert search is not None
    accounted = search.priced + sum(search.rejected.values())
    if search.candidates != accounted:
        yield f"search.candidates = {search.candidates}: must be priced + all rejected, {accounted}"
    if predicted is None:
        yield "search: must be null where predicted is: what was searched was priced"
        return
    step_s = predicted.step_s.value
    if not _at_most(search.bound_s, step_s):
        yield f"search.bound_s = {search.bound_s}: must not be above step_s, {step_s}"
    ratio = step_s / search.bound_s
    if not math.isclose(1 + search.gap, ratio):
        yield f"search.gap = {search.gap}: must be step_s / bound_s - 1, {ratio - 1}"


def _at_most(low: float, high: float) -> bool:
    """``low <= high`` but for the rounding that two ways of adding the same numbers show."""
    return low <= high or math.isclose(low, high)


def _repeated(field: str, kind: str, names: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(names).most_common(1):
        if count > 1:
            yield f"{field}: {kind} {json.dumps(name)} stands {count} times: must stand once"
