"""How a tensor lies over one mesh axis, forward and backward at once.

A value and its gradient are placed together, since each redistribution of the one is the adjoint of one of the other:

=========== ==================================== =================================
placement   value                                gradient
=========== ==================================== =================================
``S(d)``    every rank has its part of dim d     the same part
``R``       every rank has all                   every rank has all
``B``       every rank has all                   a partial sum
``P``       a partial sum                        every rank has all
=========== ==================================== =================================

``B`` (*broadcast*) is what DTensor writes as ``Replicate`` and finds out about in the backward pass; the adjoint of a
broadcast is a sum, so ``B`` and ``P`` are each other's duals and ``R`` and ``S`` their own.

A dim may hold ``chunks`` equal parts one after another, of which each is sharded on its own: ``S(1/3)`` is a fused QKV
sharded by heads, and what a view makes of ``[batch, seq]`` sharded along the sequence is ``S(0/batch)``. DTensor calls
it ``_StridedShard``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

Kind = Literal["S", "R", "B", "P"]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    kind: Kind
    dim: int = -1
    """Of ``S``: the sharded dim."""
    chunks: int = 1
    """Of ``S``: equal runs of the dim, each sharded on its own."""

    @property
    def gradient(self) -> Placement:
        """How the gradient lies, as a value."""
        return {"B": PARTIAL, "P": REPLICATE}.get(self.kind, self)

    def __str__(self) -> str:
        if self.kind != "S":
            return self.kind
        return f"S({self.dim})" if self.chunks == 1 else f"S({self.dim}/{self.chunks})"


REPLICATE = Placement("R")
BROADCAST = Placement("B")
PARTIAL = Placement("P")

Layout = tuple[Placement, ...]
"""One placement per mesh axis, outer to inner: where two shard one dim, the first cuts first."""


def shard(dim: int, chunks: int = 1) -> Placement:
    """``S(dim)`` or ``S(dim/chunks)``."""
    return Placement("S", dim, chunks)


def parse(text: str) -> Placement:
    """A placement from its text.

    Raises:
        ValueError: not ``R``, ``B``, ``P``, ``S(dim)`` or ``S(dim/chunks)``.
    """
    if text in ("R", "B", "P"):
        return Placement(text)  # type: ignore[arg-type]
    match = re.fullmatch(r"S\((\d+)(?:/(\d+))?\)", text)
    if match is None:
        raise ValueError(f"{text!r} is no placement: write R, B, P, S(dim) or S(dim/chunks)")
    return shard(int(match[1]), int(match[2] or 1))


def local_shape(shape: Shape, layout: Layout, sizes: Sequence[int]) -> Shape:
    """Shape on one device: every sharded dim divided by its axes' sizes, rounded up (the padded shard).

    Args:
        sizes: of the mesh axes, in the order of ``layout``.
    """
    local = list(shape)
    for placement, size in zip(layout, sizes, strict=True):
        if placement.kind == "S":
            local[placement.dim] = ceil(local[placement.dim] / size)
    return tuple(local)
