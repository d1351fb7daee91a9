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
from planner.solvers.experts import Experts, exchanged, one_by_one
from planner.solvers.fusion import Kernel, fused_kernels, is_heavy
from planner.solvers.local_shapes import LocalShapes, Shape

PERMUTATIONS = {"index_select", "index_add"}
PERMUTE_FRACTION = 0.5
"""Of the memory bandwidth, what a kernel reaches that puts whole rows into another order: 0.50 forward and 0.51
backward in Megatron-Core's fused permutation on B200 (SimuMax, configs/system/b200_bf16_ceperm.json)."""


class Launch(NamedTuple):
    """Seconds of one or more kernels of one kind."""

    kind: str
    """A field of `planner.solvers.passes.PassSeconds`: ``gemm``, ``attention`` or ``memory_bound``."""
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
            if dtype is not None and not (execution.fused_experts and op.name in ops.GROUPED):
                yield _cast(i, op, block, at(i), device, fused=execution.fused_pointwise)
    if execution.fused_pointwise:
        for kernel in fused_kernels(block, phase):
            if execution.fused_experts and experts and experts.module in {block.ops[i].fqn for i in kernel.ops}:
                continue
            launch = _fused(kernel, block, at(kernel.ops[0]), device)
            permutes = experts is not None and any(
                i in experts.region and block.ops[i].name in PERMUTATIONS for i in kernel.ops
            )
            yield launch._replace(seconds=launch.seconds * permuting(device)) if permutes else launch


def permuting(device: Device) -> float:
    """How many times longer a permutation takes than streaming as many bytes."""
    return max(1.0, device.efficiency.pointwise / PERMUTE_FRACTION)


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
    contracts_tokens = all(len(shapes[v]) == 2 for v in op.inputs[:2])
    if grouped and ep > 1:
        products = tuple(exchanged(product, ep, contracts_tokens=contracts_tokens) for product in products)
    if grouped and execution.expert_products == "each":
        one = one_by_one(products[0], halves := _twins(op, block, shapes), op.phase, contracts_tokens=contracts_tokens)
        each_s = compute.gemm_s(device, dtype or own, m=one.m, n=one.n, k=one.k, sustained=True)
        return Launch("gemm", products[0].groups / halves * max(each_s, execution.expert_call_s), i)
    seconds = sum(
        compute.gemm_s(
            device,
            dtype or own,
            batch=g.groups,
            m=g.m,
            n=g.n,
            k=g.k,
            moved_bytes=share,
            grouped=grouped,
            sustained=True,
        )
        for g in products
    )
    return Launch("gemm", seconds, i)


def _twins(op: Op, block: Block, shapes: Sequence[Shape]) -> int:
    """Grouped products of a pass with operands of the same shapes, itself included: the halves of a gated network."""
    own = [shapes[v] for v in op.inputs[:2]]
    return sum(
        [shapes[v] for v in other.inputs[:2]] == own
        for other in block.ops
        if other.name in ops.GROUPED and other.phase == op.phase
    )


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


def _cast(i: int, op: Op, block: Block, shapes: Sequence[Shape], device: Device, *, fused: bool) -> Launch:
    """Casting the operands of a product to a narrower dtype: read two bytes, write one and its transpose.

    Forward the activations, backward the gradient, once for the two products that read it; weights are cast once per
    step, not per microbatch. Where memory-bound runs are fused, the kernel that makes an operand writes it narrow and
    transposed in place of wide, so that only what another product made is cast by itself (TransformerEngine's fused
    cast of norms and activations).
    """
    operand = op.inputs[-2] if op.phase == "forward" else op.inputs[0]
    if fused and not _made_by_product(operand, op, block):
        return Launch("memory_bound", 0.0, i)
    elements = prod(shapes[operand]) / (1 if op.phase == "forward" else 2)
    return Launch("memory_bound", compute.memory_bound_s(device, 4 * elements), i)


def _made_by_product(value: int, reader: Op, block: Block) -> bool:
    storage = block.values[value].storage
    makers = (op for op in block.ops if any(block.values[v].storage == storage for v in op.outputs))
    first = next((op for op in makers if not ops.is_free(op, block)), reader)
    return first is not reader and is_heavy(first)


def _fused(kernel: Kernel, block: Block, shapes: Sequence[Shape], device: Device) -> Launch:
    num_bytes = sum(prod(shapes[v]) * DTYPE_BYTES[block.values[v].dtype] for v in (*kernel.reads, *kernel.writes))
    seconds = compute.memory_bound_s(device, num_bytes, "norm" if kernel.reduces else "pointwise")
    return Launch("memory_bound", seconds, kernel.ops[0])
