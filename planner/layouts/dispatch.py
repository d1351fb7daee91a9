"""The operations of a layer's routed experts by what they act on: what each rank does with its own tokens, and what is
done where the experts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from planner import ops as families
from planner.graph import Op
from planner.layouts.placements import Shape


@dataclass(frozen=True)
class ExpertOps:
    """The operations of a layer's experts by what they act on (`expert_ops`)."""

    ops: Sequence[Op]
    shapes: Sequence[Shape]

    @cached_property
    def products(self) -> list[Op]:
        return [op for op in self.ops if op.name in families.GROUPED]

    @property
    def rows(self) -> int:
        """Value with a row for each visit of a token, ordered by expert."""
        return self.products[0].inputs[0]

    @property
    def ends(self) -> int:
        """Value that says where each expert's rows end."""
        return self.products[0].inputs[2]

    @property
    def product(self) -> int:
        """Value with what the experts made of the rows."""
        return self.products[-1].outputs[0]

    @property
    def num_experts(self) -> int:
        return self.shapes[self.products[0].inputs[1]][0]

    @cached_property
    def inside(self) -> list[Op]:
        """What is done with the ordered rows until the last product, and what only weights go through."""
        held, found = {self.rows}, []
        for op in self.ops[: self.ops.index(self.products[-1]) + 1]:
            weights = bool(op.inputs) and all(len(self.shapes[v]) == 3 for v in op.inputs)
            if weights or held.intersection(op.inputs):
                found.append(op)
                held.update(op.outputs)
        return found

    @cached_property
    def before(self) -> list[Op]:
        return [op for op in self.ops[: self.ops.index(self.products[-1])] if op not in self.inside]

    @property
    def after(self) -> Sequence[Op]:
        return self.ops[self.ops.index(self.products[-1]) + 1 :]

    @cached_property
    def read_inside(self) -> set[int]:
        return {v for op in self.inside for v in op.inputs}

    @cached_property
    def weights(self) -> list[int]:
        """Values with one part for each expert that come from outside."""
        made = {v for op in self.ops for v in op.outputs}
        return [v for v in sorted(self.read_inside) if v not in made and self.shapes[v][:1] == (self.num_experts,)]

    @cached_property
    def per_expert(self) -> set[int]:
        """Weights, and what is made of weights alone."""
        found = set(self.weights)
        for op in self.inside:
            if found.issuperset(op.inputs):
                found.update(op.outputs)
        return found

    @cached_property
    def visits(self) -> set[int]:
        """Values inside that have a row for each visit."""
        return {v for op in self.inside for v in (*op.inputs, *op.outputs)} - self.per_expert - {self.ends}

    @cached_property
    def by_token(self) -> list[int]:
        """Values with rows for each token, or for each visit of one."""
        num_tokens = self.shapes[self.ops[-1].outputs[0]][0]
        every = dict.fromkeys(v for op in self.ops for v in (*op.inputs, *op.outputs))
        return [
            v for v in every
            if self.shapes[v] and self.shapes[v][0] % num_tokens == 0 and v not in self.per_expert
        ]  # fmt: skip


def expert_ops(ops: Sequence[Op], shapes: Sequence[Shape]) -> ExpertOps:
    """Of the node that `planner.layouts.strategies.experts` makes of a layer's experts."""
    return ExpertOps(ops, shapes)
