"""Activations that a block keeps from its forward to its backward pass, per recompute policy."""

from __future__ import annotations

from collections.abc import Sequence

from costmodels import compute
from planner import ops
from planner.execution import Execution
from planner.graph import Block
from planner.solvers.local_shapes import LocalShapes

POLICIES = ("none", "selective", "half", "attention", "full")
"""What is kept per block: everything; the results of products and attention; of attention and every other product
(torchtitan's per-op policy); everything but what lies between attention's operands and its result (Megatron's
``selective``, Korthikanti et al. 2022, section 5); its input."""


def saved_bytes(
    block: Block, shapes: LocalShapes, value_bytes: Sequence[int], *, repeated: bool, cp: int, execution: Execution
) -> dict[str, int]:
    """Bytes kept per policy of `POLICIES`; a block that does not repeat keeps everything under each.

    Args:
        value_bytes: bytes of each value on one device.
    """
    kept = sum(value_bytes[v] for v in _saved_values(block, execution))
    scores = _scores_bytes(block, shapes, cp, execution)
    if execution.dropout and repeated:
        kept += sum(value_bytes[v] for v in block.inputs)  # the masks of two branches, one byte per element
    if not repeated:
        return dict.fromkeys(POLICIES, kept + scores)
    inputs = sum(value_bytes[v] for v in block.inputs)
    heavy = [op for op in block.ops if op.phase == "forward" and op.name in ops.COMPUTE_HEAVY]
    results = {block.values[v].storage: value_bytes[v] for op in heavy for v in op.outputs}
    attended = {block.values[v].storage: value_bytes[v] for op in heavy if op.name in ops.ATTENTION for v in op.outputs}
    return {
        "none": kept + scores,
        "selective": min(kept, inputs + sum(results.values())) + scores,
        "half": min(kept, inputs + (sum(results.values()) + sum(attended.values())) // 2) + scores,
        "attention": kept,
        "full": inputs,
    }


def _saved_values(block: Block, execution: Execution) -> tuple[int, ...]:
    """`Block.saved`; fused backward kernels make again what their forward counterparts made of saved products."""
    if not execution.fused_pointwise:
        return block.saved
    makers = {
        block.values[v].storage: op
        for op in block.ops
        if op.phase == "forward" and not ops.is_free(op, block)
        for v in op.outputs
    }
    operands = {
        block.values[v].storage
        for op in block.ops
        if op.phase == "backward" and (op.name in ops.COMPUTE_HEAVY or op.name in ops.ATTENTION_BACKWARD)
        for v in op.inputs
    }
    return tuple(
        v
        for v in block.saved
        if (s := block.values[v].storage) in operands
        or s not in makers
        or makers[s].name in ops.COMPUTE_HEAVY
        or makers[s].name in ops.NORMS
    )


def _scores_bytes(block: Block, shapes: LocalShapes, cp: int, execution: Execution) -> int:
    """What unfused attention keeps beside its operands."""
    if execution.attention != "unfused":
        return 0
    attentions = [ops.attention(op, shapes.inside) for op in block.ops if op.phase == "forward"]
    return sum(
        compute.unfused_attention_saved_bytes(
            batch=a.batch, heads=a.heads, q_len=a.q_len, kv_len=a.kv_len * cp, dropout=execution.dropout
        )
        for a in attentions
        if a is not None
    )
