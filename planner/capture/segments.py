"""Cut a model's outer joint graph into segments and build the `Block` of each (shapes still plain numbers)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from planner.capture.joint import JointGraph, Observed
from planner.capture.lower import (
    META_TARGETS,
    BlockBuilder,
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


def lower_block(joint: JointGraph) -> Block:
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


def cut(outer: JointGraph, observed: Observed, block_fqns: Sequence[str], block_graphs: Sequence[Block]) -> RawModel:
    """Segments of the outer graph, in execution order. ``block_graphs`` are the blocks of ``observed.calls``."""
    forward = forward_nodes_by_sequence(outer.graph)
    runs = _runs(outer.graph)
    run_of = {node: i for i, run in enumerate(runs) for node in run.nodes}
    for node in outer.graph.nodes:
        if is_call(node) and is_backward(node) and node.target is not torch.ops.meshwright.block_backward.default:
            i = run_of.get(_forward_of(node, forward), len(runs) - 1)
            if runs[i].block is None:
                runs[i].nodes.append(node)
                run_of[node] = i
    needs_grad = _needs_grad(outer, observed)
    inputs, outputs, crossings = _flow(runs, run_of, needs_grad, outer.outputs)

    blocks: list[Block] = []
    block_index: dict[int, int] = {}
    segments: list[Segment] = []
    ancestors = {fqn[:end] for fqn in block_fqns for end in _dots(fqn)} | {""}
    for i, run in enumerate(runs):
        if run.block is not None:
            _, call, position = run.block.args
            assert isinstance(call, int) and isinstance(position, int)
            if call not in block_index:
                block_index[call] = len(blocks)
                blocks.append(block_graphs[call])
            fqn = block_fqns[position]
            segments.append(Segment(block=block_index[call], prefix=fqn, modules=(fqn,)))
        else:
            block = build_block(
                run.nodes,
                params={node: fqn for fqn, node in outer.params.items()},
                inputs=inputs[i],
                outputs=outputs[i],
                param_grads={fqn: node for fqn, node in outer.param_grads.items() if _producer(node, run_of) == i},
                fqn_of=lambda node: node_fqn(_forward_of(node, forward)),
            )
            # A parameter that belongs to no smaller module than one that holds blocks stands for itself.
            owned = [fqn for fqn, _ in block.params if fqn.rpartition(".")[0] in ancestors]
            fqns = [op.fqn for op in block.ops] + owned
            segments.append(Segment(block=len(blocks), prefix="", modules=_outermost(fqns, ancestors)))
            blocks.append(block)
    return RawModel(blocks=tuple(blocks), segments=tuple(segments), crossings=crossings)


def _forward_of(node: fx.Node, forward: Mapping[int, fx.Node]) -> fx.Node:
    return forward.get(node.meta.get("seq_nr", -1), node) if is_backward(node) else node


def _runs(graph: fx.Graph) -> list[_Run]:
    """Forward calls in order, split at block calls; stretches without a kernel of their own join the next run."""
    runs: list[_Run] = []
    stretch = _Run()
    for node in graph.nodes:
        if not is_call(node) or is_backward(node):
            continue
        if node.target is torch.ops.meshwright.block.default:
            if any(not _is_free(n) for n in stretch.nodes):
                runs.append(stretch)
                stretch = _Run()
            runs.append(_Run(block=node, nodes=[node]))
        else:
            stretch.nodes.append(node)
    if stretch.nodes:
        runs.append(stretch)
    return runs


def _is_free(node: fx.Node) -> bool:
    """Whether a call launches no kernel: its result shares memory with an argument."""
    if node.target in META_TARGETS:
        return True
    val = node.meta.get("val")
    sources = {n.meta["val"].untyped_storage()._cdata for n in node.all_input_nodes if _is_tensor(n)}
    return isinstance(val, torch.Tensor) and val.untyped_storage()._cdata in sources


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _needs_grad(outer: JointGraph, observed: Observed) -> set[fx.Node]:
    """Forward nodes through which a gradient flows, by propagation from the trained parameters."""
    trained = {node for node in outer.params.values() if node.meta["val"].is_floating_point()}
    found: set[fx.Node] = set()
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
        elif not _is_tensor(node) or node.meta["val"].is_floating_point():
            if any(n in found or n in trained for n in node.all_input_nodes):
                found.add(node)
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
                origin = _producer(source, run_of)
                if source in needs_grad and origin is not None and origin != i:
                    inputs[i][source] = None
                    outputs[origin][source] = None
                    last_use[source] = i
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


def _values(nodes: Iterable[fx.Node]) -> tuple[Value, ...]:
    builder = BlockBuilder()
    for node in nodes:
        builder.add_value(node.meta["val"])
    first = {value.storage: value for value in reversed(builder.values)}
    return tuple(first[key] for key in sorted(first))


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
