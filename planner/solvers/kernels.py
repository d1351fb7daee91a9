"""Device seconds of a block's operations on local shapes, kernel by kernel, as a framework's `Execution` runs them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import prod
from typing import NamedTuple

from costmodels import compute
from costmodels.compute import DTYPE_BYTES
from hardware_profiles.cluster import Device
from planner import ops
from planner.execution import EAGER, Execution
from planner.graph import Block, Op, Phase
from planner.ops import Attention
from planner.solvers.experts import Experts, exchanged
from planner.solvers.fusion import Kernel, fused_kernels, is_heavy
from planner.solvers.local_shapes import LocalShapes, Shape


class Launch(NamedTuple):
    """Seconds of one or more kernels of one kind."""

    kind: str
    """A field of `planner.solvers.prices.PassSeconds`: ``gemm``, ``attention`` or ``memory_bound``."""
    seconds: float
    op: int
    """Index of the (first) operation."""


def launches(
    block: Block,
    phase: Phase,
    shapes: LocalShapes,
    device: Device,
    *,
    sharded_ops: Collection[int],
    experts: Experts | None = None,
    cp: int = 1,
    ep: int = 1,
    low_precision: bool = False,
    execution: Execution = EAGER,
) -> Iterator[Launch]:
    """All kernels of a pass, in no particular order.

    Args:
        sharded_ops: operations that run on the shards of ``tp``.
        experts: the block's routed part, whose operations run on dispatched tokens where ``ep`` > 1.
        low_precision: whether products may run in ``execution.linear_dtype``.
    """
    routed = experts.region if experts and ep > 1 else frozenset()

    def at(i: int) -> Sequence[Shape]:
        return shapes.routed if i in routed else shapes.inside if i in sharded_ops else shapes.outside

    for i, op in enumerate(block.ops):
        if op.phase == phase and not ops.is_free(op, block) and (is_heavy(op) or not execution.fused_pointwise):
            dtype = execution.linear_dtype if low_precision and op.name in ops.MATMUL else None
            yield _launch(i, op, block, at(i), device, dtype=dtype, cp=cp, ep=ep, execution=execution)
            if dtype is not None:
                yield _cast(i, op, block, at(i), device)
    if execution.fused_pointwise:
        for kernel in fused_kernels(block, phase):
            yield _fused(kernel, block, at(kernel.ops[0]), device)


def _launch(
    i: int, op: Op, block: Block, shapes: Sequence[Shape], device: Device, *, dtype: str | None, cp: int, ep: int,
    execution: Execution,
) -> Launch:  # fmt: skip
    own = block.values[op.inputs[0]].dtype if op.inputs else "float32"
    fused = ops.attention(op, shapes)
    if fused is not None:
        return Launch("attention", attention_s(fused, own, device, cp=cp, execution=execution), i)
    products = ops.gemms(op, shapes)
    moved = ops.moved_bytes(op, block, shapes)
    if not products or ops.is_depthwise(op, products):
        kind: compute.MemoryBound = "norm" if op.name in ops.NORMS else "pointwise"
        return Launch("memory_bound", compute.memory_bound_s(device, moved, kind), i)
    # A convolution reads its input once, not as the matrix of patches that it multiplies.
    share = moved / len(products) if op.name in ops.CONVOLUTION else None
    grouped = op.name in ops.GROUPED
    if grouped and ep > 1:
        contracts_tokens = all(len(shapes[v]) == 2 for v in op.inputs[:2])
        products = tuple(exchanged(product, ep, contracts_tokens=contracts_tokens) for product in products)
    seconds = sum(
        compute.gemm_s(device, dtype or own, batch=g.groups, m=g.m, n=g.n, k=g.k, moved_bytes=share, grouped=grouped)
        for g in products
    )
    return Launch("gemm", seconds, i)


def attention_s(fused: Attention, dtype: str, device: Device, *, cp: int, execution: Execution) -> float:
    """Seconds of one attention whose sequence is spread evenly over ``cp`` devices.

    Each does ``1 / cp`` of the whole attention, also of a causal one: zig-zag halves (ring, all-gather) and whole heads
    (Ulysses) balance it.
    """
    sizes = {
        "batch": fused.batch, "heads": fused.heads, "q_len": fused.q_len * cp, "kv_len": fused.kv_len * cp,
        "causal": fused.causal, "backward": fused.backward,
    }  # fmt: skip
    if execution.attention == "unfused":
        whole_s = compute.unfused_attention_s(
            device, dtype, **sizes, head_dim=fused.head_dim, dropout=execution.dropout
        )
    else:
        whole_s = compute.attention_s(
            device, dtype, **sizes, head_dim=(fused.head_dim + fused.value_dim) // 2, generation=execution.attention
        )
    return whole_s / cp


def _cast(i: int, op: Op, block: Block, shapes: Sequence[Shape], device: Device) -> Launch:
    """Casting the operands of a product to a narrower dtype: read two bytes, write one and its transpose. Forward both
    operands; backward the gradient, once for the two products that read it."""
    operands = op.inputs[-2:] if op.phase == "forward" else op.inputs[:1]
    elements = sum(prod(shapes[v]) for v in operands) / (1 if op.phase == "forward" else 2)
    return Launch("memory_bound", compute.memory_bound_s(device, 4 * elements), i)


def _fused(kernel: Kernel, block: Block, shapes: Sequence[Shape], device: Device) -> Launch:
    num_bytes = sum(prod(shapes[v]) * DTYPE_BYTES[block.values[v].dtype] for v in (*kernel.reads, *kernel.writes))
    seconds = compute.memory_bound_s(device, num_bytes, "norm" if kernel.reduces else "pointwise")
    return Launch("memory_bound", seconds, kernel.ops[0])
