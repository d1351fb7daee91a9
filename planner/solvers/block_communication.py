"""What one block communicates in a pass: over ``tp``, ``cp`` and ``ep``, in calibrated seconds."""

from __future__ import annotations

from itertools import product
from math import prod

from costmodels import communication
from costmodels.compute import DTYPE_BYTES
from hardware_profiles.cluster import Group
from hardware_profiles.topology import group
from planner import ops
from planner.graph import Phase
from planner.solvers.context import ContextKind, context_s
from planner.solvers.experts import dispatch_s
from planner.solvers.on_device import OnDevice


def collectives_s(local: OnDevice, phase: Phase) -> float:
    """Entries and exits over ``tp`` (see `planner.layouts.tensor_parallel`), and the three row-wide reductions
    (maximum, sum of exponentials, label's logit) of a loss over sharded classes. Nothing is hidden yet."""
    if local.tp == 1:
        return 0.0
    ranks, layout, forward = group(local.cluster, size=local.tp, stride=1), local.layout, phase == "forward"
    entries, exits = _unrouted(local, layout.entries), _unrouted(local, layout.exits)
    gathered, reduced = (entries, exits) if forward else (exits, entries)
    if local.sequence_parallel:
        seconds = sum(communication.all_gather_s(ranks, local.whole_bytes(v)) for v in gathered)
        seconds += sum(communication.reduce_scatter_s(ranks, local.whole_bytes(v)) for v in reduced)
    else:
        seconds = sum(communication.all_reduce_s(ranks, local.whole_bytes(v)) for v in reduced)
    if layout.loss_rows is not None and forward:
        rows = prod(local.shapes.inside[layout.loss_rows])
        seconds += 3 * communication.all_reduce_s(ranks, rows * DTYPE_BYTES["float32"])
    return local.execution.factor("tp") * seconds


def _unrouted(local: OnDevice, values: tuple[int, ...]) -> tuple[int, ...]:
    """Those that no expert region makes or is alone to read: routed tokens stay where they were dispatched."""
    if local.experts is None or local.ep == 1:
        return values
    block, region = local.block, local.experts.region
    made = {block.values[v].storage for i in region for v in block.ops[i].outputs}
    read = {
        block.values[v].storage
        for i in local.layout.sharded_ops - region
        if block.ops[i].phase == "forward"
        for v in block.ops[i].inputs
    }
    return tuple(
        v for v in values if (s := block.values[v].storage) not in made and (v in local.layout.exits or s in read)
    )


def attention_transfers_s(local: OnDevice, phase: Phase, attention_s: float) -> float:
    """What every attention of a pass communicates over ``cp`` (`planner.solvers.context`), exposed.

    Args:
        attention_s: seconds of all attention of the pass, which hides some of it.
    """
    if local.cp == 1:
        return 0.0
    attentions = [op for op in local.block.ops if op.phase == "forward" and op.name in ops.ATTENTION]
    kinds: list[tuple[ContextKind, Group]]
    if local.context == "ulysses_ring":
        inner = group(local.cluster, size=local.ulysses, stride=local.tp)
        outer = group(local.cluster, size=local.cp // local.ulysses, stride=local.tp * local.ulysses)
        kinds = [("ulysses", inner), ("ring", outer)]
    else:
        kinds = [(local.context, group(local.cluster, size=local.cp, stride=local.tp))]
    seconds = 0.0
    for (kind, ranks), op in product(kinds, attentions):
        q, k, v = op.inputs[:3]
        seconds += context_s(
            kind, ranks, kv_bytes=_source_bytes(local, k) + _source_bytes(local, v),
            q_bytes=local.whole_bytes(q), attention_s=attention_s / len(attentions), backward=phase == "backward",
        )  # fmt: skip
    return local.execution.factor("cp") * seconds


def _source_bytes(local: OnDevice, value: int) -> int:
    """Bytes of keys or values before their heads were copied for grouped queries."""
    producers = {v: op for op in local.block.ops if op.phase == "forward" for v in op.outputs}
    smallest = local.whole_bytes(value)
    while value in producers and producers[value].name in ops.COPIES:
        value = producers[value].inputs[0]
        smallest = min(smallest, local.whole_bytes(value))
    return smallest


def exchange_s(local: OnDevice) -> float:
    """Dispatch and combine over ``ep`` of one pass, as far as another microbatch's computation, which they slow down,
    does not hide them: beside a forward pass runs a backward pass, so that half of both counts."""
    if local.experts is None or local.ep == 1:
        return 0.0
    ranks, once = group(local.cluster, size=local.ep, stride=1), local.execution.dispatch_once
    seconds = sum(
        dispatch_s(local.experts, ranks, local.value_bytes[v] / local.experts.top_k, once=once)
        for v in (local.experts.dispatched, local.experts.combined)
    )
    if local.execution.overlap_experts:
        both = (*local.kernels("forward"), *local.kernels("backward"))
        busy_s = sum(local.execution.factor(kernel.kind) * kernel.seconds for kernel in both) / 2
        seconds -= min(seconds, busy_s) / local.cluster.library.compute_slowdown
    return local.execution.factor("ep") * seconds
