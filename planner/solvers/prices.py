"""Price of one distinct block on one device: seconds by kind and bytes by use, for a tensor-parallel degree and
microbatch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

from costmodels import communication, compute
from costmodels.compute import DTYPE_BYTES
from hardware_profiles.cluster import Cluster, Device
from hardware_profiles.topology import group
from planner import ops
from planner.graph import Block, Op
from planner.layouts.data_parallel import padded_numel
from planner.layouts.tensor_parallel import TensorParallel
from planner.solvers.liveness import transient_peak_bytes

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PassSeconds:
    """Device time of one pass over a block, by what bounds it."""

    gemm: float = 0.0
    attention: float = 0.0
    memory_bound: float = 0.0
    collectives: float = 0.0
    """Over ``tp``; nothing hides them."""

    @property
    def compute(self) -> float:
        return self.gemm + self.attention + self.memory_bound


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

    def numel(self, dp_shard: int = 1) -> int:
        """Elements of all parameters after tensor parallelism, padded to be sharded over ``dp_shard``."""
        return self._sum(self.param_shapes, dp_shard)

    def trained_numel(self, dp_shard: int = 1) -> int:
        """The same of ``trained``."""
        return self._sum(self.trained, dp_shard)

    def reduced_numel(self, dp_shard: int = 1) -> int:
        """The same of ``reduced``."""
        return self._sum(self.reduced, dp_shard)

    def _sum(self, fqns: Iterable[str], dp_shard: int) -> int:
        return sum(padded_numel(self.param_shapes[fqn], dp_shard) for fqn in fqns)


@dataclass(frozen=True)
class LocalShapes:
    """Shapes of a block's values on one device."""

    inside: tuple[Shape, ...]
    """Within sharded regions: what is not sharded over heads or widths is whole."""
    outside: tuple[Shape, ...]
    """Elsewhere: sharded along the sequence where sequence parallelism has it."""
    stored: tuple[Shape, ...]
    """As kept in memory: gathered entries whole, the rest as ``outside``."""


def local_shapes(
    block: Block, layout: TensorParallel, *, tp: int, sequence_parallel: bool, batch: int, seq_len: int
) -> LocalShapes:
    """Shapes on one of ``tp`` devices; a size that ``tp`` does not divide is rounded up (the padded shard)."""
    whole = [value.shape(batch, seq_len) for value in block.values]
    if tp == 1:
        return LocalShapes(tuple(whole), tuple(whole), tuple(whole))

    def cut(shape: Shape, dim: int | None) -> Shape:
        return shape if dim is None else (*shape[:dim], ceil(shape[dim] / tp), *shape[dim + 1 :])

    inside = tuple(cut(shape, dim) for shape, dim in zip(whole, layout.shard_dim, strict=True))
    if not sequence_parallel:
        return LocalShapes(inside, inside, inside)
    outside = tuple(
        cut(shape, dim if sharded is None else None)
        for shape, dim, sharded in zip(inside, layout.sequence_dim, layout.shard_dim, strict=True)
    )
    gathered = {block.values[v].storage for v in layout.entries}
    stored = tuple(
        a if value.storage in gathered else b for value, a, b in zip(block.values, inside, outside, strict=True)
    )
    return LocalShapes(inside, outside, stored)


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
) -> BlockPrice:
    """Price every operation on its local shapes and add up.

    Args:
        batch: samples of the microbatch.
        recomputable: whether recompute policies apply (repeated blocks) or the block always keeps everything.
        trained: relative FQNs of the parameters that receive gradients, here or (tied ones) in another block.
    """
    shapes = local_shapes(block, layout, tp=tp, sequence_parallel=sequence_parallel, batch=batch, seq_len=seq_len)
    value_bytes = [prod(s) * DTYPE_BYTES[v.dtype] for s, v in zip(shapes.stored, block.values, strict=True)]
    kept = sum(value_bytes[v] for v in block.saved)
    saved = {"none": kept, "selective": kept, "full": kept}
    if recomputable:
        inputs = sum(value_bytes[v] for v in block.inputs)
        heavy = [op for op in block.ops if op.phase == "forward" and op.name in ops.COMPUTE_HEAVY]
        outputs = {block.values[v].storage: value_bytes[v] for op in heavy for v in op.outputs}
        saved["selective"] = min(kept, inputs + sum(outputs.values()))
        saved["full"] = inputs
    param_shapes = {fqn: shapes.inside[v] for fqn, v in block.params}
    reduced = [fqn for fqn, _ in block.param_grads if fqn in param_shapes]
    replicated = [fqn for fqn in reduced if sequence_parallel and fqn not in layout.params]
    local = _OnDevice(block, layout, cluster, shapes, tp, sequence_parallel)
    return BlockPrice(
        forward=local.seconds("forward"),
        backward=local.seconds("backward"),
        saved_bytes=saved,
        rematerialised_bytes={policy: kept - held for policy, held in saved.items()},
        transient_bytes=transient_peak_bytes(block, value_bytes),
        param_shapes=param_shapes,
        trained=[fqn for fqn in param_shapes if fqn in trained],
        reduced=reduced,
        replicated_numel=sum(prod(param_shapes[fqn]) for fqn in replicated),
        again=local.again() if recomputable else NOT_AGAIN,
    )


NOT_AGAIN = dict.fromkeys(("none", "selective", "full"), PassSeconds())


@dataclass(frozen=True)
class _OnDevice:
    """A block on one device of ``tp``."""

    block: Block
    layout: TensorParallel
    cluster: Cluster
    shapes: LocalShapes
    tp: int
    sequence_parallel: bool

    def seconds(self, phase: str) -> PassSeconds:
        """All operations of a pass, and its collectives."""
        kinds = {"gemm": 0.0, "attention": 0.0, "memory_bound": 0.0}
        for i, op in enumerate(self.block.ops):
            if op.phase == phase and not ops.is_free(op, self.block):
                local = self.shapes.inside if i in self.layout.sharded_ops else self.shapes.outside
                kind, seconds = op_seconds(op, self.block, local, self.cluster.device)
                kinds[kind] += seconds
        return PassSeconds(**kinds, collectives=self.collectives(phase))

    def collectives(self, phase: str) -> float:
        """Entries and exits over ``tp`` (see `planner.layouts.tensor_parallel`), and the three row-wide reductions
        (maximum, sum of exponentials, label's logit) of a loss over sharded classes."""
        if self.tp == 1:
            return 0.0
        ranks, layout, forward = group(self.cluster, size=self.tp, stride=1), self.layout, phase == "forward"
        gathered, reduced = (layout.entries, layout.exits) if forward else (layout.exits, layout.entries)
        if self.sequence_parallel:
            seconds = sum(communication.all_gather_s(ranks, self._whole_bytes(v)) for v in gathered)
            seconds += sum(communication.reduce_scatter_s(ranks, self._whole_bytes(v)) for v in reduced)
        else:
            seconds = sum(communication.all_reduce_s(ranks, self._whole_bytes(v)) for v in reduced)
        if layout.loss_rows is not None and forward:
            rows = prod(self.shapes.inside[layout.loss_rows])
            seconds += 3 * communication.all_reduce_s(ranks, rows * DTYPE_BYTES["float32"])
        return seconds

    def _whole_bytes(self, v: int) -> int:
        return prod(self.shapes.inside[v]) * DTYPE_BYTES[self.block.values[v].dtype]

    def again(self) -> dict[str, PassSeconds]:
        """Forward work done again per policy. ``full`` stops where the last saved tensor is rebuilt, as
        ``torch.utils.checkpoint`` does; ``selective`` keeps the results of GEMM, attention and exits, so that only
        pointwise work and gathers are left."""
        block, layout = self.block, self.layout
        saved = {block.values[v].storage for v in block.saved}
        rebuilt = [
            i
            for i, op in enumerate(block.ops)
            if op.phase == "forward" and any(block.values[v].storage in saved for v in op.outputs)
        ]
        needed = block.ops[: max(rebuilt, default=-1) + 1]
        made = {v for op in needed for v in op.outputs}
        exits = tuple(v for v in layout.exits if v in made)
        rebuild = replace(self, block=replace(block, ops=needed), layout=replace(layout, exits=exits, loss_rows=None))
        gather = replace(rebuild, layout=replace(rebuild.layout, exits=()))
        full = rebuild.seconds("forward")
        selective = PassSeconds(memory_bound=full.memory_bound, collectives=gather.collectives("forward"))
        return {"none": PassSeconds(), "selective": selective, "full": full}


def op_seconds(op: Op, block: Block, shapes: Sequence[Shape], device: Device) -> tuple[str, float]:
    """(``gemm`` | ``attention`` | ``memory_bound``, device seconds) of one call on the given shapes."""
    dtype = block.values[op.inputs[0]].dtype if op.inputs else "float32"
    fused = ops.attention(op, shapes)
    if fused is not None:
        seconds = compute.attention_s(
            device, dtype, batch=fused.batch, heads=fused.heads, q_len=fused.q_len, kv_len=fused.kv_len,
            head_dim=(fused.head_dim + fused.value_dim) // 2, causal=fused.causal, backward=fused.backward,
        )  # fmt: skip
        return "attention", seconds
    products = ops.gemms(op, shapes)
    moved = ops.moved_bytes(op, block, shapes)
    if not products or ops.is_depthwise(op, products):
        return "memory_bound", compute.memory_bound_s(device, moved, "norm" if op.name in ops.NORMS else "pointwise")
    # A convolution reads its input once, not as the matrix of patches that it multiplies.
    share = moved / len(products) if op.name in ops.CONVOLUTION else None
    grouped = op.name in ops.GROUPED
    return "gemm", sum(
        compute.gemm_s(device, dtype, batch=g.groups, m=g.m, n=g.n, k=g.k, moved_bytes=share, grouped=grouped)
        for g in products
    )
