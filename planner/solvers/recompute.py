"""Forward work of a block that is done once more, per recompute policy (`planner.solvers.saved.POLICIES`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from planner.solvers.block_communication import collectives_s
from planner.solvers.on_device import OnDevice
from planner.solvers.passes import PassSeconds, pass_seconds
from planner.solvers.saved import POLICIES, activations, routed


def again(local: OnDevice) -> dict[str, PassSeconds]:
    """Seconds per policy; none for a block that does not repeat.

    ``full`` is what `_rebuild` leaves; ``selective`` and ``half`` keep the results of (half the) products, attention
    and exits, so that pointwise work and gathers are left; ``attention`` is attention once more, ``activations`` norms
    and the experts' activation, ``experts`` what lies between routing and combining.
    """
    if not local.repeated:
        return dict.fromkeys(POLICIES, PassSeconds())
    rebuild = _rebuild(local)
    full = pass_seconds(rebuild, "forward")
    gathers = collectives_s(replace(rebuild, layout=replace(rebuild.layout, exits=())), "forward")
    return {
        "none": PassSeconds(),
        "selective": PassSeconds(memory_bound=full.memory_bound, collectives=gathers),
        "half": PassSeconds(gemm=full.gemm / 2, memory_bound=full.memory_bound, collectives=gathers),
        "attention": PassSeconds(attention=full.attention, context=full.context),
        "activations": PassSeconds(memory_bound=_memory_bound_s(local, activations(local.block))),
        "experts": _routed_again(local, rebuild, full),
        "full": full,
    }


def _rebuild(local: OnDevice) -> OnDevice:
    """The block as far as it runs again when its input alone was kept: up to where the last saved tensor is made, as
    ``torch.utils.checkpoint`` does, unless the execution runs whole blocks."""
    block, layout = local.block, local.layout
    needed = block.ops
    if local.execution.early_stop:
        saved = {block.values[v].storage for v in block.saved}
        rebuilt = [
            i
            for i, op in enumerate(block.ops)
            if op.phase == "forward" and any(block.values[v].storage in saved for v in op.outputs)
        ]
        needed = block.ops[: max(rebuilt, default=-1) + 1]
    made = {v for op in needed for v in op.outputs}
    exits = tuple(v for v in layout.exits if v in made)
    sharded = frozenset(i for i in layout.sharded_ops if i < len(needed))
    experts = local.experts
    if experts:
        experts = replace(experts, region=frozenset(i for i in experts.region if i < len(needed)))
    return replace(
        local,
        block=replace(block, ops=needed),
        layout=replace(layout, exits=exits, loss_rows=None, sharded_ops=sharded),
        experts=experts,
    )


def _memory_bound_s(local: OnDevice, chosen: Collection[int]) -> float:
    """Forward kernels that begin with one of these operations and only move memory."""
    kernels = (kernel for kernel in local.kernels("forward") if kernel.kind == "memory_bound")
    return local.execution.factor("memory_bound") * sum(k.seconds for k in kernels if k.op in chosen)


def _routed_again(local: OnDevice, rebuild: OnDevice, full: PassSeconds) -> PassSeconds:
    """The difference between the whole forward pass, ``full``, and what of ``rebuild`` comes before routing."""
    if local.experts is None:
        return PassSeconds()
    before = pass_seconds(
        replace(
            rebuild,
            block=replace(local.block, ops=local.block.ops[: min(routed(local.block))]),
            layout=replace(rebuild.layout, entries=(), exits=()),
            experts=None,
        ),
        "forward",
    )
    return PassSeconds(
        gemm=full.gemm - before.gemm,
        memory_bound=full.memory_bound - before.memory_bound,
        host=max(0.0, full.host - before.host),
        experts=full.experts,
    )
