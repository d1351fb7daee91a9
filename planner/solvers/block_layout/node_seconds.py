"""Seconds of the nodes of a block's problem: an operation under each of its strategies, a parameter's update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

import numpy as np

from costmodels import compute, memory
from planner import ops
from planner.layouts.placements import Layout, Shape, local_shape
from planner.layouts.strategies import OpNode
from planner.solvers.block_layout.implementations import implementation_s
from planner.solvers.block_layout.op_seconds import OpSeconds
from planner.solvers.block_layout.strategies import Strategy
from planner.solvers.block_layout.values import BlockValues
from planner.solvers.intra_op.problem import Costs


@dataclass(frozen=True, eq=False)
class NodeSeconds:
    """Prices of one block's nodes."""

    values: BlockValues

    @cached_property
    def kernels(self) -> OpSeconds:
        setting = self.values.setting
        return OpSeconds(self.values.block, setting.cluster.device, setting.execution, self.values.differentiable)

    def of_op(self, op: OpNode, chosen: Sequence[Strategy]) -> Costs:
        """Forward and backward of an operation under its strategies, ``[2, strategies]``, communication inside it
        included."""
        sizes = self.values.mesh.sizes
        whole = dict(enumerate(self.values.shapes))  # also of what is read for its shape alone, and so has no placement
        seconds = np.zeros((2, len(chosen)))
        for i, strategy in enumerate(chosen):
            placed = (*zip(op.inputs, strategy.inputs, strict=True), *zip(op.outputs, strategy.outputs, strict=True))
            local = {v: local_shape(self.values.shapes[v], layout, sizes) for v, layout in placed}
            own_rows = self._devices_with_all_experts(op, strategy)
            shapes = whole | (self._rows_of_one(op, own_rows) if len(op.ops) > 1 else local)
            context = self._ranks(strategy, "ring"), self._ranks(strategy, "context_all_gather")
            computing = self.kernels.seconds(op, shapes, strategy.shares // own_rows, context)
            seconds[:, i] = computing
            for option, ranks in zip(strategy.options, self.values.mesh.groups, strict=True):
                if option.implementation != "local":
                    execution = self.values.setting.execution
                    seconds[:, i] += implementation_s(
                        self.values.block,
                        op,
                        option.implementation,
                        ranks,
                        local,
                        computing,
                        execution,
                        along=option.inputs[0].dim if option.inputs else -1,
                    )
        return seconds

    def _devices_with_all_experts(self, op: OpNode, strategy: Strategy) -> int:
        """Devices that divide a layer's tokens, while each of them reads the weights of all experts."""
        if not any(self.values.block.ops[i].name in ops.GROUPED for i in op.ops):
            return 1
        options = zip(strategy.options, self.values.mesh.sizes, strict=True)
        return prod(n for o, n in options if o.implementation == "local" and o.factor is not None and o.factor >= 0)

    def _rows_of_one(self, op: OpNode, devices: int) -> dict[int, Shape]:
        """Shapes of what has rows of tokens inside of several operations, where devices divide the rows."""
        if devices == 1:
            return {}
        members = [self.values.block.ops[i] for i in op.ops]
        rows = self.values.shapes[members[-1].outputs[0]][0]
        found = {v: self.values.shapes[v] for member in members for v in (*member.inputs, *member.outputs)}
        return {
            v: (ceil(shape[0] / devices), *shape[1:])
            for v, shape in found.items()
            if v not in self.values.weights and shape and shape[0] % rows == 0
        }

    def _ranks(self, strategy: Strategy, implementation: str) -> int:
        named = zip(strategy.options, self.values.mesh.sizes, strict=True)
        return prod(size for option, size in named if option.implementation == implementation)

    def of_update(self, v: int, layout: Layout) -> float:
        """Optimizer step of a parameter's share."""
        if v not in self.values.trained:
            return 0.0
        moved = memory.optimizer_step_bytes(
            precision=self.values.setting.precision, num_states=self.values.setting.num_states,
            numel=float(prod(local_shape(self.values.shapes[v], layout, self.values.mesh.sizes))),
        )  # fmt: skip
        return self.values.setting.execution.factor("optimizer") * compute.memory_bound_s(
            self.values.setting.cluster.device, float(moved), "optimizer"
        )
