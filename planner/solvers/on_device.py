"""A block as one device has it: its share of ``tp``, ``cp`` and ``ep``, and the kernels that run there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from costmodels.compute import DTYPE_BYTES
from hardware_profiles.cluster import Cluster
from planner.execution import Execution
from planner.graph import Block, Phase
from planner.layouts.tensor_parallel import TensorParallel
from planner.plan import ContextKind
from planner.solvers.experts import Experts
from planner.solvers.kernels import Launch, launches
from planner.solvers.local_shapes import LocalShapes, Shape


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """What prices of one block are made of."""

    block: Block
    layout: TensorParallel
    cluster: Cluster
    shapes: LocalShapes
    experts: Experts | None
    """Its routed part, where it has one."""
    tp: int
    sequence_parallel: bool
    cp: int
    context: ContextKind
    ulysses: int
    ep: int
    repeated: bool
    """Low-precision products and recomputation are for repeated blocks."""
    execution: Execution

    @cached_property
    def value_bytes(self) -> list[int]:
        """Bytes of every value as kept in memory."""
        routed = set[int]()
        if self.experts and self.ep > 1:
            routed = {v for i in self.experts.region for v in self.block.ops[i].outputs}
        stored = (self.shapes.routed[v] if v in routed else s for v, s in enumerate(self.shapes.stored))
        return [prod(s) * DTYPE_BYTES[value.dtype] for s, value in zip(stored, self.block.values, strict=True)]

    def whole_bytes(self, v: int) -> int:
        """Bytes of a value within a sharded region: whole, unless sharded over heads or widths."""
        return prod(self.shapes.inside[v]) * DTYPE_BYTES[self.block.values[v].dtype]

    @property
    def held_experts(self) -> frozenset[str]:
        """Parameters of which the device holds some experts only."""
        return self.experts.params if self.experts and self.ep > 1 else frozenset()

    @property
    def param_shapes(self) -> dict[str, Shape]:
        """By relative FQN, without what data parallelism shards."""
        shapes = {fqn: self.shapes.inside[v] for fqn, v in self.block.params}
        for fqn, v in self.block.params:
            if fqn in self.held_experts:
                experts, *inner = self.shapes.routed[v]
                shapes[fqn] = (max(1, experts // self.ep), *inner)
        return shapes

    def kernels(self, phase: Phase) -> list[Launch]:
        """All kernels of a pass, in no particular order, before calibration."""
        return list(
            launches(
                self.block, phase, self.shapes, self.cluster.device, sharded_ops=self.layout.sharded_ops,
                experts=self.experts, cp=self.cp, ep=self.ep, low_precision=self.repeated, execution=self.execution,
            )
        )  # fmt: skip
