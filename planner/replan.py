"""Plan again after a failure: the best plan for the devices that are left, and what it costs to move there.

The job stays what it is: global batch, precision and optimizer. Nodes that lost a device are not used, unless there is
but one. Nor need all others be: a global batch that few numbers divide may run faster on fewer nodes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from costmodels.memory import PRECISIONS
from costmodels.schedules import ScheduleError
from costmodels.schedules.catalogue import check
from hardware_profiles.cluster import Cluster
from hardware_profiles.load import load_cluster
from hardware_profiles.topology import group
from planner.errors import NoPlanError, UsageError
from planner.fixed_plan import fixed_plan
from planner.graph import ModelGraph
from planner.job import Constraints
from planner.moving import Holding, Moving, moving
from planner.plan import ACTIONS, Candidate, Plan, known
from planner.planning import best_plan, calibrated, plan_inputs
from planner.solvers.search import model_flop, search
from planner.solvers.setting import Setting

if TYPE_CHECKING:
    from torch import nn

FEWEST = 0.5
"""Of the nodes that are left, the least share that is tried."""


@dataclass(frozen=True)
class Left:
    """What a failure leaves of a cluster."""

    nodes: int
    per_node: int
    alive: tuple[bool, ...]
    """Per device of the cluster; those of ``nodes`` come first."""


@dataclass(frozen=True)
class Replanned:
    """A plan for what is left, and the way there. Device ``r`` is rank ``r`` of either plan."""

    plan: Plan
    left: Left
    moving: Moving
    element_bytes: int
    """Of one parameter with its optimizer states."""
    network_s: float
    """Until the last device has what others hold, where all fetch at once."""
    storage_s: float
    """Until the last node has read what nobody holds."""
    reload_s: float
    """Until the last node has read all of its share from the checkpoint, were nothing kept."""


def replan(
    plan: Plan,
    *,
    lost_nodes: int = 0,
    lost_devices: int = 0,
    storage_bytes_per_s: float,
    hardware: str | None = None,
    model: str | nn.Module | None = None,
    progress: Callable[[str], None] | None = None,
) -> Replanned:
    """Find the plan for what is left (module docstring) and price the way there.

    Args:
        plan: that the job has run under.
        storage_bytes_per_s: that one node reads a checkpoint at.
        hardware: profile or file, where it is not what the plan names.
        model: as in `planner.make_plan`, where it is not what the plan names.
    Raises:
        UsageError: more is lost than there is.
        NoPlanError: nothing fits into what is left.
    """
    say, inputs = progress or (lambda _: None), plan.inputs
    cluster = load_cluster(hardware or inputs.hardware, inputs.num_devices)
    profile = re.sub(r":\d+x\d+$", "", hardware or inputs.hardware)
    left = survivors(cluster, lost_nodes=lost_nodes, lost_devices=lost_devices)
    say("tracing the model")
    from planner.capture.sources import capture_model  # torch takes seconds to import

    graph, _, torch_version = capture_model(
        model or inputs.model,
        seq_len=inputs.job.seq_len,
        compute_dtype=PRECISIONS[inputs.job.precision].compute_dtype,
    )
    say("searching for the best layout of what is left")
    found, setting = plan_left(graph, plan, left, profile, torch_version)
    moved = moving(Holding(graph, plan), Holding(graph, found), left.alive)
    return _priced(setting, found, left, moved, storage_bytes_per_s)


def survivors(cluster: Cluster, *, lost_nodes: int, lost_devices: int) -> Left:
    """What can still be used. The last nodes are lost, and the last devices of those before: which ones they are does
    not matter for the plan, and little for the way there.

    Raises:
        UsageError: nothing is lost, or nothing is left.
    """
    per_node = cluster.devices_per_node
    if lost_nodes + lost_devices == 0:
        raise UsageError("nothing is lost: say what is, --lost 1 node or --lost 3 devices.")
    lost = lost_nodes * per_node + lost_devices
    if lost >= cluster.num_devices:
        raise UsageError(
            f"{lost_nodes} nodes of {per_node} and {lost_devices} devices are {lost} devices: {cluster.name} has "
            f"{cluster.num_devices}, and some must be left."
        )
    alive = (True,) * (cluster.num_devices - lost) + (False,) * lost
    whole = (cluster.num_devices - lost) // per_node
    if whole:
        return Left(whole, per_node, alive)
    return Left(1, cluster.num_devices - lost, alive)


def plan_left(graph: ModelGraph, plan: Plan, left: Left, profile: str, torch_version: str) -> tuple[Plan, Setting]:
    """The fastest plan for some of the nodes that are left: of those that the search finds, and the old plan's own way
    with fewer replicas. Pins of degrees are dropped, since they were for another number of devices.

    Raises:
        NoPlanError: nothing fits.
    """
    old = plan.inputs.constraints
    constraints = Constraints(
        max_tp=old.max_tp,
        max_pp=old.max_pp,
        recompute=old.recompute,
        pins=old.pins,
        memory_fraction=old.memory_fraction,
    )
    best: tuple[Plan, Setting] | None = None
    for nodes in range(left.nodes, 0, -1):
        if nodes < FEWEST * left.nodes and best is not None:
            break
        for per_node in (left.per_node,) if left.nodes > 1 else range(left.per_node, 0, -1):
            cluster = load_cluster(f"{profile}:{nodes}x{per_node}")
            setting = Setting(graph, cluster, plan.inputs.job, calibrated(graph, cluster))
            if best is not None and _least_s(setting) >= known(best[0].predicted).step_s:
                continue
            for found in _plans(setting, plan, constraints, torch_version):
                if best is None or known(found.predicted).step_s < known(best[0].predicted).step_s:
                    best = found, setting
    if best is None:
        raise NoPlanError(
            f"no plan fits {graph.name} on {left.nodes} nodes of {left.per_node} devices with a global batch of "
            f"{plan.inputs.job.global_batch}: wait for more devices, or plan with another global batch."
        )
    return best


def _least_s(setting: Setting) -> float:
    """No plan is faster: all devices compute at their peak."""
    flop = model_flop(setting.graph, seq_len=setting.job.seq_len) * setting.job.global_batch
    return flop / setting.cluster.device.peak(setting.precision.compute_dtype) / setting.cluster.num_devices


def _plans(setting: Setting, plan: Plan, constraints: Constraints, torch_version: str) -> Iterator[Plan]:
    inputs = plan_inputs(setting, constraints, torch_version)
    result = search(setting, constraints, top=1)
    if result.best:
        yield best_plan(setting, result, inputs)
    capacity = constraints.memory_fraction * setting.cluster.device.memory_bytes
    for candidate in _likewise(plan.candidate, setting.cluster.num_devices, setting.job.global_batch):
        found = fixed_plan(setting, candidate, inputs, experts=plan.experts)
        if known(found.predicted).peak_bytes <= capacity:
            yield found


def _likewise(c: Candidate, num_devices: int, global_batch: int) -> Iterator[Candidate]:
    """An old candidate that no search finds, over fewer devices: data parallelism shrinks, all else stays."""
    searched = (c.cp, c.ep, c.num_chunks, c.schedule, c.recomputed_blocks) == (1, 1, 1, "1f1b", None)
    data_parallel, rest = divmod(num_devices, c.pp * c.cp * c.tp)
    if searched or rest or c.schedule == ACTIONS or global_batch % max(1, data_parallel * c.microbatch_size):
        return
    dp_shard = c.dp_shard if data_parallel % c.dp_shard == 0 else data_parallel
    state_shard = dp_shard * c.cp
    if state_shard * c.tp % c.ep:
        return
    num_microbatches = global_batch // (data_parallel * c.microbatch_size)
    try:
        check(c.schedule, c.pp, num_microbatches, c.num_chunks)
    except ScheduleError:
        return
    yield replace(
        c,
        dp_replicate=data_parallel // dp_shard,
        dp_shard=dp_shard,
        zero_stage=max(1, c.zero_stage) if state_shard > 1 else 0,
        num_microbatches=num_microbatches,
    )


def _priced(setting: Setting, plan: Plan, left: Left, moved: Moving, storage_bytes_per_s: float) -> Replanned:
    precision, cluster = setting.precision, setting.cluster
    element_bytes = precision.param_bytes + setting.num_states * precision.state_bytes
    network_s = 0.0
    if cluster.num_devices > 1:
        levels = group(cluster, size=cluster.num_devices, stride=1).levels
        network_s = element_bytes * float(moved.fetched.max()) / min(level.exchange_bytes_per_s for level in levels)

    def read_s(elements: np.ndarray) -> float:
        per_node = elements.reshape(-1, cluster.devices_per_node).sum(axis=1)
        return element_bytes * float(per_node.max()) / storage_bytes_per_s

    return Replanned(
        plan=plan, left=left, moving=moved, element_bytes=element_bytes, network_s=network_s,
        storage_s=read_s(moved.lost), reload_s=read_s(moved.held),
    )  # fmt: skip
