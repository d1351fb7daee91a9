"""One segment's forward pass on one rank: its operations on local tensors, and between them the redistributions that
its layouts ask for. Backward is autograd's.

What depends on nothing but the batch, buffers and constants has no gradient (rotary angles, masks, labels): every rank
computes it whole, in the sequence's own order, and cuts of it what an operation wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from planner.capture.program import SegmentProgram
from planner.errors import UsageError
from planner.graph import Block, Op
from planner.layouts.placements import Layout
from planner.ops import is_free
from planner.runtime.moves import mover
from planner.runtime.nodes import Executed, executed
from planner.runtime.operations import Site, operation
from planner.runtime.parts import AxisGroups, lay, reordered, sequences_of
from planner.runtime.recompute import summed
from planner.solvers.block_layout.detail import Detail, PlacedOp, Redistributed

Form = tuple[int, Layout | None]
"""A value in one layout; ``None``: whole, and the sequence in its own order."""
Step = Callable[[dict[Form, Tensor]], None]


@dataclass(frozen=True)
class LocalProgram:
    """A segment, ready to run on this rank."""

    segment: SegmentProgram
    steps: tuple[Step, ...]
    dropped: tuple[tuple[Form, ...], ...]
    """Per step, what nobody reads after it."""
    given: Mapping[int, Form]
    """How each value of `SegmentProgram.sources` is to be handed in."""
    results: Mapping[int, Form]
    """Slot -> the form that fills it."""

    def __call__(self, sources: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
        """Run it.

        Args:
            sources: by value, what `given` says.
        Returns:
            Tensors of ``results``, in its order.
        """
        held = {self.given[v]: tensor for v, tensor in sources.items()}
        for step, dropped in zip(self.steps, self.dropped, strict=True):
            step(held)
            for form in dropped:
                held.pop(form, None)
        return tuple(held[form] for form in self.results.values())


def local_program(
    segment: SegmentProgram, symbolic: Block, detail: Detail, mesh: AxisGroups, *, batch: int, device: torch.device
) -> LocalProgram:
    """Work out everything but the tensors.

    Args:
        symbolic: the segment's block with sizes as functions of the sequence.
        detail: its layouts over the axes of ``mesh``.
        batch: samples of the microbatch.
    Raises:
        UsageError: a value without a gradient leaves the segment in parts.
    """
    return _Builder(segment, symbolic, detail, mesh, batch, device).build()


def outside_program(
    segment: SegmentProgram, symbolic: Block, results: Mapping[int, int], mesh: AxisGroups, *, batch: int,
    device: torch.device,
) -> LocalProgram:  # fmt: skip
    """What of a segment depends on nothing but the batch, as far as ``results`` (slot -> value) need it."""
    alone = replace(segment, results=results)
    return _Builder(alone, symbolic, None, mesh, batch, device).build()


def outside(segment: SegmentProgram) -> frozenset[int]:
    """Values that depend on no parameter and no activation."""
    block = segment.block
    inside = {*block.inputs, *(v for _, v in block.params)}
    for op in block.ops:
        if op.phase == "forward" and inside.intersection(op.inputs):
            inside.update(op.outputs)
    return frozenset(range(len(block.values))) - inside


@dataclass
class _Builder:
    segment: SegmentProgram
    symbolic: Block
    detail: Detail | None
    mesh: AxisGroups
    batch: int
    device: torch.device
    steps: list[Step] = field(default_factory=list)
    reads: list[list[Form]] = field(default_factory=list)
    """Per step, what it reads and makes."""
    made: set[Form] = field(default_factory=set)

    def build(self) -> LocalProgram:
        block, given = self.segment.block, self._given()
        self.shapes = [value.shape(1, 1) for value in block.values]
        self.outside = outside(self.segment)
        self.made = set(given.values())
        forward = [op for op in block.ops if op.phase == "forward"]
        placed = {op.ops[-1]: op for op in self.detail.ops} if self.detail else {}
        needed = self._needed(forward)
        together = {i for op in placed.values() for i in op.ops if len(op.ops) > 1 and not self._is_outside(op)}
        for i, op in enumerate(forward):
            if self.outside.issuperset(op.outputs) and i not in together:
                if i in needed:
                    self._whole(i)
            elif i in placed:
                for moved in placed[i].redistributed:
                    self._redistribute(moved)
                self._operation(placed[i])
        for moved in self.detail.leaving if self.detail else ():
            self._redistribute(moved)
        results = {slot: self._result(v) for slot, v in self.segment.results.items()}
        read = {form for forms in self.reads for form in forms} | set(results.values())
        return LocalProgram(
            segment=self.segment,
            steps=tuple(self.steps),
            dropped=self._dropped(set(results.values())),
            given={v: form for v, form in given.items() if form in read},
            results=results,
        )

    def _is_outside(self, placed: PlacedOp) -> bool:
        return all(v in self.outside for v, _ in (*placed.inputs, *placed.outputs))

    def _needed(self, forward: Sequence[Op]) -> set[int]:
        """Operations to run: all of them, or of those outside what the results need."""
        if self.detail is not None:
            return set(range(len(forward)))
        wanted, needed = set(self.segment.results.values()), set[int]()
        for i, op in reversed(list(enumerate(forward))):
            if wanted.intersection(op.outputs):
                needed.add(i)
                wanted.update(op.inputs)
        return needed

    def _given(self) -> dict[int, Form]:
        """Parameters as they lie at rest, activations as they arrive, and whole what has no gradient."""
        params = {v: fqn for fqn, v in self.segment.block.params}
        if self.detail is None:
            return {v: (v, None) for v in self.segment.sources if v not in params}
        found: dict[int, Form] = {}
        for v in self.segment.sources:
            if v in params:
                found[v] = v, self.detail.params.get(params[v])
            else:
                found[v] = v, self.detail.entering.get(v)
        return found

    @cached_property
    def _everything(self) -> Site:
        """Where operations run on wholes, with sequences in their own order."""
        return Site(
            block=self.segment.block, symbolic=self.symbolic, shapes=self.shapes, layouts={},
            mesh=replace(self.mesh, zigzag=1), device=self.device, batch=self.batch,
        )  # fmt: skip

    # --- steps -----------------------------------------------------------------------------------------------------

    def _add(self, step: Step, reads: Iterable[Form], makes: Iterable[Form]) -> None:
        self.steps.append(step)
        self.made.update(makes)
        self.reads.append([*reads, *makes])

    def _whole(self, i: int) -> None:
        op = self.segment.block.ops[i]
        run = operation(op, self.segment.calls[i], self._everything)
        inputs: list[Form] = [(v, None) for v in op.inputs]

        def step(held: dict[Form, Tensor]) -> None:
            held.update(((v, None), made) for v, made in run({v: held[v, None] for v, _ in inputs}).items())

        self._add(step, inputs, [(v, None) for v in op.outputs])

    def _have(self, v: int, layout: Layout) -> Form:
        """A value in a layout: as it was brought there, or cut of the whole."""
        form: Form = v, layout
        if form in self.made or v not in self.outside:
            assert form in self.made, (
                f"value {v} is wanted as {layout}: {[f for f in self.made if f[0] == v]} are there"
            )
            return form
        sequences = sequences_of(self.symbolic.values[v].dims, self.batch)

        def step(held: dict[Form, Tensor]) -> None:
            held[form] = lay(reordered(held[v, None], sequences, self.mesh.zigzag), layout, self.mesh)

        self._add(step, [(v, None)], [form])
        return form

    def _redistribute(self, moved: Redistributed) -> None:
        v, shape = moved.value, self.shapes[moved.value]
        if v in self.outside or (v, moved.target) in self.made:
            return
        source, target = self._have(v, moved.source), (v, moved.target)
        moves = [mover(step.move, shape, self.mesh) for step in moved.steps]

        def step(held: dict[Form, Tensor]) -> None:
            part = held[source]
            for change in moves:
                part = change(part)
            held[target] = part

        self._add(step, [source], [target])

    def _operation(self, placed: PlacedOp) -> None:
        inputs = {v: self._have(v, layout) for v, layout in placed.inputs}
        outputs = [(v, layout) for v, layout in placed.outputs]
        run, detached = self._executed(placed), self._detached(placed)
        if len(placed.ops) == 1 and all(self._is_only_summed(v, layout) for v, layout in placed.outputs):
            run = _marked(run)

        def step(held: dict[Form, Tensor]) -> None:
            made = run({v: held[form].detach() if v in detached else held[form] for v, form in inputs.items()})
            for form in outputs:
                held[form] = made[form[0]]

        self._add(step, inputs.values(), outputs)

    def _is_only_summed(self, v: int, layout: Layout) -> bool:
        """Whether a value is a partial sum that nobody reads, if through views, before it is summed."""
        if all(p.kind != "P" for p in layout):
            return False
        assert self.detail is not None
        readers = [op for op in self.detail.ops if (v, layout) in op.inputs]
        return all(
            len(op.ops) == 1
            and is_free(self.segment.block.ops[op.ops[0]], self.segment.block)
            and all(self._is_only_summed(u, placed) for u, placed in op.outputs)
            for op in readers
        )

    def _executed(self, placed: PlacedOp) -> Executed:
        return executed(self.segment, self.symbolic, placed, self.mesh, batch=self.batch, device=self.device)

    def _detached(self, placed: PlacedOp) -> frozenset[int]:
        """Values that the model detaches wherever this operation reads them."""
        return frozenset(v for i in placed.ops for v in self.segment.calls[i].detached)

    # --- results ---------------------------------------------------------------------------------------------------

    def _result(self, v: int) -> Form:
        if v in self.outside:
            return v, None
        assert self.detail is not None
        if v in self.detail.exiting:
            return v, self.detail.exiting[v]
        forms = [form for form in self.made if form[0] == v]
        whole_ones = [f for f in forms if all(p.kind in "RB" for p in f[1] or ())]
        if not whole_ones:
            raise UsageError(
                f"{self.segment.segment.prefix or 'the model'} hands on a tensor without a gradient that ranks hold in "
                f"parts ({forms}): later layers would need all of it. What to do: compute it where it is used."
            )
        return whole_ones[0]

    def _dropped(self, kept: set[Form]) -> tuple[tuple[Form, ...], ...]:
        last = {form: i for i, forms in enumerate(self.reads) for form in forms}
        dropped: list[list[Form]] = [[] for _ in self.steps]
        for form, i in last.items():
            if form not in kept:
                dropped[i].append(form)
        return tuple(map(tuple, dropped))


def _marked(run: Executed) -> Executed:
    """An operation whose result is a partial sum."""

    def marked(held: Mapping[int, Tensor]) -> Mapping[int, Any]:
        with summed():
            return run(held)

    return marked
