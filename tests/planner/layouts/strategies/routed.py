"""A layer's routed experts on the ranks of an axis."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from planner.graph import Op
from planner.layouts.placements import Shape
from planner.layouts.strategies import Option
from tests.planner.layouts.strategies.pieces import cut
from tests.planner.layouts.strategies.running import Node, run_op


def by_themselves(node: Node, option: Option, ranks: list[dict[int, Tensor]]) -> list[dict[int, Tensor]]:
    """Every rank does all operations, on its share of the tokens or of the experts' inner width."""
    shares = {v: p for v, p in zip(node.node.outputs, option.outputs, strict=True) if p.kind == "S"}
    results = []
    for r, held in enumerate(ranks):
        shapes = {v: tuple(cut(torch.empty(node.shapes[v]), p, r, len(ranks)).shape) for v, p in shares.items()}
        results.append(_through(node, node.ops, held, shapes, _tokens(node, held)))
    return results


def dispatched(node: Node, option: Option, ranks: list[dict[int, Tensor]]) -> list[dict[int, Tensor]]:
    """Each rank orders its own tokens by expert and sends their rows to the ranks that hold the experts (all-to-all);
    each of these multiplies what it got, expert by expert, and sends it back."""
    last = max(i for i, op in enumerate(node.ops) if op.name == "_grouped_mm")
    first = next(op for op in node.ops if op.name == "_grouped_mm")
    rows, ends, product = first.inputs[0], first.inputs[2], node.ops[last].outputs[0]
    inside = _with_weights(node, rows, last)
    weights = {v for op in inside for v in op.inputs if v in node.node.inputs}
    before = [op for op in node.ops[:last] if op not in inside]
    sent = [_through(node, before, held, {}, _tokens(node, held)) for held in ranks]
    starts = [[0, *held[ends].tolist()] for held in sent]
    held_by_each = (len(starts[0]) - 1) // len(ranks)
    returned: list[list[Tensor]] = [[] for _ in ranks]
    for owner, held in enumerate(ranks):
        for own in range(held_by_each):
            expert = owner * held_by_each + own
            pieces = [there[rows][at[expert] : at[expert + 1]] for there, at in zip(sent, starts, strict=True)]
            given = {v: held[v][own : own + 1] for v in weights}
            given |= {rows: torch.cat(pieces), ends: torch.tensor([sum(map(len, pieces))])}
            result = _through(node, inside, given, {}, None)[product]
            for back, part in zip(returned, result.split([len(piece) for piece in pieces]), strict=True):
                back.append(part)
    unseen = {v: torch.zeros(1) for v in node.node.outputs}  # what is kept for the backward pass is not looked at
    return [
        unseen | _through(node, node.ops[last + 1 :], held | {product: torch.cat(back)}, {}, _tokens(node, held))
        for held, back in zip(sent, returned, strict=True)
    ]


def _with_weights(node: Node, rows: int, last: int) -> list[Op]:
    """What is done with the ordered rows until the last product, and what only weights go through."""
    held, found = {rows}, []
    for op in node.ops[: last + 1]:
        if held.intersection(op.inputs) or (op.inputs and all(len(node.shapes[v]) == 3 for v in op.inputs)):
            found.append(op)
            held.update(op.outputs)
    return found


def _tokens(node: Node, held: Mapping[int, Tensor]) -> tuple[int, int]:
    """Tokens of the whole, and of a rank: read off the first argument that has a row for each."""
    v = next(v for v in node.node.inputs if node.shapes[v][0] % node.num_tokens == 0)
    return node.num_tokens, held[v].shape[0] * node.num_tokens // node.shapes[v][0]


def _through(
    node: Node, ops: list[Op], given: Mapping[int, Tensor], shapes: Mapping[int, Shape], tokens: tuple[int, int] | None
) -> dict[int, Tensor]:
    """Values after some operations; what has rows per token has as many as the rank has tokens."""

    def shape(v: int) -> Shape:
        known = shapes.get(v, node.shapes[v])
        if v not in shapes and tokens and known and known[0] % tokens[0] == 0:
            return known[0] // tokens[0] * tokens[1], *known[1:]
        return known

    held = dict(given)
    for op in ops:
        held.update(run_op(op, held, [shape(v) for v in op.outputs]))
    return held
