"""What a mesh axis may do to an operation."""

from __future__ import annotations

from dataclasses import dataclass

from planner.layouts.placements import Placement


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run an operation over one mesh axis.

    Strategies over several axes are products of options; axes that take options with one ``factor`` divide it together.
    """

    inputs: tuple[Placement, ...]
    """Per `OpNode.inputs`."""
    outputs: tuple[Placement, ...]
    """Per `OpNode.outputs`."""
    factor: int | None = None
    """Which of the operation's factors is sharded; ``None``: none is."""
    size: int = 1
    """What axes have to divide: the factor, and what lies behind it in every tensor of the operation."""
    uneven: bool = False
    """Whether shards of different sizes are right as well, so that ``size`` need not be a multiple of the axis."""
    implementation: str = "local"
    """``local``: every rank runs the operation on its own tensors and no more. Others communicate inside: their name
    says what is priced (``loss_parallel``, ``halo``, ``ring``, ``dispatch``, ...; docs/layouts.md)."""

    def splits(self, num_ranks: int) -> bool:
        """Whether so many devices can share the factor."""
        if self.factor is None:
            return True
        return self.size % num_ranks == 0 or (self.uneven and -(-self.size // num_ranks) * (num_ranks - 1) < self.size)


@dataclass(frozen=True, slots=True)
class OpNode:
    """A forward operation, or a few that are laid out together (a loss, a layer's experts), and what it may do."""

    ops: tuple[int, ...]
    """Indices into `planner.graph.Block.ops`."""
    inputs: tuple[int, ...]
    """Values that it reads and does not make."""
    outputs: tuple[int, ...]
    """Values that it makes and others read (or the backward pass, or the next block)."""
    options: tuple[Option, ...]
    ruled: bool = True
    """False where no rule knows the operation: it is replicated."""
