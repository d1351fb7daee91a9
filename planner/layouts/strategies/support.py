"""Which operations of a model have a rule, and what hangs on those that have none."""

from __future__ import annotations

from dataclasses import dataclass

from planner import ops
from planner.graph import Block, ModelGraph
from planner.layouts.rules import family_of
from planner.layouts.strategies.nodes import block_nodes

REFERENCE_BATCH = 4
REFERENCE_SEQ_LEN = 512
"""Sizes at which shares are taken and options counted."""

MOST_NAMED = 5
"""Operations that one warning names."""


@dataclass(frozen=True, slots=True)
class OpCoverage:
    """All forward calls of one operation in a model."""

    name: str
    family: str | None
    """``None`` where no rule knows it."""
    count: int
    """Calls in the whole model."""
    flop_share: float
    """Of the FLOP of all forward calls."""
    bytes_share: float
    """Of the bytes that all forward calls move."""
    num_options: int
    """Most that any of its calls has, by itself or as part of a node of several."""

    @property
    def ruled(self) -> bool:
        return self.family is not None


@dataclass(frozen=True, slots=True)
class Coverage:
    """A model's forward operations."""

    ops: tuple[OpCoverage, ...]
    """By name, those that move most bytes first."""
    unruled: tuple[tuple[str, str], ...]
    """(operation, FQN of the module that issues it), each pair once, in execution order."""

    @property
    def ruled_share(self) -> float:
        """Part of the forward calls that have a rule."""
        every = sum(op.count for op in self.ops)
        return sum(op.count for op in self.ops if op.ruled) / every if every else 1.0


def unruled(block: Block) -> tuple[tuple[str, str], ...]:
    """(operation, FQN of its module relative to the block) of forward operations without a rule, each pair once."""
    found = ((op.name, op.fqn) for op in block.ops if op.phase == "forward" and family_of(op) is None)
    return tuple(dict.fromkeys(found))


def coverage(graph: ModelGraph) -> Coverage:
    """Which of a model's forward operations have rules, with their shares of its work."""
    seq_len = graph.fixed_seq_len or REFERENCE_SEQ_LEN
    family: dict[str, str | None] = {}
    totals: dict[str, list[int]] = {}
    for index, block in enumerate(graph.blocks):
        times = sum(segment.block == index for segment in graph.segments)
        shapes = [value.shape(REFERENCE_BATCH, seq_len) for value in block.values]
        options = {i: len(node.options) for node in block_nodes(block, shapes) for i in node.ops}
        for i, op in enumerate(block.ops):
            if op.phase == "forward":
                family[op.name] = family_of(op)
                total = totals.setdefault(op.name, [0, 0, 0, 0])
                moved = 0 if ops.is_free(op, block) else ops.moved_bytes(op, block, shapes)
                for k, amount in enumerate((1, ops.flop(op, shapes), moved)):
                    total[k] += times * amount
                total[3] = max(total[3], options[i])
    flop, moved = (max(1, sum(total[k] for total in totals.values())) for k in (1, 2))
    found = [
        OpCoverage(name, family[name], total[0], total[1] / flop, total[2] / moved, total[3])
        for name, total in totals.items()
    ]
    missing = (
        (name, segment.absolute(fqn))
        for segment in graph.segments
        for name, fqn in unruled(graph.blocks[segment.block])
    )
    return Coverage(
        ops=tuple(sorted(found, key=lambda op: (-op.bytes_share, op.name))), unruled=tuple(dict.fromkeys(missing))
    )


def replicated_warning(graph: ModelGraph) -> tuple[str, ...]:
    """What lies whole on every device for want of a rule, in a line; nothing where all have rules."""
    missing = coverage(graph).unruled
    if not missing:
        return ()
    named = ", ".join(f"{op} in {fqn or graph.name}" for op, fqn in missing[:MOST_NAMED])
    more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
    return (f"no layout rule knows {named}{more}: replicated (meshwright support lists all)",)
