"""How ranks run an option: each by itself, or with the communication that the implementation's name stands for.

All ranks are one process, so what is communicated is read off the other ranks' tensors, and autograd gives the adjoint.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt

import torch
from torch import Tensor

from planner.layouts.placements import Placement, Shape
from planner.layouts.strategies import Option
from tests.planner.layouts import aten
from tests.planner.layouts.strategies import routed, statistics
from tests.planner.layouts.strategies.pieces import cut, put_together
from tests.planner.layouts.strategies.running import Node, Ranks, all_reduce, outputs, positions, run_op, tensors_of


def run(node: Node, option: Option, ranks: Ranks) -> Ranks:
    """Outputs on every rank."""
    found = IMPLEMENTATIONS[option.implementation](node, option, ranks)
    return [{v: held[v] for v in node.node.outputs} for held in found]


def _local_shapes(node: Node, option: Option, rank: int, num_ranks: int) -> dict[int, Shape]:
    shapes = dict(enumerate(node.shapes))
    for v, placement in zip(node.node.outputs, option.outputs, strict=True):
        if placement.kind == "S":
            shapes[v] = tuple(cut(torch.empty(node.shapes[v]), placement, rank, num_ranks).shape)
    return shapes


def _local(node: Node, option: Option, ranks: Ranks) -> Ranks:
    """Sizes in arguments are those of the shard, a mean's divisor that of the whole, a lookup finds its own rows."""
    if len(node.ops) > 1:
        return routed.by_themselves(node, option, ranks) if node.is_routed else [node.run(held) for held in ranks]
    (op,) = node.ops
    results = []
    for r, held in enumerate(ranks):
        shapes = _local_shapes(node, option, r, len(ranks))
        if op.name == "embedding":
            table, index = op.inputs[:2]
            rows = positions(node.shapes[table][0], 0, option.inputs[0], r, len(ranks))
            padding = op.args[2] if len(op.args) > 2 else -1  # its row has no gradient
            kept = torch.where((rows == padding).unsqueeze(1), held[table].detach(), held[table])
            found = {op.outputs[0]: (held[index].unsqueeze(-1) == rows).double() @ kept}
        else:
            found = run_op(op, held, [shapes[v] for v in op.outputs])
        if op.name == "mean":
            v, out = op.inputs[0], op.outputs[0]
            shares = held[v].numel() / found[out].numel(), prod(node.shapes[v]) / prod(node.shapes[out])
            found[out] = found[out] * (shares[0] / shares[1])
        results.append(found)
    return results


def _halo(node: Node, option: Option, ranks: Ranks) -> Ranks:
    """Every rank gets of its neighbours the rows that its windows reach into, and pads only at the whole's borders."""
    (op,) = node.ops
    x, out = op.inputs[0], op.outputs[0]
    read = option.inputs[0]
    dim, runs, count = read.dim, option.outputs[0].chunks, len(ranks)
    whole = put_together([held[x] for held in ranks], read)
    size, stride, padding, dilation = aten.window(op, dim - 2, node.shapes)
    fill = float("-inf") if op.name.startswith("max_pool") else 0.0
    results = []
    for r, held in enumerate(ranks):
        mine = positions(node.shapes[out][dim], dim, option.outputs[0], r, count).view(runs, -1)
        parts = []
        for run in mine:
            first, last = int(run[0]) * stride - padding, int(run[-1]) * stride - padding + dilation * (size - 1) + 1
            length = whole.shape[dim]
            rows = whole.narrow(dim, max(0, first), min(length, last) - max(0, first))
            pads = [0, 0] * (whole.dim() - 1 - dim) + [max(0, -first), max(0, last - length)]
            padded = torch.nn.functional.pad(rows, pads, value=fill)
            alone = {**held, x: padded}
            shape = [length if d == dim else size for d, size in enumerate(node.shapes[out])]
            parts.append(run_op(aten.unpadded(op, dim - 2), alone, [tuple(shape)] * len(op.outputs))[out])
        results.append((torch.cat(parts, dim), *(torch.zeros(1) for _ in op.outputs[1:])))
    return outputs(node, results)


def _attention(node: Node, option: Option, ranks: Ranks) -> Ranks:
    """Queries of each rank against keys that travel from rank to rank; or, where all hold all keys, against these."""
    (op,) = node.ops
    query, key, value, *mask = tensors_of(op)[:4]
    places = dict(zip(node.node.inputs, option.inputs, strict=True))
    count = len(ranks)
    rows = [positions(node.shapes[query][2], 2, places[query], r, count) for r in range(count)]
    columns = [positions(node.shapes[key][2], 2, places[key], r, count) for r in range(count)]
    steps = count if places[key].kind == "S" else 1
    results = []
    for r, held in enumerate(ranks):
        q = held[query]
        top = torch.full(q.shape[:3], float("-inf"), dtype=q.dtype)
        total, out = torch.zeros_like(top), torch.zeros(*q.shape[:3], node.shapes[value][3], dtype=q.dtype)
        for step in range(steps):
            owner = (r - step) % count
            k, v = (_every_head(ranks[owner][t], q) for t in (key, value))
            scores = q @ k.transpose(2, 3) / sqrt(q.shape[3])
            if mask and isinstance(mask[0], int):
                given = held[mask[0]]
                scores = scores + (given[..., columns[owner]] if given.shape[-1] > 1 else given)
            if op.args[4] is True:
                later = columns[owner] > rows[r].unsqueeze(1)
                scores = scores.masked_fill(later, float("-inf"))
            highest = torch.maximum(top, scores.amax(3)).detach()
            kept = torch.where(highest.isinf(), 0.0, (top - highest).exp())
            p = (scores - highest.masked_fill(highest.isinf(), 0.0).unsqueeze(3)).exp()
            total, out, top = total * kept + p.sum(3), out * kept.unsqueeze(3) + p @ v, highest
        results.append((out / total.unsqueeze(3), top + total.log()))
    return outputs(node, results)


def _every_head(t: Tensor, q: Tensor) -> Tensor:
    return t.repeat_interleave(q.shape[1] // t.shape[1], 1)


def _loss_parallel(node: Node, option: Option, ranks: Ranks) -> Ranks:
    """Classes are sharded: largest logit, sum of exponentials and the target's log-probability are reduced."""
    loss = node.ops[-1]
    targets = ranks[0][loss.inputs[1]]
    classes = node.shapes[loss.inputs[0]][1]
    logits = [held[node.node.inputs[0]].reshape(len(targets), -1) for held in ranks]
    if len(node.ops) > 1:
        top = torch.stack([x.detach().amax(1, keepdim=True) for x in logits]).amax(0)
        total = all_reduce([(x - top).exp().sum(1, keepdim=True) for x in logits])
        logits = [x - top - total.log() for x in logits]
    picked = []
    for r, x in enumerate(logits):
        mine = positions(classes, 1, Placement("S", 1, option.inputs[0].chunks), r, len(ranks))
        picked.append((x * (targets.unsqueeze(1) == mine)).sum(1))
    counted = targets != loss.args[4]
    total_weight = counted.sum().double() if loss.args[3] else torch.tensor(0.0).double()
    value = -(all_reduce(picked) * counted)
    if loss.args[3]:
        value = value.sum() / (total_weight if loss.args[3] == 1 else 1)
    return [dict.fromkeys(node.node.outputs, x) | {loss.outputs[0]: value, loss.outputs[1]: total_weight}
            for x in logits]  # fmt: skip


def _mean_count(node: Node, option: Option, ranks: Ranks) -> Ranks:
    """Rows are sharded: the rows that count are counted over all ranks, and each divides its own sum by them."""
    *before, loss = node.ops
    found = []
    for held in ranks:
        tensors = dict(held)
        for op in before:
            rows = tensors[op.inputs[0]].shape
            tensors.update(run_op(op, tensors, [tuple(rows)]))
        found.append(tensors)
    counts = [(held[loss.inputs[1]] != loss.args[4]).sum().double() for held in found]
    for held, own in zip(found, counts, strict=True):
        picked = held[loss.inputs[0]].gather(1, held[loss.inputs[1]].clamp(0).unsqueeze(1)).squeeze(1)
        held[loss.outputs[0]] = -(picked * (held[loss.inputs[1]] != loss.args[4])).sum() / all_reduce(counts)
        held[loss.outputs[1]] = own
    return found


IMPLEMENTATIONS: dict[str, Callable[[Node, Option, Ranks], Ranks]] = {
    "local": _local,
    "statistics": statistics.of_rows,
    "sync": statistics.of_channels,
    "halo": _halo,
    "context_all_gather": _attention,
    "ring": _attention,
    "loss_parallel": _loss_parallel,
    "mean_count": _mean_count,
    "dispatch": routed.dispatched,
}
