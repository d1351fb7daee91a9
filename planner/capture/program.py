"""A model as a program that ranks run: the forward ATen calls of every segment, and where their tensors come from.

The program is the same trace as the `ModelGraph` that plans are made from: segment by segment, call by call, value by
value. What differs is that arguments are torch's own objects and sizes are those of one microbatch.

A value that no call makes comes from a *source*: a parameter or buffer by name, a constant, or a *slot*, which stands
for one tensor of the model's outermost forward: an input, or what a segment leaves to later ones.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from planner.capture.joint import JointGraph
from planner.capture.lower import META_TARGETS, Lowered, is_backward, is_call
from planner.capture.one_sample import one_sample
from planner.capture.trace import Inputs, Traced, trace_with
from planner.errors import TraceError
from planner.graph import Block, ModelGraph, Ref, Segment


@dataclass(frozen=True)
class Call:
    """One forward operation: `planner.graph.Op` with torch's own arguments."""

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    """`Ref` in the place of tensors."""
    kwargs: Mapping[str, Any]
    detached: frozenset[int] = frozenset()
    """Values that the model detached before this call reads them."""


@dataclass(frozen=True)
class Source:
    """Where a value comes from."""

    kind: Literal["param", "buffer", "constant", "slot"]
    name: str = ""
    """Of a parameter or buffer: FQN relative to the segment's prefix."""
    slot: int = -1
    tensor: torch.Tensor | None = None
    """A constant."""


@dataclass(frozen=True)
class SegmentProgram:
    """One segment's forward pass."""

    segment: Segment
    block: Block
    """At the sizes of the microbatch."""
    calls: tuple[Call, ...]
    """One per forward operation of ``block``, in order."""
    sources: Mapping[int, Source]
    """Of every value that is read and that no call makes."""
    results: Mapping[int, int]
    """Slot -> the value that fills it."""


@dataclass(frozen=True)
class View:
    """A slot that looks at another one."""

    slot: int
    looked_at: int
    """The other slot."""
    call: Call
    """Whose first argument stands for it."""


@dataclass(frozen=True)
class ModelProgram:
    """A model's forward pass, from a batch to its loss."""

    graph: ModelGraph
    """The same model with symbolic sizes; ``segments`` are its segments."""
    segments: tuple[SegmentProgram, ...]
    inputs: Mapping[int, int]
    """Slot -> index among the tensors of the batch, in pytree order."""
    views: Mapping[int, View]
    loss: int
    """Slot."""

    def looked_at(self, slot: int) -> int:
        """The slot that holds what a slot is a view of, or views of views."""
        while slot in self.views:
            slot = self.views[slot].looked_at
        return slot


def capture_program(
    model: nn.Module,
    inputs: Inputs,
    *,
    batch: int,
    seq_len: int,
    dtype: torch.dtype,
    loss_fn: Callable[..., torch.Tensor] | None = None,
    name: str = "model",
) -> ModelProgram:
    """Trace a model (see `planner.capture.trace.trace`), for running a microbatch of ``batch`` samples.

    Raises:
        TraceError: as `trace`; or the model's outermost forward does what no segment can own.
    """
    graph, traced = trace_with(model, inputs, name=name, seq_len=seq_len, dtype=dtype, loss_fn=loss_fn, batch=batch)
    assert traced
    if any([s.block for s in graph.segments] != [s.block for s in one.raw.segments] for one in traced):
        raise TraceError(
            f"{name} repeats other blocks at {batch} samples of length {seq_len} than at other sizes: a plan needs one "
            "program for every microbatch."
        )
    programs = [_Reader(graph, one).read() for one in traced]
    if len(programs) == 1:
        return programs[0]
    segments, views = one_sample(*((program.segments, program.views) for program in programs))
    return replace(programs[0], segments=segments, views=views)


@dataclass
class _Reader:
    graph: ModelGraph
    traced: Traced
    slots: dict[fx.Node, int] = field(default_factory=dict)

    def read(self) -> ModelProgram:
        outer, made = self.traced.outer, self.traced.made
        owner = {node: i for i, lowered in enumerate(made) for node in lowered.nodes}
        loss, _ = _undetached(outer.results[0])
        segments = [
            self._block(i) if segment.prefix else self._stretch(i, owner)
            for i, segment in enumerate(self.graph.segments)
        ]
        loss_slot = self._slot(loss)
        views = self._views(owner)
        filled: list[dict[int, int]] = [{} for _ in made]
        for node, slot in self.slots.items():
            maker = node.args[0] if node.target is operator.getitem else node
            if isinstance(maker, fx.Node) and maker in owner:
                filled[owner[maker]][slot] = self._value(owner[maker], node)
        inputs = {self.slots[node]: i for i, node in enumerate(outer.inputs) if node in self.slots}
        return ModelProgram(
            graph=self.graph,
            segments=tuple(
                SegmentProgram(s.segment, s.block, s.calls, s.sources, results)
                for s, results in zip(segments, filled, strict=True)
            ),
            inputs=inputs,
            views=views,
            loss=loss_slot,
        )

    def _slot(self, node: fx.Node) -> int:
        return self.slots.setdefault(node, len(self.slots))

    def _value(self, segment: int, node: fx.Node) -> int:
        """The value of a segment that a node of the outer graph stands for."""
        lowered = self.traced.made[segment]
        if self.graph.segments[segment].prefix:
            (call,) = lowered.nodes
            joint, inner = self.traced.calls[call.args[1]]  # type: ignore[index]
            result, _ = _undetached(joint.results[node.args[1]])  # type: ignore[index]
            value = inner.index[result]
        else:
            value = lowered.index[node]
        assert isinstance(value, int)
        return value

    def _stretch(self, i: int, owner: Mapping[fx.Node, int]) -> SegmentProgram:
        outer, lowered = self.traced.outer, self.traced.made[i]

        def source(node: fx.Node) -> Source:
            return _own_source(outer, node) or Source("slot", slot=self._slot(node))

        return self._program(i, lowered, outer, source)

    def _block(self, i: int) -> SegmentProgram:
        (call,) = self.traced.made[i].nodes
        joint, lowered = self.traced.calls[call.args[1]]  # type: ignore[index]
        given = dict(zip(joint.inputs, call.args[0], strict=True))  # type: ignore[arg-type]

        def source(node: fx.Node) -> Source:
            if node in given:
                outside, _ = _undetached(given[node])  # type: ignore[arg-type]
                if outside in self.traced.outer.params.values():
                    where = self.graph.segments[i].prefix
                    raise TraceError(f"{where} is given a parameter as an argument: let it hold the parameter itself.")
                return Source("slot", slot=self._slot(outside))
            found = _own_source(joint, node)
            assert found is not None, f"{node} of {self.graph.segments[i].prefix} comes from nowhere"
            return found

        return self._program(i, lowered, joint, source)

    def _program(
        self, i: int, lowered: Lowered, joint: JointGraph, source: Callable[[fx.Node], Source]
    ) -> SegmentProgram:
        handed = set(joint.inputs)
        calls, made = [], set[int]()
        sources: dict[int, Source] = {}
        for op, node in zip(lowered.block.ops, lowered.nodes, strict=True):
            if op.phase == "backward":
                break
            detached = set()
            for argument in _nodes((node.args, node.kwargs)):
                base, cut = _undetached(argument, handed)
                value = lowered.index.get(argument)
                if cut and isinstance(value, int):
                    detached.add(value)
                origin = base.args[0] if base.target is operator.getitem else base
                if isinstance(value, int) and value >= 0 and value not in made and value not in sources:
                    assert isinstance(origin, fx.Node)
                    sources[value] = source(base)

            def taken(argument: fx.Node) -> Any:
                value = lowered.index.get(argument, -1)
                return Ref(value) if isinstance(value, int) and value >= 0 else None

            calls.append(
                Call(
                    target=node.target,  # type: ignore[arg-type]
                    args=fx.map_arg(node.args, taken),
                    kwargs=fx.map_arg(node.kwargs, taken),
                    detached=frozenset(detached),
                )
            )
            made.update(op.outputs)
        for value in lowered.block.inputs:  # those that only pass through
            if value not in sources:
                node = next(n for n in joint.inputs if lowered.index.get(n) == value)
                sources[value] = source(node)
        segment = self.graph.segments[i]
        return SegmentProgram(segment, lowered.block, tuple(calls), sources, {})

    def _views(self, owner: Mapping[fx.Node, int]) -> dict[int, View]:
        """Slots that stand for views between segments, and whatever they look at."""
        outer, views = self.traced.outer, dict[int, View]()
        waiting = list(self.slots)
        while waiting:
            node = waiting.pop()
            maker = node.args[0] if node.target is operator.getitem else node
            if not is_call(node) or maker in owner:
                continue
            (looked_at,) = node.all_input_nodes
            base, _ = _undetached(looked_at)
            if base in outer.params.values() or base in outer.constants or is_backward(node):
                raise TraceError(f"the model takes {node.target} of a parameter between its blocks: do it in a module.")
            if base not in self.slots:
                waiting.append(base)
            call = Call(node.target, fx.map_arg(node.args, lambda _: Ref(0)), dict(node.kwargs))  # type: ignore[arg-type]
            views[self.slots[node]] = View(self.slots[node], self._slot(base), call)
        return views


def _own_source(joint: JointGraph, node: fx.Node) -> Source | None:
    """Parameters, buffers and constants of a graph."""
    for kind, named in (("param", joint.params), ("buffer", joint.buffers)):
        fqn = next((fqn for fqn, n in named.items() if n is node), None)
        if fqn is not None:
            return Source(kind, fqn)  # type: ignore[arg-type]
    if node in joint.constants:
        tensor = joint.constants[node]
        return Source("constant", tensor=getattr(tensor, "constant", None) if _is_fake(tensor) else tensor)
    return None


def _is_fake(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)


def _undetached(node: fx.Node, handed: set[fx.Node] | None = None) -> tuple[fx.Node, bool]:
    """What a chain of detachments and aliases (whole slices) begins with, and whether the model detached in it: inputs
    of a block are detached once by the tracing itself."""
    cut = False
    while node.target in META_TARGETS:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        cut = cut or (node.target is torch.ops.aten.detach.default and source not in (handed or ()))
        node = source
    return node, cut


def _nodes(args: Any) -> Iterator[fx.Node]:
    for leaf in pytree.tree_leaves(args, is_leaf=lambda a: isinstance(a, fx.Node)):
        if isinstance(leaf, fx.Node):
            yield leaf
