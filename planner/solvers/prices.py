"""Price of one distinct block on one device: seconds by kind and bytes by use, for its share of ``tp``, ``cp`` and
``ep`` and a microbatch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

from hardware_profiles.cluster import Cluster
from planner.execution import EAGER, Execution
from planner.graph import Block
from planner.layouts.data_parallel import padded_numel
from planner.layouts.tensor_parallel import TensorParallel
from planner.plan import Candidate, ContextKind
from planner.solvers.experts import find_experts
from planner.solvers.liveness import transient_peak_bytes
from planner.solvers.local_shapes import Shape, local_shapes
from planner.solvers.on_device import OnDevice
from planner.solvers.passes import PassSeconds, pass_seconds, weight_grad_s
from planner.solvers.recompute import again
from planner.solvers.saved import saved_bytes
from planner.solvers.setting import Setting


@dataclass(frozen=True, kw_only=True)
class BlockPrice:
    """One distinct block, one microbatch, one device."""

    forward: PassSeconds
    backward: PassSeconds
    saved_bytes: Mapping[str, int]
    """Per recompute policy: bytes kept from forward to backward."""
    transient_bytes: int
    param_shapes: Mapping[str, Shape]
    """By relative FQN: shape on one device of ``tp``."""
    trained: Collection[str]
    """Parameters that receive gradients, here or (tied ones) in another block."""
    reduced: Collection[str]
    """Parameters whose gradient this block completes: a tied one counts in one of its blocks only."""
    replicated_numel: int
    """Of ``reduced``, elements whose gradient is a partial sum over ``tp``: whole ones under sequence parallelism."""
    again: Mapping[str, PassSeconds]
    """Per recompute policy: forward work that is done once more."""
    weight_s: float
    """Of the backward pass, the products that yield weight gradients: what schedules may put off."""
    expert_params: Collection[str] = ()
    """Parameters of which a device of ``ep`` holds some experts only; ``param_shapes`` has its share."""

    def rematerialised_bytes(self, policy: str) -> int:
        """Bytes that reappear while the block's backward runs, under a recompute policy."""
        return self.saved_bytes["none"] - self.saved_bytes[policy]

    def numel(self, dp_shard: int = 1) -> int:
        """Elements of all parameters after tensor parallelism, padded to be sharded over ``dp_shard``."""
        return self._sum(self.param_shapes, dp_shard)

    def trained_numel(self, dp_shard: int = 1) -> int:
        """The same of ``trained``."""
        return self._sum(self.trained, dp_shard)

    def reduced_numel(self, dp_shard: int = 1) -> int:
        """The same of ``reduced``."""
        return self._sum(self.reduced, dp_shard)

    def expert_numel(self) -> int:
        """Elements of the experts on one device."""
        return sum(prod(self.param_shapes[fqn]) for fqn in self.expert_params)

    def _sum(self, fqns: Iterable[str], dp_shard: int) -> int:
        return sum(padded_numel(self.param_shapes[fqn], dp_shard) for fqn in fqns)


def price_block(
    block: Block,
    layout: TensorParallel,
    cluster: Cluster,
    *,
    tp: int,
    sequence_parallel: bool,
    batch: int,
    seq_len: int,
    recomputable: bool,
    trained: Collection[str],
    cp: int = 1,
    context: ContextKind = "all_gather",
    ulysses: int = 1,
    ep: int = 1,
    execution: Execution = EAGER,
) -> BlockPrice:
    """Price every operation on its local shapes and add up.

    Args:
        batch: samples of the microbatch.
        seq_len: tokens of a whole sample; ``cp`` devices share them.
        recomputable: whether the block repeats: recompute policies apply, and low-precision products.
        trained: relative FQNs of the parameters that receive gradients, here or (tied ones) in another block.
    """
    shapes = local_shapes(
        block, layout, tp=tp, sequence_parallel=sequence_parallel, batch=batch, seq_len=ceil(seq_len / cp)
    )
    local = OnDevice(
        block=block, layout=layout, cluster=cluster, shapes=shapes, experts=find_experts(block), tp=tp,
        sequence_parallel=sequence_parallel, cp=cp, context=context, ulysses=ulysses, ep=ep,
        repeated=recomputable, execution=execution,
    )  # fmt: skip
    param_shapes, held = local.param_shapes, local.held_experts
    reduced = [fqn for fqn, _ in block.param_grads if fqn in param_shapes]
    replicated = [fqn for fqn in reduced if sequence_parallel and fqn not in layout.params and fqn not in held]
    return BlockPrice(
        forward=pass_seconds(local, "forward"),
        backward=pass_seconds(local, "backward"),
        saved_bytes=saved_bytes(block, shapes, local.value_bytes, repeated=recomputable, cp=cp, execution=execution),
        transient_bytes=transient_peak_bytes(block, local.value_bytes),
        param_shapes=param_shapes,
        trained=[fqn for fqn in param_shapes if fqn in trained],
        reduced=reduced,
        replicated_numel=sum(prod(param_shapes[fqn]) for fqn in replicated),
        again=again(local),
        weight_s=weight_grad_s(local),
        expert_params=held,
    )


def price_blocks(setting: Setting, candidate: Candidate, layouts: Sequence[TensorParallel]) -> tuple[BlockPrice, ...]:
    """Every distinct block of the model under one candidate, as the setting's execution runs it.

    Args:
        layouts: per block, what ``tp`` does to it.
    """
    graph = setting.graph
    repeated = {segment.block for segment in graph.segments if segment.prefix}
    return tuple(
        price_block(
            block, layout, setting.cluster, tp=candidate.tp, sequence_parallel=candidate.sequence_parallel,
            batch=candidate.microbatch_size, seq_len=setting.job.seq_len, recomputable=index in repeated,
            trained=setting.trained[index], cp=candidate.cp, context=candidate.context,
            ulysses=candidate.ulysses, ep=candidate.ep, execution=setting.execution,
        )
        for index, (block, layout) in enumerate(zip(graph.blocks, layouts, strict=True))
    )  # fmt: skip
