"""Price of one distinct block on one device: seconds by kind and bytes by use, for its share of ``tp``, ``cp`` and
``ep`` and a microbatch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod

from costmodels import communication
from costmodels.compute import DTYPE_BYTES
from hardware_profiles.cluster import Cluster
from hardware_profiles.topology import group
from planner import ops
from planner.execution import EAGER, Execution
from planner.graph import Block, Phase
from planner.layouts.data_parallel import padded_numel
from planner.layouts.tensor_parallel import TensorParallel
from planner.solvers.context import ContextKind, context_s
from planner.solvers.experts import Experts, dispatch_s, find_experts
from planner.solvers.kernels import Launch, launches
from planner.solvers.liveness import transient_peak_bytes
from planner.solvers.local_shapes import LocalShapes, Shape, local_shapes
from planner.solvers.saved import POLICIES, activations, routed, saved_bytes


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


@dataclass(frozen=True, kw_only=True)
class BlockPrice:
    """One distinct block, one microbatch, one device."""

    forward: PassSeconds
    backward: PassSeconds
    saved_bytes: dict[str, int]
    """Per recompute policy: bytes kept from forward to backward."""
    rematerialised_bytes: dict[str, int]
    """Per recompute policy: bytes that reappear while the block's backward runs."""
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
    experts = find_experts(block)
    local = _OnDevice(
        block, layout, cluster, shapes, tp, sequence_parallel, experts, cp, context, ep, recomputable, execution
    )
    param_shapes = {fqn: shapes.inside[v] for fqn, v in block.params}
    held = experts.params if experts and ep > 1 else frozenset[str]()
    for fqn, v in block.params:
        if fqn in held:
            whole = shapes.routed[v]
            param_shapes[fqn] = (max(1, whole[0] // ep), *whole[1:])
    reduced = [fqn for fqn, _ in block.param_grads if fqn in param_shapes]
    replicated = [fqn for fqn in reduced if sequence_parallel and fqn not in layout.params and fqn not in held]
    saved = saved_bytes(block, shapes, local.value_bytes, repeated=recomputable, cp=cp, execution=execution)
    return BlockPrice(
        forward=local.seconds("forward"),
        backward=local.seconds("backward"),
        saved_bytes=saved,
        rematerialised_bytes={policy: saved["none"] - kept for policy, kept in saved.items()},
        transient_bytes=transient_peak_bytes(block, local.value_bytes),
        param_shapes=param_shapes,
        trained=[fqn for fqn in param_shapes if fqn in trained],
        reduced=reduced,
        replicated_numel=sum(prod(param_shapes[fqn]) for fqn in replicated),
        again=local.again() if recomputable else NOT_AGAIN,
        weight_s=local.weight_s(),
        expert_params=held,
    )


PASSES: tuple[Phase, ...] = ("forward", "backward")
NOT_AGAIN = dict.fromkeys(POLICIES, PassSeconds())


@dataclass(frozen=True)
class _OnDevice:
    """A block on one device."""

    block: Block
    layout: TensorParallel
    cluster: Cluster
    shapes: LocalShapes
    tp: int
    sequence_parallel: bool
    experts: Experts | None
    cp: int
    context: ContextKind
    ep: int
    repeated: bool
    execution: Execution

    @cached_property
    def value_bytes(self) -> list[int]:
        """Bytes of every value as kept in memory."""
        routed = set[int]()
        if self.experts and self.ep > 1:
            routed = {v for i in self.experts.region for v in self.block.ops[i].outputs}
        stored = (self.shapes.routed[v] if v in routed else s for v, s in enumerate(self.shapes.stored))
        return [prod(s) * DTYPE_BYTES[value.dtype] for s, value in zip(stored, self.block.values, strict=True)]

    def _launches(self, phase: Phase) -> list[Launch]:
        return list(
            launches(
                self.block, phase, self.shapes, self.cluster.device, sharded_ops=self.layout.sharded_ops,
                experts=self.experts, cp=self.cp, ep=self.ep, low_precision=self.repeated, execution=self.execution,
            )
        )  # fmt: skip

    def seconds(self, phase: Phase) -> PassSeconds:
        """All operations of a pass, and its communication."""
        kinds = {"gemm": 0.0, "attention": 0.0, "memory_bound": 0.0}
        for launch in self._launches(phase):
            kinds[launch.kind] += launch.seconds
        for kind in kinds:
            kinds[kind] *= self.execution.factor(kind)
        # The backward pass is launched by autograd's own thread, without Python.
        call_s = self.execution.host_call_s * (1.0 if phase == "forward" else 0.5)
        host_s = self.execution.factor("host") * call_s * sum(op.phase == phase for op in self.block.ops)
        held_s = self.execution.factor("host") * call_s * self._held_calls(phase)
        collectives = self.collectives(phase)
        hidden = 0.0
        if self.execution.overlap_tp:
            share = min(self.execution.overlap_tp, (self.tp - 1) / self.tp)
            hidden = min(share * collectives, kinds["gemm"])
        return PassSeconds(
            **kinds,
            host=held_s + max(0.0, host_s - held_s - sum(kinds.values())),
            held=held_s,
            collectives=collectives - hidden,
            hidden_collectives=hidden,
            context=self._context(phase, kinds["attention"]),
            experts=self._dispatch(),
        )

    def weight_s(self) -> float:
        """Backward products from which only parameter gradients follow."""
        block = self.block
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
        return self.execution.factor("gemm") * sum(
            launch.seconds for launch in self._launches("backward") if launch.kind == "gemm" and launch.op in weight
        )

    def collectives(self, phase: Phase) -> float:
        """Entries and exits over ``tp`` (see `planner.layouts.tensor_parallel`), and the three row-wide reductions
        (maximum, sum of exponentials, label's logit) of a loss over sharded classes."""
        if self.tp == 1:
            return 0.0
        ranks, layout, forward = group(self.cluster, size=self.tp, stride=1), self.layout, phase == "forward"
        entries, exits = self._unrouted(layout.entries), self._unrouted(layout.exits)
        gathered, reduced = (entries, exits) if forward else (exits, entries)
        if self.sequence_parallel:
            seconds = sum(communication.all_gather_s(ranks, self._whole_bytes(v)) for v in gathered)
            seconds += sum(communication.reduce_scatter_s(ranks, self._whole_bytes(v)) for v in reduced)
        else:
            seconds = sum(communication.all_reduce_s(ranks, self._whole_bytes(v)) for v in reduced)
        if layout.loss_rows is not None and forward:
            rows = prod(self.shapes.inside[layout.loss_rows])
            seconds += 3 * communication.all_reduce_s(ranks, rows * DTYPE_BYTES["float32"])
        return self.execution.factor("tp") * seconds

    def _unrouted(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Those that no expert region makes or is alone to read: routed tokens stay where they were dispatched."""
        if self.experts is None or self.ep == 1:
            return values
        block, region = self.block, self.experts.region
        made = {block.values[v].storage for i in region for v in block.ops[i].outputs}
        read = {
            block.values[v].storage
            for i in self.layout.sharded_ops - region
            if block.ops[i].phase == "forward"
            for v in block.ops[i].inputs
        }
        return tuple(
            v for v in values if (s := block.values[v].storage) not in made and (v in self.layout.exits or s in read)
        )

    def _whole_bytes(self, v: int) -> int:
        return prod(self.shapes.inside[v]) * DTYPE_BYTES[self.block.values[v].dtype]

    def _context(self, phase: Phase, attention_s: float) -> float:
        """Communication over ``cp`` of every attention of a pass."""
        if self.cp == 1:
            return 0.0
        attentions = [op for op in self.block.ops if op.phase == "forward" and op.name in ops.ATTENTION]
        ranks = group(self.cluster, size=self.cp, stride=self.tp)
        seconds = 0.0
        for op in attentions:
            q, k, v = op.inputs[:3]
            seconds += context_s(
                self.context, ranks, kv_bytes=self._source_bytes(k) + self._source_bytes(v),
                q_bytes=self._whole_bytes(q), attention_s=attention_s / len(attentions), backward=phase == "backward",
            )  # fmt: skip
        return self.execution.factor("cp") * seconds

    def _source_bytes(self, value: int) -> int:
        """Bytes of keys or values before their heads were copied for grouped queries."""
        producers = {v: op for op in self.block.ops if op.phase == "forward" for v in op.outputs}
        smallest = self._whole_bytes(value)
        while value in producers and producers[value].name in ops.COPIES:
            value = producers[value].inputs[0]
            smallest = min(smallest, self._whole_bytes(value))
        return smallest

    def _held_calls(self, phase: Phase) -> int:
        """Calls that no computation hides: those between routing and combining where the host waits for the number of
        rows that every expert has, and so cannot be ahead of the device."""
        if self.experts is None or not self.execution.waits_for_routing:
            return 0
        return sum(self.block.ops[i].phase == phase for i in self.experts.region)

    def _dispatch(self) -> float:
        """Dispatch and combine over ``ep`` of one pass, as far as another microbatch's computation, which they slow
        down, does not hide them: beside a forward pass runs a backward pass, so that half of both counts."""
        if self.experts is None or self.ep == 1:
            return 0.0
        ranks, once = group(self.cluster, size=self.ep, stride=1), self.execution.dispatch_once
        seconds = sum(
            dispatch_s(self.experts, ranks, self.value_bytes[v] / self.experts.top_k, once=once)
            for v in (self.experts.dispatched, self.experts.combined)
        )
        if self.execution.overlap_experts:
            launched = (launch for phase in PASSES for launch in self._launches(phase))
            busy_s = sum(self.execution.factor(launch.kind) * launch.seconds for launch in launched) / 2
            seconds -= min(seconds, busy_s) / self.cluster.library.compute_slowdown
        return self.execution.factor("ep") * seconds

    # --- what is kept, and done again ------------------------------------------------------------------------------

    def again(self) -> dict[str, PassSeconds]:
        """Forward work done again per policy. ``full`` stops where the last saved tensor is rebuilt, as
        ``torch.utils.checkpoint`` does, unless the execution runs whole blocks; ``selective`` and ``half`` keep the
        results of (half the) products, attention and exits, so that pointwise work and gathers are left; ``attention``
        is attention once more, ``activations`` norms and the experts' activation, ``experts`` what lies between routing
        and combining."""
        block, layout = self.block, self.layout
        needed = block.ops
        if self.execution.early_stop:
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
        kept = replace(layout, exits=exits, loss_rows=None, sharded_ops=sharded)
        region = frozenset(i for i in self.experts.region if i < len(needed)) if self.experts else frozenset[int]()
        routing = replace(self.experts, region=region) if self.experts else None
        rebuild = replace(self, block=replace(block, ops=needed), layout=kept, experts=routing)
        gather = replace(rebuild, layout=replace(rebuild.layout, exits=()))
        full = rebuild.seconds("forward")
        gathers = gather.collectives("forward")
        return {
            "none": PassSeconds(),
            "selective": PassSeconds(memory_bound=full.memory_bound, collectives=gathers),
            "half": PassSeconds(gemm=full.gemm / 2, memory_bound=full.memory_bound, collectives=gathers),
            "attention": PassSeconds(attention=full.attention, context=full.context),
            "activations": PassSeconds(memory_bound=self._memory_bound_s(activations(block))),
            "experts": self._routed_again(rebuild, full),
            "full": full,
        }

    def _memory_bound_s(self, chosen: Collection[int]) -> float:
        """Forward kernels that begin with one of these operations and only move memory."""
        kernels = (launch for launch in self._launches("forward") if launch.kind == "memory_bound")
        return self.execution.factor("memory_bound") * sum(k.seconds for k in kernels if k.op in chosen)

    def _routed_again(self, rebuild: _OnDevice, full: PassSeconds) -> PassSeconds:
        """The difference between the whole forward pass, ``full``, and what of ``rebuild`` comes before routing."""
        if self.experts is None:
            return PassSeconds()
        before = replace(
            rebuild,
            block=replace(self.block, ops=self.block.ops[: min(routed(self.block))]),
            layout=replace(rebuild.layout, entries=(), exits=()),
            experts=None,
        ).seconds("forward")
        return PassSeconds(
            gemm=full.gemm - before.gemm,
            memory_bound=full.memory_bound - before.memory_bound,
            host=max(0.0, full.host - before.host),
            experts=full.experts,
        )
