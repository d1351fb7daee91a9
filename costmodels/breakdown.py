"""A price as a sum of named terms: the total is never stored, so it cannot disagree with its parts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Term:
    """One named part of a step's time."""

    name: str
    """Dotted, from coarse to fine: ``compute.gemm``, ``tp.collectives``, ``pp.bubble``."""
    seconds: float
    low_s: float
    """With every overlap that the runtime could give."""
    high_s: float
    """With no overlap at all."""
    evidence: str
    """``measured``, ``datasheet`` or ``derived``."""


@dataclass(frozen=True)
class Breakdown:
    """Terms of one step; ``low_s <= step_s <= high_s`` holds term by term and so for the sums."""

    terms: tuple[Term, ...]

    @property
    def step_s(self) -> float:
        return sum(term.seconds for term in self.terms)

    @property
    def low_s(self) -> float:
        return sum(term.low_s for term in self.terms)

    @property
    def high_s(self) -> float:
        return sum(term.high_s for term in self.terms)

    def seconds(self, prefix: str) -> float:
        """Sum of the terms whose name is ``prefix`` or lies below it."""
        return sum(t.seconds for t in self.terms if t.name == prefix or t.name.startswith(prefix + "."))
