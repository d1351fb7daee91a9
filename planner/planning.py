"""`make_plan`: from a model and a cluster to a `PlanResult`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from costmodels.memory import OPTIMIZERS, PRECISIONS
from costmodels.units import format_bytes, format_seconds
from hardware_profiles.cluster import Cluster
from hardware_profiles.load import load_cluster
from planner.calibration.shipped import factors
from planner.errors import MeshwrightError, NoPlanError, ProfileError, UnknownNameError, UsageError
from planner.execution import TORCH_EAGER, Execution
from planner.graph import ModelGraph
from planner.job import Constraints, Job
from planner.layouts.model import analyse_model, param_layouts
from planner.layouts.strategies import replicated_warning
from planner.ops import GROUPED
from planner.plan import Alternative, Candidate, Plan, PlanInputs, PlanResult, Stage
from planner.solvers.block_layout.planned import planned_layouts
from planner.solvers.search import Found, SearchResult, predict, search
from planner.solvers.setting import Setting

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLES_PER_DEVICE = 8
"""Global batch where the user gives none: enough for a pipeline's microbatches, few enough for one step to be short."""

DEVICE_FACTORS = (2, 4, 8, 16, 32, 64)
"""Multiples of the cluster that are tried when nothing fits."""


def make_plan(
    model: str | nn.Module,
    *,
    hardware: str,
    devices: int | None = None,
    global_batch: int | None = None,
    seq_len: int | None = None,
    precision: str = "bf16",
    optimizer: str = "adamw",
    constraints: Constraints | None = None,
    example_inputs: Any = None,
    loss_fn: Callable[..., Tensor] | None = None,
    top: int = 5,
    progress: Callable[[str], None] | None = None,
) -> PlanResult:
    """Recommend how to lay out a training job over a cluster.

    Args:
        model: built-in name, ``path/to/file.py:factory``, ``hf:path/to/config.json``, or a module with
            ``example_inputs``.
        hardware: ``h100-sxm:8x8`` (8 nodes of 8), a profile name with ``devices``, or a profile file.
        global_batch: samples per optimizer step; default 8 per device.
        seq_len: tokens per sample; default the model's.
        precision: a key of ``costmodels.memory.PRECISIONS``.
        optimizer: a key of ``costmodels.memory.OPTIMIZERS``.
        example_inputs: see `planner.capture.sources.load_model`; only with a module.
        loss_fn: see `planner.capture.trace.trace`.
        top: plans to return, the recommended one included, each with another mesh.
        progress: told what is under way.
    Raises:
        UsageError: settings that no mesh obeys, with the rule and its numbers.
        NoPlanError: nothing fits into memory, with changes that do.
        UnknownNameError, ProfileError, ModelSourceError, TraceError: what they say.
    """
    say = progress or (lambda _: None)
    constraints = constraints or Constraints()
    started = time.perf_counter()
    for kind, name, known in (("precision", precision, PRECISIONS), ("optimizer", optimizer, OPTIMIZERS)):
        if name not in known:
            raise UnknownNameError(kind, name, known)
    cluster = load_cluster(hardware, devices)
    compute_dtype = PRECISIONS[precision].compute_dtype
    cluster.device.peak(compute_dtype)

    say("tracing the model")
    from planner.capture.sources import capture_model  # torch takes seconds to import

    graph, seq_len, torch_version = capture_model(
        model, seq_len=seq_len, compute_dtype=compute_dtype, example_inputs=example_inputs, loss_fn=loss_fn
    )
    captured = time.perf_counter()

    say("searching for the best layout")
    job = Job(
        global_batch=global_batch or SAMPLES_PER_DEVICE * cluster.num_devices,
        seq_len=seq_len,
        precision=precision,
        optimizer=optimizer,
    )
    setting = Setting(graph, cluster, job, calibrated(graph, cluster))
    _check_pins(setting, constraints)
    result = search(setting, constraints, top=top)
    if not result.best:
        raise _nothing_fits(setting, hardware, constraints, result, say)
    _, *others = result.best
    made = best_plan(setting, result, plan_inputs(setting, constraints, torch_version))
    done = time.perf_counter()
    return PlanResult(
        plan=made,
        alternatives=tuple(Alternative(candidate=f.costs.candidate, predicted=predict(f)) for f in others),
        seconds={"capture": captured - started, "search": done - captured, "total": done - started},
    )


def best_plan(setting: Setting, result: SearchResult, inputs: PlanInputs) -> Plan:
    """The best of what a search found, with all that a plan says."""
    best, graph = result.best[0], setting.graph
    return Plan(
        inputs=inputs,
        candidate=best.costs.candidate,
        layouts=param_layouts(result.layouts, best.costs.candidate),
        stages=_stages(graph, best),
        predicted=predict(best),
        search=result.report,
        operations=planned_layouts(setting, best.costs.candidate, result.layouts.at(best.costs.candidate.tp)),
        warnings=(*_mixed(setting.cluster), *replicated_warning(graph), *graph.warnings),
    )


def calibrated(graph: ModelGraph, cluster: Cluster) -> Execution:
    """torch's own execution, with the constants that published runs give the device (`planner.calibration`), and the
    host's time that its profile says."""
    experts = any(op.name in GROUPED for block in graph.blocks for op in block.ops)
    found = factors(cluster.device.name, TORCH_EAGER, low_precision=False, experts=experts)
    call_s = cluster.device.call_s
    return replace(TORCH_EAGER, time_factor=found, host_call_s=TORCH_EAGER.host_call_s if call_s is None else call_s)


def _mixed(cluster: Cluster) -> tuple[str, ...]:
    """What the reader must know of a cluster of several kinds of machine."""
    if len(cluster.machines) == 1:
        return ()
    name = cluster.name.rpartition(":")[0]
    groups = ", ".join(f"{name}@{machines.name}" for machines in cluster.machines)
    text = (
        f"{cluster.name} mixes several kinds of machine: the work is split evenly and every price is that of the "
        f"slowest ({cluster.device.name}); to plan one kind alone, name it: {groups}"
    )
    return (text,)


def plan_inputs(setting: Setting, constraints: Constraints, torch_version: str) -> PlanInputs:
    """What a plan is computed from."""
    graph, cluster = setting.graph, setting.cluster
    content = (graph.blocks, graph.segments, graph.params, sorted(graph.aliases.items()), graph.crossings)
    return PlanInputs(
        model=graph.name,
        model_sha256=sha256(repr(content).encode()).hexdigest(),
        num_parameters=graph.num_parameters,
        hardware=cluster.name,
        hardware_sha256=cluster.fingerprint,
        hardware_evidence=cluster.evidence,
        device_memory_bytes=cluster.device.memory_bytes,
        num_devices=cluster.num_devices,
        job=setting.job,
        constraints=constraints,
        torch_version=torch_version,
        batch=graph.inputs,
    )


def _stages(graph: ModelGraph, found: Found) -> tuple[Stage, ...]:
    """Modules per stage; one that runs in two stages (a tied embedding) is named in both."""
    cuts = found.split.cuts
    return tuple(
        Stage(modules=tuple(dict.fromkeys(m for segment in graph.segments[a:b] for m in segment.modules)))
        for a, b in pairwise(cuts)
    )


def _check_pins(setting: Setting, constraints: Constraints) -> None:
    """Refuse pins that no mesh can obey, with the rule and its numbers."""
    num_devices, batch = setting.cluster.num_devices, setting.job.global_batch
    pins = {axis: getattr(constraints, axis) for axis in ("pp", "dp_replicate", "dp_shard", "tp")}
    pins = {axis: size for axis, size in pins.items() if size is not None}
    product = 1
    for size in pins.values():
        product *= size
    if num_devices % product or (len(pins) == len(("pp", "dp_replicate", "dp_shard", "tp")) and product != num_devices):
        named = " * ".join(f"{axis} ({size})" for axis, size in pins.items())
        relation = "must be" if len(pins) == 4 else "must divide"
        raise UsageError(f"{named} = {product} {relation} the number of devices ({num_devices}).")
    for axis in ("tp", "pp"):
        most = getattr(constraints, f"max_{axis}")
        if most is not None and pins.get(axis, 1) > most:
            raise UsageError(f"{axis} ({pins[axis]}) exceeds max_{axis} ({most}).")
    if "tp" in pins:
        obstacle = analyse_model(setting.graph, constraints.pins).obstacle(pins["tp"])
        if obstacle is not None:
            raise UsageError(f"{obstacle} of {setting.graph.name}: every sharded dim must split evenly over tp.")
    most_stages = int(setting.named.sum())
    if pins.get("pp", 1) > most_stages:
        raise UsageError(
            f"pp ({pins['pp']}) exceeds the {most_stages} blocks of {setting.graph.name}; a stage holds one or more."
        )
    data_parallel = pins.get("dp_replicate", 1) * pins.get("dp_shard", 1)
    per_rank = data_parallel * (constraints.microbatch_size or 1)
    if batch % per_rank:
        raise UsageError(
            f"global batch ({batch}) must be divisible by dp_replicate * dp_shard * microbatch_size "
            f"({data_parallel} * {constraints.microbatch_size or 1} = {per_rank})."
        )


def _nothing_fits(
    setting: Setting, hardware: str, constraints: Constraints, result: SearchResult, say: Callable[[str], None]
) -> MeshwrightError:
    graph, cluster, job = setting.graph, setting.cluster, setting.job
    reasons = ", ".join(f"{count} {reason}" for reason, count in result.report.rejected.items())
    if result.tightest is None:
        obstacles = sorted({o for tp in (2, cluster.num_devices) if (o := result.layouts.obstacle(tp))})
        return UsageError(
            f"no mesh of {cluster.num_devices} devices obeys the rules for {graph.name} with a global batch of "
            f"{job.global_batch} (rejected: {reasons}). dp_replicate * dp_shard * microbatch_size must divide the "
            f"global batch into at least pp microbatches, pp may not exceed the {int(setting.named.sum())} blocks"
            f"{''.join('; ' + o for o in obstacles)}. Change the number of devices or the global batch."
        )
    say("nothing fits; solving again with changes")
    costs, peak = result.tightest
    capacity = constraints.memory_fraction * cluster.device.memory_bytes
    headline = (
        f"no plan fits {graph.name} on {cluster.name}: the tightest layout, {describe(costs.candidate)}, needs "
        f"{format_bytes(peak)} on its fullest device; the limit is {format_bytes(capacity)} "
        f"({constraints.memory_fraction:.0%} of {format_bytes(cluster.device.memory_bytes)}). Rejected: {reasons}."
    )
    changes = _changes_that_fit(setting, hardware, constraints)
    lines = [f"  {i}. {change}" for i, change in enumerate(changes, 1)] or [
        f"  No multiple of the devices up to {DEVICE_FACTORS[-1]} times fits either: the model needs larger devices."
    ]
    return NoPlanError("\n".join([headline, *lines]))


def _changes_that_fit(setting: Setting, hardware: str, constraints: Constraints) -> list[str]:
    """Changes that were solved again and fit; none touches what convergence depends on."""
    changes = []
    free = Constraints(memory_fraction=constraints.memory_fraction)
    if constraints != free:
        found = search(setting, free, top=1).best
        if found:
            settled = {k: v for k, v in asdict(constraints).items() if v and k not in ("memory_fraction", "pins")}
            named = ", ".join(
                [f"{k}={v}" for k, v in settled.items()] + [f"{p.fqn} {p.layout}" for p in constraints.pins]
            )
            changes.append(f"Without {named} it fits: {_outcome(found[0])}")
    for factor in DEVICE_FACTORS:
        cluster = _scaled(setting.cluster, hardware, factor)
        if cluster is None:
            continue
        larger = replace(setting, cluster=cluster)
        found = search(larger, constraints, top=1).best
        if found:
            changes.append(
                f"On {larger.cluster.num_devices} devices ({larger.cluster.name}) it fits: {_outcome(found[0])}"
            )
            break
    return changes


def _scaled(cluster: Cluster, hardware: str, factor: int) -> Cluster | None:
    """A cluster of the same kind with ``factor`` times the devices: fuller nodes if it has one node, else more nodes;
    ``None`` where the profile joins no such number."""
    profile = re.sub(r":\d+x\d+$", "", hardware)
    nodes, per_node = (int(n) for n in cluster.name.rpartition(":")[2].split("x"))
    if nodes == 1:
        with suppress(ProfileError):
            return load_cluster(profile, per_node * factor)
    with suppress(ProfileError):
        return load_cluster(f"{profile}:{nodes * factor}x{per_node}")
    return None


def _outcome(found: Found) -> str:
    prediction = predict(found)
    return (
        f"{describe(found.costs.candidate)}, {format_seconds(prediction.step_s)} per step, "
        f"{format_bytes(prediction.peak_bytes)} at most."
    )


def describe(candidate: Candidate) -> str:
    """A candidate in words, e.g. ``pp 4, dp_shard 16 (zero 3), tp 1, recompute selective``."""
    parts = [f"pp {candidate.pp}"]
    if candidate.dp_replicate > 1:
        parts.append(f"dp_replicate {candidate.dp_replicate}")
    zero = f" (zero {candidate.zero_stage})" if candidate.zero_stage else ""
    parts += [f"dp_shard {candidate.dp_shard}{zero}", f"tp {candidate.tp}"]
    parts += [f"microbatch {candidate.microbatch_size}", f"recompute {candidate.recompute}"]
    return ", ".join(parts)
