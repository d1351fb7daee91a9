"""Which operations of a pass are one kernel: each by itself (eager), or runs of memory-bound ones fused.

Fusing compilers and hand-fused layers merge what moves memory between two products. Here two memory-bound operations
are one kernel when one reads what the other wrote (views between them are free) and equally many products lie before
them, so that no product would have to run in the middle of a kernel. Such a kernel reads what comes from outside of it
once and writes what is read outside of it (by another kernel, the backward pass, another block) once.

Copies of key and value heads for grouped queries (an ``expand`` made whole) vanish: fused attention reads them in
place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner import ops
from planner.graph import Block, Op, Phase


@dataclass(frozen=True)
class Kernel:
    """One launch that only moves memory."""

    ops: tuple[int, ...]
    """Indices into ``Block.ops``."""
    reads: tuple[int, ...]
    """Values that it reads, one per storage."""
    writes: tuple[int, ...]
    reduces: bool
    """Whether it reduces over rows (a norm, a softmax)."""


def is_heavy(op: Op) -> bool:
    """Whether an operation multiplies matrices or is a fused attention."""
    return op.name in ops.COMPUTE_HEAVY or op.name in ops.CONVOLUTION or op.name in ops.ATTENTION_BACKWARD


def fused_kernels(block: Block, phase: Phase) -> tuple[Kernel, ...]:
    """Memory-bound kernels of a pass when runs are fused (module docstring)."""
    indices = [i for i, op in enumerate(block.ops) if op.phase == phase]
    storage = _storages(block)
    writer: dict[int, int] = {}
    depth: dict[int, int] = {}
    root: dict[int, int] = {}

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    members: list[int] = []
    for i in indices:
        op = block.ops[i]
        before = {writer[storage[v]] for v in op.inputs if storage[v] in writer}
        depth[i] = max((depth[j] + is_heavy(block.ops[j]) for j in before), default=0)
        if not _is_free(op, block, storage):
            for v in op.outputs:
                writer[storage[v]] = i
            if not is_heavy(op):
                root[i] = i
                members.append(i)
                for j in before:
                    if j in root and depth[j] == depth[i]:
                        root[find(j)] = find(i)
    groups: dict[int, list[int]] = {}
    for i in members:
        groups.setdefault(find(i), []).append(i)
    readers: dict[int, list[int]] = {}
    for i, op in enumerate(block.ops):
        if not _is_free(op, block, storage):
            for v in op.inputs:
                readers.setdefault(storage[v], []).append(i)
    kept = {storage[v] for v in (*block.outputs, *(v for _, v in block.param_grads))}
    return tuple(_kernel(block, tuple(sorted(group)), storage, readers, kept) for group in groups.values())


def _storages(block: Block) -> list[int]:
    """Storage of every value, where a copy of expanded heads has that of the heads themselves."""
    storage = [value.storage for value in block.values]
    expanded = {v for op in block.ops if op.name == "expand" and op.phase == "forward" for v in op.outputs}
    same = {storage[op.outputs[0]]: storage[op.inputs[0]] for op in block.ops
            if op.name == "clone" and op.inputs[0] in expanded}  # fmt: skip
    return [same.get(s, s) for s in storage]


def _is_free(op: Op, block: Block, storage: Sequence[int]) -> bool:
    return ops.is_free(op, block) or (op.name == "clone" and storage[op.inputs[0]] == storage[op.outputs[0]])


def _kernel(
    block: Block, group: tuple[int, ...], storage: Sequence[int], readers: dict[int, list[int]], kept: set[int]
) -> Kernel:
    inside = set(group)
    written: dict[int, int] = {}
    read: dict[int, int] = {}
    for i in group:
        op = block.ops[i]
        for v in _read_values(op):
            if storage[v] not in written:
                read.setdefault(storage[v], v)
        for v in op.outputs:
            written.setdefault(storage[v], v)
    last = {s: bool(set(readers.get(s, ())) - inside) or s in kept or s not in readers for s in written}
    return Kernel(
        ops=group,
        reads=tuple(read.values()),
        writes=tuple(v for s, v in written.items() if last[s]),
        reduces=any(block.ops[i].name in ops.NORMS for i in group),
    )


def _read_values(op: Op) -> Iterator[int]:
    """What a call really reads: of a lookup's table only what it returns (counted by its result)."""
    inputs: Sequence[int] = op.inputs
    if op.name in ops.LOOKUP:
        inputs = (*op.outputs, *inputs[1:])
    elif op.name in ops.UNREAD:
        place = ops.UNREAD[op.name]
        inputs = (*inputs[:place], *inputs[place + 1 :])
    yield from inputs
