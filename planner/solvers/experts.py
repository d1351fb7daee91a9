"""Where a block's tokens are routed to experts, and what expert parallelism changes there.

Over ``ep`` devices each holds ``E / ep`` experts. Tokens leave for their experts and come back by an all-to-all, twice
forward and twice backward; with balanced routing a device then has as many rows as before, but of ``ep`` times as many
tokens per expert (Lepikhin et al. 2020, GShard, section 3.2). Experts are not sharded over ``tp`` then (Megatron-Core's
``expert-tensor-parallel-size 1``): each ``tp`` rank dispatches its own part of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner import ops
from planner.graph import Block
from planner.ops import Gemm


@dataclass(frozen=True)
class Experts:
    """The routed part of one block."""

    params: frozenset[str]
    """Relative FQNs of the experts' parameters."""
    region: frozenset[int]
    """Operations that run on routed tokens: router, permutations, experts; not shared experts."""
    dispatched: int
    """Value that the all-to-all sends: one row per token and expert."""
    combined: int
    """Value that it brings back."""
    num_experts: int


def find_experts(block: Block) -> Experts | None:
    """The routed part of a block, ``None`` where it has no grouped product."""
    grouped = [op for op in block.ops if op.name in ops.GROUPED and op.phase == "forward"]
    if not grouped:
        return None
    held = {block.values[v].storage: fqn for fqn, v in block.params}
    weights = [held.get(block.values[v].storage) for op in grouped for v in op.inputs[1:2]]
    module = grouped[0].fqn.rpartition(".")[0]
    inner = {op.fqn for op in block.ops if op.name in ops.GROUPED or op.name == "topk"}
    region = frozenset(
        i
        for i, op in enumerate(block.ops)
        if op.fqn == module or any(op.fqn == fqn or op.fqn.startswith(f"{fqn}.") for fqn in inner)
    )
    return Experts(
        params=frozenset(fqn for fqn in weights if fqn is not None),
        region=region,
        dispatched=grouped[0].inputs[0],
        combined=grouped[-1].outputs[0],
        num_experts=int(block.values[grouped[0].inputs[1]].dims[0].const),
    )


def exchanged(product: Gemm, ep: int, *, contracts_tokens: bool) -> Gemm:
    """A grouped product after dispatch over ``ep`` devices: fewer experts, each with the rows of all devices.

    Args:
        contracts_tokens: whether tokens are the depth of the product (the gradient of weights) rather than its rows.
    """
    groups = max(1, product.groups // ep)
    factor = product.groups // groups
    if contracts_tokens:
        return replace(product, groups=groups, k=product.k * factor)
    return replace(product, groups=groups, m=product.m * factor)
