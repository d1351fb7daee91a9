"""Peak of a block's transient memory, by walking its operations in order."""

from __future__ import annotations

from collections.abc import Sequence

from planner.graph import Block, Phase


def transient_peak_bytes(block: Block, value_bytes: Sequence[int]) -> int:
    """Most bytes alive at once beyond what is counted elsewhere, over the forward and the backward pass.

    A tensor lives from the operation that makes it to its last reader. Not counted: parameters and their gradients,
    what is saved for backward, and outside tensors other than incoming gradients.

    Args:
        value_bytes: bytes of each value on one device.
    """
    elsewhere = {block.values[v].storage for v in (*block.saved, *block.inputs)}
    elsewhere |= {block.values[v].storage for _, v in (*block.params, *block.param_grads)}
    return max(_peak(block, value_bytes, phase, elsewhere) for phase in ("forward", "backward"))


def _peak(block: Block, value_bytes: Sequence[int], phase: Phase, elsewhere: set[int]) -> int:
    ops = [op for op in block.ops if op.phase == phase]
    known = {block.values[v].storage for op in block.ops if op.phase == "forward" for v in (*op.inputs, *op.outputs)}
    last_use: dict[int, int] = {}
    for i, op in enumerate(ops):
        for v in (*op.inputs, *op.outputs):
            last_use[block.values[v].storage] = i
    live: dict[int, int] = {}
    peak = current = 0
    for i, op in enumerate(ops):
        # In the backward pass, an outside tensor that the forward pass does not know is an incoming gradient.
        given = op.inputs if phase == "backward" else ()
        for v in (*given, *op.outputs):
            storage = block.values[v].storage
            if storage in live or storage in elsewhere or (v in given and storage in known):
                continue
            live[storage] = value_bytes[v]
            current += value_bytes[v]
        peak = max(peak, current)
        for v in (*op.inputs, *op.outputs):
            storage = block.values[v].storage
            if last_use[storage] == i:
                current -= live.pop(storage, 0)
    return peak
