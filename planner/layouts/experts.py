"""Where a block's tokens are routed to experts: the part that expert parallelism acts on."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

from planner import ops
from planner.graph import Block


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
    module: str
    """Relative FQN of the module that multiplies."""
    num_experts: int
    top_k: int

    def reached(self, held: int) -> float:
        """Part of the tokens that visit one of ``held`` experts at least (``1 - C(E - h, k) / C(E, k)``)."""
        return 1 - comb(self.num_experts - held, self.top_k) / comb(self.num_experts, self.top_k)


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
        module=grouped[0].fqn,
        num_experts=int(block.values[grouped[0].inputs[1]].dims[0].const),
        top_k=_top_k(block),
    )


def _top_k(block: Block) -> int:
    """Experts of a token: the last choice of a router, which may choose groups first; 1 where there is none."""
    chosen = [op.outputs[0] for op in block.ops if op.name == "topk" and op.phase == "forward"]
    return int(block.values[chosen[-1]].dims[-1].const) if chosen else 1


def routed_ops(block: Block) -> tuple[int, ...]:
    """Forward operations from the ordering of the tokens' visits by expert to the sum of what the experts made of each
    token, in order; empty where a block has no grouped product or does not bring tokens together again.

    Scores and choices are not among them: they act on each token by itself. Tokens are ordered from the first sort on,
    until a sum (or an addition by index) behind the last product brings them together again.
    """
    experts = find_experts(block)
    forward = [i for i, op in enumerate(block.ops) if op.phase == "forward"]
    begin = [i for i in forward if experts and i in experts.region and block.ops[i].name in ("sort", "argsort")]
    if experts is None or not begin:
        return ()
    last = max(i for i in forward if block.ops[i].name in ops.GROUPED)
    ordered: set[int] = set()
    found: set[int] = set()
    combined = False
    for i in forward[forward.index(begin[0]) :]:
        op = block.ops[i]
        if i == begin[0] or ordered.intersection(op.inputs):
            found.add(i)
            if i > last and op.name in COMBINING and "float" in block.values[op.outputs[0]].dtype:
                combined = True
            else:
                ordered.update(op.outputs)
    return tuple(sorted(found | _leading_up(block, experts, found))) if combined else ()


COMBINING = {"sum", "index_add", "index_put", "_unsafe_index_put", "scatter_add"}


def _leading_up(block: Block, experts: Experts, found: set[int]) -> set[int]:
    """Operations whose results only the found ones read, and that are about whole numbers or weights: counts of visits,
    transposed weights."""
    readers: dict[int, set[int]] = {}
    for i, op in enumerate(block.ops):
        if op.phase == "forward":
            for v in op.inputs:
                readers.setdefault(v, set()).add(i)
    weights = {v for _, v in block.params}
    for op in block.ops:
        if op.name in ops.COPIES and op.inputs and weights.issuperset(op.inputs):
            weights.update(op.outputs)
    more: set[int] = set()
    for i, op in reversed(list(enumerate(block.ops))):
        taken = found | more
        if i in experts.region and i not in taken and op.phase == "forward":
            reading = set().union(*(readers.get(v, set()) for v in op.outputs))
            plain = all(v in weights or "float" not in block.values[v].dtype for v in op.inputs)
            if reading and reading <= taken and plain:
                more.add(i)
    return more
