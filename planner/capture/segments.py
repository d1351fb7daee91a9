"""Cut a model's outer joint graph into segments and build the `Block` of each (shapes still plain numbers)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from planner.capture.calls import Observed
from planner.capture.joint import JointGraph
from planner.capture.lower import (
    META_TARGETS,
    BlockBuilder,
    Lowered,
    build_block,
    forward_nodes_by_sequence,
    is_backward,
    is_call,
    node_fqn,
)
from planner.graph import Block, Segment, Value


@dataclass(frozen=True)
class RawModel:
    """A model traced at one batch and sequence length."""

    blocks: tuple[Block, ...]
    segments: tuple[Segment, ...]
    crossings: tuple[tuple[Value, ...], ...]


@dataclass
class _Run:
    """Nodes of one segment of the outer graph while it is being collected."""

    block: fx.Node | None = None
    nodes: list[fx.Node] = field(default_factory=list)


def lower_block(joint: JointGraph) -> Lowered:
    """The `Block` of one distinct block call."""
    forward = forward_nodes_by_sequence(joint.graph)
    return build_block(
        [node for node in joint.graph.nodes if is_call(node)],
        params={node: fqn for fqn, node in joint.params.items()},
        inputs=joint.diff_inputs,
        outputs=joint.outputs,
        param_grads=joint.param_grads,
        fqn_of=lambda node: node_fqn(_forward_of(node, forward)),
    )


def cut(
    outer: JointGraph, observed: Observed, block_fqns: Sequence[str], block_graphs: Sequence[Lowered]
) -> tuple[RawModel, tuple[Lowered, ...]]:
    """Segments of the outer graph, in execution order, and what each was made of; a block's call is the one node of
    its segment.

    Args:
        block_graphs: the blocks of ``observed.calls``.
    """
    forward = forward_nodes_by_sequence(outer.graph)
    runs = _runs(outer.graph, forward)
    run_of = {node: i for i, run in enumerate(runs) for node in run.nodes}
    _add_backward(outer.graph, runs, run_of, forward)
    inputs, outputs, crossings = _flow(runs, run_of, _needs_grad(outer, observed), outer.outputs)
    grad_runs = {fqn: _gradient_run(node, runs, run_of, forward) for fqn, node in outer.param_grads.items()}

    blocks: list[Block] = []
    segments: list[Segment] = []
    made: list[Lowered] = []
    ancestors = {fqn[:end] for fqn in block_fqns for end in _dots(fqn)} | {""}
    for i, run in enumerate(runs):
        if run.block is not None:
            _, call, position = run.block.args
            assert isinstance(call, int) and isinstance(position, int)
            block, prefix = block_graphs[call].block, block_fqns[position]
            modules: tuple[str, ...] = (prefix,)
            made.append(Lowered(block=block, nodes=(run.block,), index={}))
        else:
            prefix = ""
            lowered = build_block(
                run.nodes,
                params={node: fqn for fqn, node in outer.params.items()},
                inputs=inputs[i],
                outputs=outputs[i],
                param_grads={fqn: node for fqn, node in outer.param_grads.items() if grad_runs[fqn] == i},
                fqn_of=lambda node: node_fqn(_forward_of(node, forward)),
            )
            block = lowered.block
            made.append(lowered)
            # A parameter that belongs to no smaller module than one that holds blocks stands for itself.
            owned = [fqn for fqn, _ in block.params if fqn.rpartition(".")[0] in ancestors]
            fqns = [op.fqn for op in block.ops] + owned
            modules = _outermost(fqns, ancestors)
        if block not in blocks:
            blocks.append(block)
        segments.append(Segment(block=blocks.index(block), prefix=prefix, modules=modules))
    return RawModel(blocks=tuple(blocks), segments=tuple(segments), crossings=crossings), tuple(made)


def _forward_of(node: fx.Node, forward: Mapping[int, fx.Node]) -> fx.Node:
    return forward.get(node.meta.get("seq_nr", -1), node) if is_backward(node) else node


def _runs(graph: fx.Graph, forward: Mapping[int, fx.Node]) -> list[_Run]:
    """Forward calls in order, split at block calls. A stretch of mere views before a block is part of no run: what
    they look at passes on as it is."""
    heavy = {_forward_of(n, forward) for n in graph.nodes if is_call(n) and is_backward(n) and not _is_free(n)}
    runs: list[_Run] = []
    stretch = _Run()
    for node in graph.nodes:
        if not is_call(node) or is_backward(node):
            continue
        if node.target is torch.ops.meshwright.block.default:
            if any(n in heavy or not _is_free(n) for n in stretch.nodes):
                runs.append(stretch)
            stretch = _Run()
            runs.append(_Run(block=node, nodes=[node]))
        else:
            stretch.nodes.append(node)
    if stretch.nodes:
        runs.append(stretch)
    return runs


def _add_backward(
    graph: fx.Graph, runs: Sequence[_Run], run_of: dict[fx.Node, int], forward: Mapping[int, fx.Node]
) -> None:
    """Give every backward call to the run of its forward call, and every sum of gradients to the run that needs it."""
    calls = [n for n in graph.nodes if is_call(n) and is_backward(n)]
    calls = [n for n in calls if n.target is not torch.ops.meshwright.block_backward.default]
    sums = []
    for node in calls:
        source = _forward_of(node, forward)
        i = run_of.get(source)
        if source is node or (i is not None and runs[i].block is not None):
            sums.append(node)
        elif i is not None:
            run_of[node] = i
    for node in reversed(sums):
        run_of[node] = _gradient_run(node, runs, run_of, forward)
    for node in calls:
        if node in run_of:
            runs[run_of[node]].nodes.append(node)


def _gradient_run(
    node: fx.Node, runs: Sequence[_Run], run_of: Mapping[fx.Node, int], forward: Mapping[int, fx.Node]
) -> int:
    """The stretch that a gradient belongs to: where it is computed; else, next to the block that reads or yields it."""
    if node in run_of:
        return run_of[node]
    near = [n for n in (*node.users, *reversed(node.all_input_nodes)) if is_backward(n)]
    places = [run_of[n] if n in run_of else run_of.get(_forward_of(n, forward)) for n in near]
    place = next((i for i in places if i is not None), len(runs) - 1)
    stretches = [i for i, run in enumerate(runs) if run.block is None]
    return next((i for i in reversed(stretches) if i <= place), stretches[0])


def _is_free(node: fx.Node) -> bool:
    """Whether a call launches no kernel: its result shares memory with an argument."""
    if node.target in META_TARGETS:
        return True
    val = node.meta.get("val")
    sources = {_storage(n) for n in node.all_input_nodes if _is_tensor(n)}
    return isinstance(val, torch.Tensor) and _storage(node) in sources


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _needs_grad(outer: JointGraph, observed: Observed) -> set[fx.Node]:
    """Forward nodes through which a gradient flows, by propagation from the trained parameters."""
    found = set(outer.trained)
    for node in outer.graph.nodes:
        if is_backward(node) or node.op != "call_function":
            continue
        if node.target is operator.getitem:
            parent, item = node.args
            if parent.target is torch.ops.meshwright.block.default:
                if observed.calls[parent.args[1]].output_likes[item].requires_grad:
                    found.add(node)
            elif parent in found and _is_tensor(node) and node.meta["val"].is_floating_point():
                found.add(node)
        elif node.target in META_TARGETS:
            continue
        elif node.target is torch.ops.meshwright.block.default:
            likes = observed.calls[node.args[1]].input_likes
            found -= {arg for arg, like in zip(node.args[0], likes, strict=True) if not like.requires_grad}
        elif not _is_tensor(node) or node.meta["val"].is_floating_point():
            found |= {node} if found.intersection(node.all_input_nodes) else set()
    return found


def _flow(
    runs: Sequence[_Run], run_of: Mapping[fx.Node, int], needs_grad: set[fx.Node], results: Iterable[fx.Node]
) -> tuple[list[list[fx.Node]], list[list[fx.Node]], tuple[tuple[Value, ...], ...]]:
    """Differentiable inputs and outputs of every run, and what crosses each boundary between runs."""

    inputs: list[dict[fx.Node, None]] = [{} for _ in runs]
    outputs: list[dict[fx.Node, None]] = [{} for _ in runs]
    last_use: dict[fx.Node, int] = {}
    for i, run in enumerate(runs):
        for node in run.nodes:
            if is_backward(node):
                continue
            for source in node.all_input_nodes:
                made = _viewed(source, run_of)
                origin = _producer(made, run_of)
                if source in needs_grad and origin is not None and origin != i:
                    inputs[i][source] = None
                    outputs[origin][made] = None
                    last_use[made] = i
    for node in results:
        origin = _producer(node, run_of)
        if origin is not None:
            outputs[origin][node] = None
    crossings = tuple(
        _values(node for node, last in last_use.items() if (_producer(node, run_of) or 0) <= i < last)
        for i in range(len(runs) - 1)
    )
    return [list(d) for d in inputs], [list(d) for d in outputs], crossings


def _producer(node: fx.Node, run_of: Mapping[fx.Node, int]) -> int | None:
    """Index of the run that computes a node; ``None`` for what is computed in none (parameters, inputs)."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return run_of.get(node)


def _viewed(node: fx.Node, run_of: Mapping[fx.Node, int]) -> fx.Node:
    """What a view that is part of no run looks at."""
    while is_call(node) and node not in run_of:
        node = node.all_input_nodes[0]
    return node


def _values(nodes: Iterable[fx.Node]) -> tuple[Value, ...]:
    """One value per storage: of several views, what they look at."""
    by_storage: dict[int, list[fx.Node]] = {}
    for node in nodes:
        by_storage.setdefault(_storage(node), []).append(node)
    builder = BlockBuilder()
    for views in by_storage.values():
        builder.add_value((views[0] if len(views) == 1 else _base(views[0])).meta["val"])
    return tuple(builder.values)


def _storage(node: fx.Node) -> int:
    return node.meta["val"].untyped_storage()._cdata


def _base(node: fx.Node) -> fx.Node:
    """The tensor that allocated what a view looks at."""
    direct = [
        n for source in node.all_input_nodes for n in ([source] if _is_tensor(source) else source.all_input_nodes)
    ]
    same = [n for n in direct if _is_tensor(n) and _storage(n) == _storage(node)]
    return _base(same[0]) if same else node


def _dots(fqn: str) -> list[int]:
    return [i for i, char in enumerate(fqn) if char == "."]


def _outermost(fqns: Iterable[str], ancestors: set[str]) -> tuple[str, ...]:
    """Shortest prefixes of ``fqns`` that hold no block, in first-seen order."""
    found: dict[str, None] = {}
    for fqn in fqns:
        for end in (*_dots(fqn), len(fqn)):
            if fqn[:end] not in ancestors:
                found[fqn[:end]] = None
                break
    return tuple(found)
