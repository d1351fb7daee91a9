"""Fused attention: batch and heads are free; the sequence by implementations that know where a shard begins."""

from __future__ import annotations

from planner import ops
from planner.graph import Op
from planner.layouts.relations import Dims, Relations, Rule
from planner.layouts.rules.arguments import tensors


def _attention(relations: Relations, op: Op) -> list[Dims]:
    """q, k, v [batch, heads, len, dim]. Fewer KV heads: query heads are (KV head, query per KV head)."""
    query, key, value, *masks = tensors(op)
    q, k, v = relations.of(query), relations.of(key), relations.of(value)
    for other in (k, v):
        relations.unify(q[0], other[0])
        if relations.atoms.leaves(other[1]):
            heads, kv_heads = relations.shapes[query][1], relations.shapes[key][1]
            grouped = relations.atoms.regroup(q[1], (kv_heads, heads // kv_heads), relations.index)
            relations.unify(grouped[0], other[1])
    relations.unify(q[3], k[3])
    relations.unify(k[2], v[2])
    relations.fix(q[3], k[2])
    if relations.shapes[query][2] == relations.shapes[key][2]:
        relations.pair(q[2], k[2], (key, value), via="ring")
    relations.share(q[2], via="context_all_gather")
    for mask in masks:
        for ours, theirs in zip(reversed([*q[:3], k[2]]), reversed(relations.of(mask)), strict=False):
            if theirs:
                relations.unify(ours, theirs)
    return [[*q[:3], v[3]], q[:3]]


def _attention_backward(relations: Relations, op: Op) -> list[Dims]:
    given = tensors(op)
    return [list(relations.of(value)) for value in (*given[1:4], *given[6:7])]


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops.ATTENTION, _attention),
    **dict.fromkeys(ops.ATTENTION_BACKWARD, _attention_backward),
}
