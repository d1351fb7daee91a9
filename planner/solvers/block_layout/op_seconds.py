"""Device seconds of one operation on one device, forward and backward, under a strategy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil, prod

from costmodels import compute
from costmodels.compute import DTYPE_BYTES
from hardware_profiles.cluster import Device
from planner import ops
from planner.execution import Execution
from planner.graph import Block, Op
from planner.layouts.placements import Shape
from planner.layouts.strategies import OpNode
from planner.ops import Gemm
from planner.solvers.kernels import attention_s

Seconds = tuple[float, float]
"""Forward, backward."""

Context = tuple[int, int]


@dataclass
class OpSeconds:
    """Prices of one block's operations; equal calls are priced once."""

    block: Block
    device: Device
    execution: Execution
    differentiable: frozenset[int]
    """Values that have a gradient, trained parameters among them."""
    _known: dict[tuple[object, ...], Seconds] = field(default_factory=dict)

    def seconds(self, node: OpNode, local: Mapping[int, Shape], shares: int, context: Context = (1, 1)) -> Seconds:
        """Kernels of one operation on shapes of one device, without communication.

        Products and attention are priced at their local dims: of the backward pass of ``[m, k] x [k, n]``, ``m n k``
        of either gradient that is wanted. What only moves memory is priced by bytes: forward what it reads and writes,
        backward the same and the incoming gradient once more, or of a lookup the gradient of all that could be looked
        up. Several operations that are laid out together take their ``1 / shares`` of all.

        Args:
            local: shape on one device by value; of nodes with several operations, whole shapes.
            shares: devices among which the operation is divided.
            context: devices that pass keys and values round, and devices that have them all, of an attention whose
                queries they share; causal ones are balanced (`planner.solvers.kernels.attention_s`).
        """
        if len(node.ops) > 1:
            pairs = [self._one(i, local, context) for i in node.ops]
            return sum(f for f, _ in pairs) / shares, sum(b for _, b in pairs) / shares
        return self._one(node.ops[0], local, context)

    def _one(self, index: int, local: Mapping[int, Shape], context: Context) -> Seconds:
        op = self.block.ops[index]
        if ops.is_free(op, self.block):
            return 0.0, 0.0
        key = (index, context, *(local[v] for v in (*op.inputs, *op.outputs)))
        if key not in self._known:
            self._known[key] = self._priced(op, local, context)
        return self._known[key]

    def _priced(self, op: Op, local: Mapping[int, Shape], context: Context) -> Seconds:
        dtype = self.block.values[op.inputs[0]].dtype if op.inputs else "float32"
        wanted = sum(v in self.differentiable for v in op.inputs)
        fused = ops.attention(op, local)
        if fused is not None:
            passed, whole = context
            fused = replace(fused, kv_len=ceil(fused.kv_len / whole))
            forward, backward = (
                self.execution.factor("attention")
                * attention_s(
                    replace(fused, backward=b), dtype, self.device, cp=passed * whole, execution=self.execution
                )
                for b in (False, True)
            )
            return forward, backward if wanted else 0.0
        products = ops.gemms(op, local)
        if products and not ops.is_depthwise(op, products):
            factor = self.execution.factor("gemm")
            moved = ops.moved_bytes(op, self.block, local) if op.name in ops.CONVOLUTION else None
            forward = factor * sum(self._gemm(op, g, dtype, moved) for g in products)
            gradients = (g for p in products for g in (replace(p, n=p.k, k=p.n), replace(p, m=p.n, n=p.k, k=p.m)))
            backward = factor * sum(self._gemm(op, g, dtype, moved) for g in list(gradients)[: min(wanted, 2)])
            return forward, backward
        written = self._bytes(op.outputs, local)
        moved = ops.moved_bytes(op, self.block, local)
        again = (
            self._bytes([v for v in op.inputs if v in self.differentiable], local) if op.name in ops.LOOKUP else moved
        )
        kind: compute.MemoryBound = "norm" if op.name in ops.NORMS else "pointwise"
        factor = self.execution.factor("memory_bound")
        forward = factor * compute.memory_bound_s(self.device, moved, kind)
        return forward, factor * compute.memory_bound_s(self.device, written + again, kind) if wanted else 0.0

    def _bytes(self, values: Iterable[int], local: Mapping[int, Shape]) -> int:
        return sum(prod(local[v]) * DTYPE_BYTES[self.block.values[v].dtype] for v in values)

    def _gemm(self, op: Op, g: Gemm, dtype: str, moved_bytes: float | None) -> float:
        return compute.gemm_s(
            self.device, dtype, batch=g.groups, m=g.m, n=g.n, k=g.k, moved_bytes=moved_bytes,
            grouped=op.name in ops.GROUPED, sustained=True,
        )  # fmt: skip
