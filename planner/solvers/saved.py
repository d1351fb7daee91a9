"""Activations that a block keeps from its forward to its backward pass, per recompute policy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

from costmodels import compute
from costmodels.compute import DTYPE_BYTES
from planner import ops
from planner.execution import Execution
from planner.graph import Block, Op
from planner.solvers.experts import find_experts
from planner.solvers.local_shapes import LocalShapes

POLICIES = ("none", "selective", "half", "attention", "activations", "experts", "full")
"""What is kept per block: everything; the results of products and attention; of attention and every other product
(torchtitan's per-op policy); everything but what lies between attention's operands and its result (Megatron's
``selective``, Korthikanti et al. 2022, section 5); everything but the results of norms and of the experts' activation,
or but what lies between routing and combining (Megatron-Core's ``recompute_modules``); its input."""


def saved_bytes(
    block: Block, shapes: LocalShapes, value_bytes: Sequence[int], *, repeated: bool, cp: int, execution: Execution
) -> dict[str, int]:
    """Bytes kept per policy of `POLICIES`; a block that does not repeat keeps everything under each.

    Args:
        value_bytes: bytes of each value on one device.
    """
    if execution.recipe.regather:
        value_bytes = _scattered(block, shapes, value_bytes)
    saved = _saved_values(block, execution)
    kept = sum(value_bytes[v] for v in saved)
    if execution.linear_dtype and execution.recipe.narrow_inputs and repeated:
        kept -= _narrowed_bytes(block, saved, value_bytes, execution.linear_dtype)
    if execution.recipe.native_groups:
        kept -= _ungrouped_bytes(block, saved, value_bytes)
    if execution.recipe.upcast_norms:
        kept += sum(FP32_BYTES * prod(shapes.outside[op.outputs[0]]) for op in block.ops if _is_norm(op))
    scores = _scores_bytes(block, shapes, cp, execution)
    if execution.dropout and repeated:
        kept += sum(value_bytes[v] for v in block.inputs)  # the masks of two branches, one byte per element
    if not repeated:
        return dict.fromkeys(POLICIES, kept + scores)
    inputs = sum(value_bytes[v] for v in block.inputs)
    heavy = [op for op in block.ops if op.phase == "forward" and op.name in ops.COMPUTE_HEAVY]
    results = {block.values[v].storage: value_bytes[v] for op in heavy for v in op.outputs}
    products = [op for op in heavy if op.name not in ops.ATTENTION]
    other = [op for op in heavy if op.name in ops.ATTENTION] + products[::2]
    half = {block.values[v].storage: value_bytes[v] for op in other for v in op.outputs}
    return {
        "none": kept + scores,
        "selective": min(kept, inputs + sum(results.values())) + scores,
        "half": min(kept, inputs + sum(half.values())) + scores,
        "attention": kept,
        "activations": kept - _made_bytes(block, saved, value_bytes, activations(block)) + scores,
        "experts": kept - _made_bytes(block, saved, value_bytes, routed(block)) + scores,
        "full": inputs,
    }


def activations(block: Block) -> frozenset[int]:
    """Forward operations that make norms, and what experts multiply in between; none in a block without experts."""
    experts = find_experts(block)
    made = (i for i, op in enumerate(block.ops) if op.phase == "forward" and op.name not in ops.GROUPED)
    return frozenset(i for i in made if experts and (_is_norm(block.ops[i]) or block.ops[i].fqn == experts.module))


def routed(block: Block) -> frozenset[int]:
    """Forward operations between routing and combining."""
    experts = find_experts(block)
    return frozenset(i for i in experts.region if block.ops[i].phase == "forward") if experts else frozenset()


def _made_bytes(block: Block, saved: Sequence[int], value_bytes: Sequence[int], made_by: Collection[int]) -> int:
    """Of ``saved``, bytes of what these operations make; views of what others make are not theirs."""
    makers = (block.ops[i] for i in made_by)
    made = {block.values[v].storage for op in makers if not ops.is_free(op, block) for v in op.outputs}
    return sum(value_bytes[v] for v in saved if block.values[v].storage in made)


FP32_BYTES = DTYPE_BYTES["float32"]


def _is_norm(op: Op) -> bool:
    return op.phase == "forward" and op.name in ops.NORMS and "norm" in op.name


def _narrowed_bytes(block: Block, saved: Sequence[int], value_bytes: Sequence[int], dtype: str) -> int:
    """Fewer bytes where products keep narrow copies of their inputs; what others read too stays beside the copy."""
    products = [op for op in block.ops if op.phase == "forward" and op.name in ops.MATMUL]
    read = {block.values[v].storage for op in products for v in op.inputs}
    others = {
        block.values[v].storage
        for op in block.ops
        if op.phase == "backward" and op.name not in ops.MATMUL and not ops.is_free(op, block)
        for v in op.inputs
    }
    fewer = 0.0
    for v in saved:
        value = block.values[v]
        if value.storage in read:
            narrow = value_bytes[v] * DTYPE_BYTES[dtype] / DTYPE_BYTES[value.dtype]
            fewer += -narrow if value.storage in others else value_bytes[v] - narrow
    return int(fewer)


def _ungrouped_bytes(block: Block, saved: Sequence[int], value_bytes: Sequence[int]) -> int:
    """Fewer bytes where attention reads the keys and values of grouped queries uncopied, as views of one product that
    has the queries too."""
    forward = [op for op in block.ops if op.phase == "forward"]
    makers = {v: op for op in forward for v in op.outputs}
    there = {block.values[v].storage for v in saved}

    def source(value: int, *, through: Collection[str] | None) -> int:
        """What the value was made of, back to what other operations than ``through`` (None: any but products) made."""
        while (op := makers.get(value)) and (op.name in through if through else op.name not in ops.COMPUTE_HEAVY):
            value = op.inputs[0]
        return value

    fewer = 0
    for op in forward:
        if op.name not in ops.ATTENTION:
            continue
        query, *others = op.inputs[:3]
        originals = [min(value, source(value, through=ops.COPIES), key=value_bytes.__getitem__) for value in others]
        if originals == others:
            continue
        fewer += sum(value_bytes[v] for v in others) - sum(value_bytes[v] for v in originals)
        if block.values[source(query, through=None)].storage not in there:
            fewer -= value_bytes[query] + value_bytes[originals[0]]
    return fewer


def num_logits(block: Block, batch: int, seq_len: int) -> int:
    """Elements over which the loss normalises; 0 for a block without a loss."""
    made = [op.outputs[0] for op in block.ops if op.phase == "forward" and op.name == "_log_softmax"]
    return sum(prod(block.values[v].shape(batch, seq_len)) for v in made)


def _scattered(block: Block, shapes: LocalShapes, value_bytes: Sequence[int]) -> list[int]:
    """Bytes of values where those that are gathered for a product keep a device's part only."""
    return [
        size * prod(part) // prod(whole) if part != whole and prod(part) < prod(whole) else size
        for size, part, whole in zip(value_bytes, shapes.outside, shapes.stored, strict=True)
    ]


def _saved_values(block: Block, execution: Execution) -> tuple[int, ...]:
    """`Block.saved`; fused backward kernels make again what their forward counterparts made of what is kept."""
    if not execution.fused_pointwise:
        return block.saved
    storages = [value.storage for value in block.values]
    saved = {storages[v] for v in block.saved}
    operands = {
        storages[v]
        for op in block.ops
        if op.phase == "backward" and (op.name in ops.COMPUTE_HEAVY or op.name in ops.ATTENTION_BACKWARD)
        for v in op.inputs
    }
    experts = routed(block)  # their results are not kept: routing weights are applied with the experts' activation
    missing, again = set[int](), set[int]()
    for i, op in enumerate(block.ops):
        if op.phase == "backward" or ops.is_free(op, block):
            continue
        made = {storages[v] for v in op.outputs}
        heavy = op.name in ops.COMPUTE_HEAVY or op.name in ops.NORMS
        if heavy or (i not in experts and any(storages[v] in missing for v in op.inputs)):
            missing |= made - saved
        else:
            again |= made - operands
    return tuple(v for v in block.saved if storages[v] not in again)


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
