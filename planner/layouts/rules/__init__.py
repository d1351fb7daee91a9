"""How ATen operations relate the dims of their tensors: a file per family, a rule per operation.

A rule gives the atoms of the results, unifies what must be sharded alike and states what the operation does to the
rest (`planner.layouts.relations`). The same rules serve the flow through a block and the strategies of one operation.
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.graph import Op
from planner.layouts.relations import Rule, whole
from planner.layouts.rules import (
    allocation,
    attention,
    convolution,
    embedding,
    indexing,
    linear,
    loss,
    norms,
    pointwise,
    reductions,
    routing,
    views,
)
from planner.layouts.rules.arguments import base_name

FAMILIES: Mapping[str, Mapping[str, Rule]] = {
    "pointwise": pointwise.RULES,
    "views": views.RULES,
    "linear": linear.RULES,
    "attention": attention.RULES,
    "embedding": embedding.RULES,
    "norms": norms.RULES,
    "reductions": reductions.RULES,
    "indexing": indexing.RULES,
    "routing": routing.RULES,
    "convolution": convolution.RULES,
    "loss": loss.RULES,
    "allocation": allocation.RULES,
}
"""Family -> operation's name -> rule; one that writes into its first argument (``add_``) has that of ``add``."""

RULES: Mapping[str, Rule] = {name: rule for rules in FAMILIES.values() for name, rule in rules.items()}


def family_of(op: Op) -> str | None:
    """Family of an operation; ``None`` where no rule knows it."""
    named = {op.name, base_name(op)}
    found = next((family for family, rules in FAMILIES.items() if named & rules.keys()), None)
    return "pointwise" if found is None and op.pointwise else found


def rule_of(op: Op) -> Rule:
    """The operation's rule; of one that no rule knows, a rule that keeps everything whole."""
    default = pointwise.elementwise if op.pointwise else whole
    return RULES.get(op.name) or RULES.get(base_name(op), default)
