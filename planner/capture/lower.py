"""torch.fx graph of ATen calls -> `Block`s of plain numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from planner.graph import Arg, Block, Dim, Op, Phase, Ref, Value

META_TARGETS = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
"""Calls that autograd inserts for its own bookkeeping: no kernel, no new memory."""


def is_backward(node: fx.Node) -> bool:
    """Whether autograd issued the node."""
    return bool(node.meta.get("autograd_backward"))


def node_fqn(node: fx.Node) -> str:
    """Innermost module that issued the node, relative to the traced module; empty for the module itself."""
    stack = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""


def forward_nodes_by_sequence(graph: fx.Graph) -> dict[int, fx.Node]:
    """Autograd's sequence number -> the first forward node that carries it; backward nodes repeat the number."""
    nodes: dict[int, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function" and not is_backward(node) and "seq_nr" in node.meta:
            nodes.setdefault(node.meta["seq_nr"], node)
    return nodes


@dataclass
class BlockBuilder:
    """Collects the nodes of one segment; values are numbered in the order in which they are first met."""

    index: dict[fx.Node, int | tuple[int, ...]] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    storages: dict[int, int] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)

    def add_value(self, tensor: torch.Tensor) -> int:
        key = tensor.untyped_storage()._cdata
        storage = self.storages.setdefault(key, len(self.storages))
        dims = tuple(Dim(int(size)) for size in tensor.shape)
        self.values.append(Value(dims=dims, dtype=str(tensor.dtype).removeprefix("torch."), storage=storage))
        return len(self.values) - 1

    def value_of(self, node: fx.Node) -> int | tuple[int, ...]:
        """Index of a node's tensor, added as an outside value when the segment has not produced it."""
        if node not in self.index:
            if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
                parent = self.value_of(node.args[0])
                assert isinstance(parent, tuple) and isinstance(node.args[1], int)
                self.index[node] = parent[node.args[1]]
            else:
                self.index[node] = self._add(node.meta.get("val"))
        return self.index[node]

    def _add(self, val: Any) -> int | tuple[int, ...]:
        if isinstance(val, torch.Tensor):
            return self.add_value(val)
        if isinstance(val, tuple | list):
            return tuple(self.add_value(v) if isinstance(v, torch.Tensor) else -1 for v in val)
        return -1

    def add_op(self, node: fx.Node, fqn: str) -> None:
        assert isinstance(node.target, torch._ops.OpOverload)
        args = tuple(self._arg(a) for a in (*node.args, *node.kwargs.values()))
        inputs = tuple(dict.fromkeys(ref.value for ref in _refs(args)))
        out = self.value_of(node)
        outputs = tuple(v for v in (out if isinstance(out, tuple) else (out,)) if v >= 0)
        phase: Phase = "backward" if is_backward(node) else "forward"
        target = str(node.target).removeprefix("aten.").removeprefix("meshwright.")
        self.ops.append(
            Op(
                target=target,
                fqn=fqn,
                phase=phase,
                args=args,
                inputs=inputs,
                outputs=outputs,
                pointwise=torch.Tag.pointwise in node.target.tags,
            )
        )

    def _arg(self, arg: Any) -> Arg:
        if isinstance(arg, fx.Node):
            value = self.value_of(arg)
            return Ref(value) if isinstance(value, int) and value >= 0 else None
        if isinstance(arg, tuple | list):
            return tuple(self._arg(a) for a in arg)
        return arg if isinstance(arg, int | float | bool | str | None) else str(arg)


def _refs(args: Iterable[Arg]) -> Iterable[Ref]:
    for arg in args:
        if isinstance(arg, Ref):
            yield arg
        elif isinstance(arg, tuple):
            yield from _refs(arg)


def is_call(node: fx.Node) -> bool:
    """Whether the node is an operator call, rather than an input, an output or the picking of one result."""
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


@dataclass(frozen=True)
class Lowered:
    """A block, and the nodes that it was made of."""

    block: Block
    nodes: tuple[fx.Node, ...]
    """One per operation."""
    index: Mapping[fx.Node, int | tuple[int, ...]]
    """Every node's value, or values."""


def build_block(
    nodes: Iterable[fx.Node],
    *,
    params: Mapping[fx.Node, str],
    inputs: Iterable[fx.Node],
    outputs: Iterable[fx.Node],
    param_grads: Mapping[str, fx.Node],
    fqn_of: Callable[[fx.Node], str],
) -> Lowered:
    """`Block` of the given call nodes (forward ones first); ``params`` that no node reads are left out."""
    builder = BlockBuilder()
    input_values = [builder.value_of(node) for node in inputs]
    calls = []
    for node in sorted(nodes, key=is_backward):
        if node.target in META_TARGETS:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            builder.index[node] = builder.value_of(source)
        else:
            builder.add_op(node, fqn_of(node))
            calls.append(node)
    # A parameter that only blocks read (as an argument of their call) is counted where its gradient is.
    read = {node: fqn for node, fqn in params.items() if node in builder.index or fqn in param_grads}
    param_values = tuple((fqn, _single(builder.value_of(node))) for node, fqn in read.items())
    output_values = tuple(_single(builder.value_of(node)) for node in outputs)
    grad_values = tuple((fqn, _single(builder.value_of(node))) for fqn, node in param_grads.items())
    block = Block(
        values=tuple(builder.values),
        ops=tuple(builder.ops),
        params=param_values,
        inputs=tuple(_single(v) for v in input_values),
        outputs=output_values,
        param_grads=grad_values,
    )
    return Lowered(block=block, nodes=tuple(calls), index=builder.index)


def _single(value: int | tuple[int, ...]) -> int:
    assert isinstance(value, int)
    return value
