"""Seconds that named implementations communicate inside an operation, over the axis that shards it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from costmodels import communication
from costmodels.compute import DTYPE_BYTES
from hardware_profiles.cluster import Group
from planner import ops
from planner.execution import Execution
from planner.graph import Block, Op, Ref
from planner.layouts.placements import Shape
from planner.layouts.strategies import OpNode
from planner.solvers.block_layout.op_seconds import Seconds
from planner.solvers.context import context_s
from planner.solvers.experts import dispatch_s, find_experts

FP32_BYTES = DTYPE_BYTES["float32"]


def implementation_s(
    block: Block, node: OpNode, name: str, ranks: Group, local: Mapping[int, Shape], computing_s: Seconds,
    execution: Execution, *, along: int = -1,
) -> Seconds:  # fmt: skip
    """Seconds forward and backward; nothing for those that communicate on the edges alone.

    - ``mean_count``: the number of rows that count, where some are ignored.
    - ``loss_parallel``: maximum, sum of exponentials and the label's logit of every row are all-reduced.
    - ``statistics``, ``sync``: two numbers per normalised row, or channel, are all-reduced in either pass.
    - ``dispatch``: tokens go to their experts and come back, in either pass (`planner.solvers.experts`).
    - ``ring``: keys and values travel round behind attention (`planner.solvers.context`).
    - ``halo``: a border of the kernel's width less one goes to the neighbours, and its gradient back.

    Args:
        local: shape on one device of the node's inputs and outputs.
        computing_s: of the operation's kernels on one device.
        along: dim of the first input that the axis shards.
    """
    first = block.ops[node.ops[0]]
    match name:
        case "mean_count":
            return communication.all_reduce_s(ranks, FP32_BYTES), 0.0
        case "loss_parallel":
            rows = prod(local[node.inputs[0]][:-1])
            return 3 * communication.all_reduce_s(ranks, rows * FP32_BYTES), 0.0
        case "statistics" | "sync":
            kept = (
                min(prod(local[v]) for v in node.outputs) if len(node.outputs) > 1 else prod(local[node.inputs[0]][:-1])
            )
            seconds = communication.all_reduce_s(ranks, 2 * kept * FP32_BYTES)
            return seconds, seconds
        case "dispatch":
            experts = find_experts(block)
            assert experts is not None, "only a block with experts offers to dispatch to them"
            weights = {block.values[v].storage for _, v in block.params}
            given = [v for v in node.inputs if block.values[v].storage not in weights]
            tokens = max((v for v in given if "float" in block.values[v].dtype), key=lambda v: prod(local[v]))
            token_bytes = prod(local[tokens]) * DTYPE_BYTES[block.values[tokens].dtype]
            both = 2 * dispatch_s(experts, ranks, token_bytes, once=execution.dispatch_once)
            return both, both
        case "ring":
            query, key, value = (arg.value for arg in first.args[:3] if isinstance(arg, Ref))
            kv_bytes = sum(prod(local[v]) * DTYPE_BYTES[block.values[v].dtype] for v in (key, value))
            q_bytes = prod(local[query]) * DTYPE_BYTES[block.values[query].dtype]
            forward, backward = (
                context_s("ring", ranks, kv_bytes=kv_bytes, q_bytes=q_bytes, attention_s=s, backward=b)
                for s, b in zip(computing_s, (False, True), strict=True)
            )
            return forward, backward
        case "halo":
            seconds = communication.send_recv_s(ranks, _border_bytes(block, first, local, along))
            return seconds, seconds
    return 0.0, 0.0


def _border_bytes(block: Block, op: Op, local: Mapping[int, Shape], along: int) -> float:
    """Bytes of both borders together: rows of the input that the kernel reaches beyond a device's own."""
    x = op.inputs[0]
    shape = local[x]
    kernel = local[op.inputs[1]][2:] if op.name in ops.CONVOLUTION else _sizes(op)
    width = kernel[min(along - 2, len(kernel) - 1)] if kernel else 1
    return (width - 1) * prod(shape) / max(1, shape[along]) * DTYPE_BYTES[block.values[x].dtype]


def _sizes(op: Op) -> tuple[int, ...]:
    window = op.args[1] if len(op.args) > 1 else ()
    return tuple(k for k in window if isinstance(k, int)) if isinstance(window, tuple) else ()
