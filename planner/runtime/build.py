"""From a program and its layouts to this rank's stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from planner.capture.program import ModelProgram, SegmentProgram
from planner.errors import UsageError
from planner.plan import Plan
from planner.runtime.local_program import LocalProgram, local_program, outside, outside_program
from planner.runtime.meshes import Meshes
from planner.runtime.parts import AxisGroups, part_shape
from planner.runtime.placement import holders_of
from planner.runtime.stage import StageModule, Stretch, UnitForward
from planner.solvers.block_layout.detail import Detail
from planner.stages import stage_cuts

Forward = Callable[..., Any]
Wrap = Callable[[int, Forward], Forward]
"""(segment, its forward) -> the forward that runs: recomputation, compilation."""


@dataclass(frozen=True)
class Builder:
    """What all stages of a rank are built from."""

    model: nn.Module
    """With this rank's parts of the parameters."""
    plan: Plan
    program: ModelProgram
    details: Mapping[int, Detail]
    """Layouts by distinct block, over the axes of ``mesh``."""
    mesh: AxisGroups
    meshes: Meshes
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        return stage_cuts(self.program.graph, self.plan.stages)

    @cached_property
    def makers(self) -> dict[int, tuple[int, int]]:
        """Slot -> (segment, value) that fills it."""
        segments = enumerate(self.program.segments)
        return {slot: (i, v) for i, segment in segments for slot, v in segment.results.items()}

    @cached_property
    def outside(self) -> list[frozenset[int]]:
        """Per segment, values that any rank can compute from the batch."""
        return [outside(segment) for segment in self.program.segments]

    def stages(self, wrap: Wrap) -> dict[int, StageModule]:
        """Stages of this rank by number, in order of execution.

        Raises:
            UsageError: a block that is called more than once.
        """
        ranks = self.plan.stage_ranks
        return {i: self._stage(i, wrap) for i, rank in enumerate(ranks) if rank == self.meshes.coordinates["pp"]}

    def _stage(self, number: int, wrap: Wrap) -> StageModule:
        a, b = self.cuts[number], self.cuts[number + 1]
        forwards = [*self._before(a, b), *(self._unit(i, wrap) for i in range(a, b))]
        return StageModule(
            forwards, self.program, first=a == 0, last=b == len(self.program.segments), arriving=self._crossing(a),
            leaving=self._crossing(b), dtype=self.dtype,
        )  # fmt: skip

    def _unit(self, i: int, wrap: Wrap) -> UnitForward:
        segment = self.program.segments[i]
        prefix = segment.segment.prefix
        if prefix:
            unit: nn.Module = self.model.get_submodule(prefix)
            if "forward" in unit.__dict__:
                raise UsageError(
                    f"{prefix} runs more than once in the model's forward: what plans run has every block once. Let "
                    "its calls be modules of their own."
                )
        else:
            names = [s.name for s in segment.sources.values() if s.kind == "param"]
            unit = Stretch({name: self.model.get_parameter(name) for name in names})
        forward = self._forward(unit, segment, self._program(i))
        unit.forward = wrap(i, forward)
        return forward

    def _program(self, i: int) -> LocalProgram:
        index = self.program.graph.segments[i].block
        return local_program(
            self.program.segments[i], self.program.graph.blocks[index], self.details[index], self._axes(i),
            batch=self.plan.candidate.microbatch_size, device=self.device,
        )  # fmt: skip

    def _axes(self, i: int) -> AxisGroups:
        """The axes, with whoever holds the experts of a segment."""
        if self.mesh.experts is None:
            return self.mesh
        holders = holders_of(self.plan, self.program.graph.segments[i].prefix)
        return replace(self.mesh, experts=replace(self.mesh.experts, holders=holders))

    def _forward(self, unit: nn.Module, segment: SegmentProgram, program: LocalProgram) -> UnitForward:
        constants = {v: s.tensor.to(self.device) for v, s in segment.sources.items() if s.tensor is not None}
        return UnitForward(unit, self.model, program, constants)

    # --- what crosses ----------------------------------------------------------------------------------------------

    def _wanted(self, a: int, b: int) -> set[int]:
        """Slots that segments [a, b) read and earlier ones fill."""
        read = {s.slot for segment in self.program.segments[a:b] for s in segment.sources.values() if s.kind == "slot"}
        return {slot for slot in map(self.program.looked_at, read) if slot in self.makers and self.makers[slot][0] < a}

    def _crossing(self, a: int) -> dict[int, Tensor]:
        """What earlier stages hand on at a cut, as empty tensors: not what the batch tells."""
        wanted = sorted(self._wanted(a, len(self.program.segments))) if 0 < a < len(self.program.segments) else []
        crossing = {}
        for slot in wanted:
            i, v = self.makers[slot]
            if v not in self.outside[i]:
                detail = self.details[self.program.graph.segments[i].block]
                value = self.program.segments[i].block.values[v]
                shape = part_shape(detail.exiting[v], value.shape(1, 1), self.mesh)
                crossing[slot] = torch.empty(
                    shape, dtype=getattr(torch, value.dtype), device="meta", requires_grad=True
                )
        return crossing

    def _before(self, a: int, b: int) -> list[UnitForward]:
        """What earlier stages compute from the batch and these segments read: computed here once more."""
        wanted, units = self._wanted(a, b), []
        for i in reversed(range(a)):
            found = {slot: v for slot in wanted if self.makers[slot] == (i, v := self.makers[slot][1])}
            found = {slot: v for slot, v in found.items() if v in self.outside[i]}
            if found:
                segment = self.program.segments[i]
                index = self.program.graph.segments[i].block
                program = outside_program(
                    segment, self.program.graph.blocks[index], found, self.mesh,
                    batch=self.plan.candidate.microbatch_size, device=self.device,
                )  # fmt: skip
                unit = Stretch({})
                forward = self._forward(unit, segment, program)
                unit.forward = forward
                units.append(forward)
                wanted |= {slot for slot in map(self.program.looked_at, forward.reads) if slot in self.makers}
        return units[::-1]
