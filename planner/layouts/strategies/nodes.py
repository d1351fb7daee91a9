"""Forward operations of a block as nodes with options."""

from __future__ import annotations

from collections.abc import Sequence, Set

from planner.graph import Block
from planner.layouts.flow import DimFlow
from planner.layouts.placements import Shape
from planner.layouts.rules import family_of, rule_of
from planner.layouts.rules.allocation import UNREAD
from planner.layouts.strategies.derive import derive
from planner.layouts.strategies.experts import boundary, experts_node
from planner.layouts.strategies.factors import OpFactors
from planner.layouts.strategies.loss import loss_ops
from planner.layouts.strategies.option import OpNode

STATISTICS = {
    "native_layer_norm", "rms_norm", "_fused_rms_norm", "native_group_norm", "native_batch_norm",
    "_native_batch_norm_legit", "attention", "native_dropout", "nll_loss_forward", "max_pool2d_with_indices",
}  # fmt: skip
"""Operations of whose results only the first has a gradient: the others serve the backward pass."""


def block_nodes(block: Block, shapes: Sequence[Shape], trained: Set[int] = frozenset()) -> tuple[OpNode, ...]:
    """Every forward operation in exactly one node, in execution order.

    Args:
        shapes: of the block's values. Options are statements about factors of dims: sizes of the job that is planned
            keep apart what is divided there.
        trained: parameters that have a gradient which another block completes (tied ones).
    """
    flow = DimFlow(block, shapes).run()
    parts = {}

    def parts_of(value: int) -> list[list[int]]:
        if value not in parts:
            atoms = flow.atoms
            parts[value] = [[atoms.size(a) for a in atoms.leaves(run)] for run in flow.of(value)]
        return parts[value]

    gradients = differentiable(block, trained)
    experts = experts_node(flow, gradients)
    runs = loss_ops(block)
    together = {i for run in (*runs, experts.ops if experts else ()) for i in run}
    runs += [(i,) for i, op in enumerate(block.ops) if op.phase == "forward" and i not in together]
    nodes = [node_of(OpFactors(block, shapes, parts_of), run, gradients) for run in runs]
    return tuple(sorted([*nodes, *([experts] if experts else [])], key=lambda node: node.ops[-1]))


def node_of(factors: OpFactors, run: Sequence[int], gradients: Set[int]) -> OpNode:
    """One operation, or a few that follow each other, as a node.

    Args:
        gradients: values that have a gradient.
    """
    members = [factors.block.ops[i] for i in run]
    for op in members:
        factors.dims.update(zip(op.outputs, rule_of(op)(factors, op), strict=False))
    if len(members) == 1:
        (op,) = members
        inputs, outputs = () if op.name in UNREAD else op.inputs, op.outputs
    else:
        inputs, outputs = boundary(factors.block, run)
        factors.linear_in.clear()  # that each is linear does not make all of them so
    options = derive(factors, inputs, outputs, gradients)
    return OpNode(tuple(run), inputs, outputs, tuple(options), ruled=all(family_of(op) for op in members))


def differentiable(block: Block, trained: Set[int] = frozenset()) -> frozenset[int]:
    """Forward values that have a gradient: they depend on trained parameters or on activations from earlier blocks."""
    params = dict(block.params)
    found = {*trained, *block.inputs, *(params[fqn] for fqn, _ in block.param_grads if fqn in params)}
    for op in block.ops:
        if op.phase == "forward" and op.name not in UNREAD and found.intersection(op.inputs):
            results = op.outputs[:1] if op.name in STATISTICS else op.outputs
            found.update(v for v in results if "float" in block.values[v].dtype)
    return frozenset(found)
