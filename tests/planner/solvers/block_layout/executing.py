"""Runs a solved segment on the ranks of a mesh, in one process, and compares with the same block on one device.

Parameters and activations are laid as the segment says, every operation runs on every rank under its strategy, and
between them is done what `detail` lists, no more: an operation that wants a layout which nobody brought fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from planner.layouts.placements import Layout, Shape
from planner.layouts.redistribution import absolute
from planner.solvers.block_layout.detail import Detail, PlacedOp, Redistributed, detail
from planner.solvers.block_layout.mesh import LayoutMesh
from planner.solvers.block_layout.model_layout import PlacedSegment
from planner.solvers.block_layout.problem import BlockProblem
from planner.solvers.block_layout.strategies import Strategy
from tests.planner.layouts.strategies import implementations
from tests.planner.layouts.strategies.models import forward
from tests.planner.layouts.strategies.running import Node, run_op
from tests.planner.layouts.test_redistribution import ranks as members
from tests.planner.solvers.block_layout import ranks
from tests.planner.solvers.block_layout.ranks import Parts, close


@dataclass
class Whole:
    """A block on one device: every value of its forward pass, and gradients of what it reads."""

    problem: BlockProblem
    values: dict[int, Tensor] = field(init=False)
    output_grads: dict[int, Tensor] = field(init=False)
    """Random ones."""
    grads: dict[int, Tensor] = field(init=False)
    """Of parameters and of activations from earlier blocks."""

    def __post_init__(self) -> None:
        block, shapes = self.problem.values.block, list(self.problem.values.shapes)
        random = torch.Generator().manual_seed(0)
        given = forward(block, shapes, random)
        for op in block.ops:
            for v in op.outputs:
                given.pop(v, None)
        self.values = {
            v: t.detach().clone().requires_grad_(v in self.wanted and t.is_floating_point()) for v, t in given.items()
        }
        for op in block.ops:
            if op.phase == "forward":
                self.values.update(run_op(op, self.values, [shapes[v] for v in op.outputs]))
        self.output_grads = {v: torch.randn(shapes[v], generator=random, dtype=torch.float64) for v in block.outputs}
        leaves = {v: self.values[v] for v in self.wanted if v in self.values and self.values[v].requires_grad}
        found = torch.autograd.grad(
            [self.values[v] for v in self.output_grads], list(leaves.values()), list(self.output_grads.values()),
            allow_unused=True,
        )  # fmt: skip
        self.grads = {
            v: torch.zeros(shapes[v], dtype=torch.float64) if grad is None else grad
            for v, grad in zip(leaves, found, strict=True)
        }

    @property
    def wanted(self) -> set[int]:
        return {*self.problem.values.block.inputs, *(v for _, v in self.problem.values.block.params)}


@dataclass
class Run:
    """One execution of a segment."""

    segment: PlacedSegment
    mesh: LayoutMesh
    whole: Whole
    said: Detail = field(init=False)
    forms: dict[int, dict[Layout, Parts]] = field(default_factory=dict)
    """Of every value, what ranks hold in each layout that it has been brought to."""

    def check(self) -> None:
        """Assert that all that leaves the block, and all gradients, are those of the whole."""
        problem, block = self.segment.problem, self.segment.problem.values.block
        self.sizes, self.shapes = self.mesh.sizes, problem.values.shapes
        self.said = detail(self.segment, self.mesh)
        given = self._borders(problem.entry, first=True) | {
            v: self.said.params[fqn] for fqn, v in block.params if fqn in self.said.params
        }
        leaves = {v: self._leaf(v, layout) for v, layout in given.items()}
        self.forms = {v: {given[v]: parts} for v, parts in leaves.items()}
        by_ops = {choice.op.ops: i for i, choice in enumerate(problem.choices) if choice.op}
        for op in self.said.ops:
            for moved in op.redistributed:
                self._redistribute(moved)
            node = by_ops[op.ops]
            self._step(op, node, problem.choices[node].strategies[self.segment.choice[node]])
        for moved in self.said.leaving:
            self._redistribute(moved)
        self._compare(leaves, given)

    def _borders(self, node: int | None, *, first: bool) -> dict[int, Layout]:
        """Layouts of activations at the entry (the first node of its edges) or the exit (the second)."""
        problem, found = self.segment.problem, {}
        for pair, edge in zip(problem.problem.edges, problem.edges, strict=True):
            if node is not None and pair[not first] == node:
                found[edge.value] = (edge.have if first else edge.want)[self.segment.choice[node]]
        return found

    def _leaf(self, v: int, layout: Layout) -> Parts:
        parts = ranks.lay(self.whole.values[v], layout, self.sizes)
        return tuple(part.requires_grad_(v in self.whole.grads) for part in parts)

    def _redistribute(self, moved: Redistributed) -> None:
        v, at = moved.value, absolute(moved.source, self.shapes[moved.value], self.sizes)
        have = self._have(v, moved.source)
        for step in moved.steps:
            assert step.move.source == at, f"value {v}: a path of {moved} is broken"
            have, at = ranks.move(have, step.move, self.shapes[v], self.sizes), step.move.target
        assert at == absolute(moved.target, self.shapes[v], self.sizes), f"value {v}: {moved} leads elsewhere"
        self.forms.setdefault(v, {})[moved.target] = have

    def _have(self, v: int, layout: Layout) -> Parts:
        if v not in self.forms:  # from outside without a gradient: there in any layout
            return ranks.lay(self.whole.values[v], layout, self.sizes)
        assert layout in self.forms[v], f"value {v} is wanted as {layout}, ranks hold {list(self.forms[v])}"
        return self.forms[v][layout]

    def _step(self, op: PlacedOp, index: int, strategy: Strategy) -> None:
        found = self.segment.problem.choices[index].op
        assert found is not None
        gradients = self.segment.problem.values.differentiable
        node = Node(self.segment.problem.values.block, self.shapes, found, gradients)
        inputs = {v: self._have(v, layout) for v, layout in op.inputs}
        outputs = self._run(node, strategy, inputs, op)
        for v, layout in op.outputs:
            self.forms[v] = {layout: outputs[v]}
            if v in node.checked and self.whole.values[v].numel():
                whole = ranks.put_together([p.detach() for p in outputs[v]], layout, self.shapes[v], self.sizes)
                names = [o.name for o in node.ops]
                assert close(whole, self.whole.values[v].detach()), f"output {v} of {names} {op} is not the whole's"

    def _run(self, node: Node, strategy: Strategy, inputs: dict[int, Parts], op: PlacedOp) -> dict[int, Parts]:
        local = all(name == "local" for name in op.implementations)
        if local and len(node.ops) == 1:
            return self._locally(node, inputs, op)
        if len(self.sizes) == 1:
            per_rank = [{v: parts[r] for v, parts in inputs.items()} for r in range(self.sizes[0])]
            made = implementations.run(node, strategy.options[0], per_rank)
            outputs = {v: tuple(held[v] for held in made) for v in node.node.outputs}
            return outputs if local else {v: ranks.once(outputs[v], layout) for v, layout in op.outputs}
        placed = dict((*op.inputs, *op.outputs))
        whole = {v: ranks.assemble(p, placed[v], self.shapes[v], self.sizes) for v, p in inputs.items()}
        return {v: ranks.spread(t, placed[v], self.sizes) for v, t in node.run(whole).items()}

    def _locally(self, node: Node, inputs: dict[int, Parts], placed: PlacedOp) -> dict[int, Parts]:
        """Sizes in arguments are those of the part, a mean's divisor that of the whole, a lookup finds its own rows."""
        (op,), results = node.ops, []
        for r, rank in enumerate(members(self.sizes)):
            held = {v: parts[r] for v, parts in inputs.items()}
            shapes: dict[int, Shape] = {
                v: tuple(len(i) for i in ranks.held(layout, self.shapes[v], self.sizes, rank))
                for v, layout in placed.outputs
            }
            if op.name == "embedding":
                table, index = op.inputs[:2]
                rows = ranks.held(dict(placed.inputs)[table], self.shapes[table], self.sizes, rank)[0]
                found = {op.outputs[0]: (held[index].unsqueeze(-1) == rows).double() @ held[table]}
            else:
                found = run_op(op, held, [shapes[v] for v in op.outputs])
            if op.name == "mean":
                v, out = op.inputs[0], op.outputs[0]
                summed = held[v].numel() / found[out].numel()
                found[out] = found[out] * (summed / (prod(self.shapes[v]) / prod(self.shapes[out])))
            results.append(found)
        return {v: tuple(found[v] for found in results) for v in node.node.outputs}

    def _compare(self, leaves: dict[int, Parts], given: dict[int, Layout]) -> None:
        leaving = self._borders(self.segment.problem.exit, first=False)
        outputs, grads = [], []
        for v, layout in leaving.items():
            parts = self._have(v, layout)
            whole = ranks.put_together([p.detach() for p in parts], layout, self.shapes[v], self.sizes)
            assert close(whole, self.whole.values[v].detach()), f"what leaves as {v} is not the whole's"
            laid = ranks.lay(self.whole.output_grads[v], tuple(p.gradient for p in layout), self.sizes)
            outputs += [p for p in parts if p.requires_grad]
            grads += [grad for p, grad in zip(parts, laid, strict=True) if p.requires_grad]
        wanted = [(v, r, part) for v, parts in leaves.items() for r, part in enumerate(parts) if part.requires_grad]
        found = torch.autograd.grad(outputs, [part for *_, part in wanted], grads, allow_unused=True)
        by_value: dict[int, list[Tensor]] = {}
        for (v, _, part), grad in zip(wanted, found, strict=True):
            by_value.setdefault(v, []).append(torch.zeros_like(part) if grad is None else grad)
        for v, parts_of in by_value.items():
            layout = tuple(p.gradient for p in given[v])
            whole = ranks.put_together(parts_of, layout, self.shapes[v], self.sizes)
            assert close(whole, self.whole.grads[v]), f"gradient of {v} ({given[v]}) is not the whole's"
