"""Device time of one pass over a block, by what bounds it."""

from __future__ import annotations

from dataclasses import dataclass

from planner.graph import Phase
from planner.solvers.block_communication import attention_transfers_s, collectives_s, exchange_s
from planner.solvers.on_device import OnDevice


@dataclass(frozen=True, kw_only=True)
class PassSeconds:
    """Device time of one pass over a block, by what bounds it."""

    gemm: float = 0.0
    attention: float = 0.0
    memory_bound: float = 0.0
    host: float = 0.0
    """Waiting for the host, where kernels are shorter than their launch."""
    held: float = 0.0
    """Part of ``host`` that no kernel hides, however long: the host itself waited."""
    collectives: float = 0.0
    """Over ``tp``, as far as nothing hides them."""
    hidden_collectives: float = 0.0
    """Over ``tp``, hidden by products that run sliced beside them."""
    context: float = 0.0
    """Over ``cp``, exposed: keys and values, or heads against tokens."""
    experts: float = 0.0
    """Over ``ep``, exposed: dispatch and combine."""

    @property
    def compute(self) -> float:
        return self.gemm + self.attention + self.memory_bound + self.host

    @property
    def total(self) -> float:
        return self.compute + self.collectives + self.context + self.experts


def pass_seconds(local: OnDevice, phase: Phase) -> PassSeconds:
    """All operations of a pass, and its communication."""
    execution = local.execution
    kinds = {"gemm": 0.0, "attention": 0.0, "memory_bound": 0.0}
    for kernel in local.kernels(phase):
        kinds[kernel.kind] += kernel.seconds
    for kind in kinds:
        kinds[kind] *= execution.factor(kind)
    # The backward pass is launched by autograd's own thread, without Python.
    call_s = execution.host_call_s * (1.0 if phase == "forward" else 0.5)
    host_s = execution.factor("host") * call_s * sum(op.phase == phase for op in local.block.ops)
    held_s = execution.factor("host") * call_s * _held_calls(local, phase)
    collectives = collectives_s(local, phase)
    hidden = 0.0
    if execution.overlap_tp:
        share = min(execution.overlap_tp, (local.tp - 1) / local.tp)
        hidden = min(share * collectives, kinds["gemm"])
    communicated = {
        "collectives": collectives - hidden,
        "context": attention_transfers_s(local, phase, kinds["attention"]),
        "experts": exchange_s(local),
    }
    # The host is ahead while the device computes or communicates.
    ahead_s = sum(kinds.values()) + sum(communicated.values())
    return PassSeconds(
        **kinds, **communicated, hidden_collectives=hidden, held=held_s,
        host=held_s + max(0.0, host_s - held_s - ahead_s),
    )  # fmt: skip


def _held_calls(local: OnDevice, phase: Phase) -> int:
    """Calls that no computation hides: all where the host is the device; else those between routing and combining where
    it waits for the number of rows that every expert has, and so cannot be ahead of the device."""
    if local.cluster.library.host_driven:
        return sum(op.phase == phase for op in local.block.ops)
    if local.experts is None or not local.execution.waits_for_routing:
        return 0
    return sum(local.block.ops[i].phase == phase for i in local.experts.region)


def weight_grad_s(local: OnDevice) -> float:
    """Of the backward pass, the products from which only parameter gradients follow: what schedules may put off."""
    block = local.block
    wanted = {block.values[v].storage for _, v in block.param_grads}
    useful = set[int]()  # storages from which something else follows
    weight = set[int]()
    for i in reversed(range(len(block.ops))):
        op = block.ops[i]
        if op.phase != "backward":
            break
        made = {block.values[v].storage for v in op.outputs}
        if made <= wanted and not made & useful:
            weight.add(i)
        else:
            useful.update(block.values[v].storage for v in op.inputs)
    return local.execution.factor("gemm") * sum(
        kernel.seconds for kernel in local.kernels("backward") if kernel.kind == "gemm" and kernel.op in weight
    )
