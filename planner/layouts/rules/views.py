"""The same elements under other dims, or some of them: reshaped, permuted, expanded, cut, joined, padded."""

from __future__ import annotations

from planner.graph import Op
from planner.layouts.relations import Dims, Relations, Rule
from planner.layouts.rules.arguments import dim_at, dims_at, ints_at


def _view(relations: Relations, op: Op) -> list[Dims]:
    relations.linear(*op.inputs)
    whole = tuple(atom for factors in relations.of(op.inputs[0]) for atom in factors)
    return [relations.atoms.regroup(whole, relations.shapes[op.outputs[0]], relations.index)]


def _permute(relations: Relations, op: Op) -> list[Dims]:
    relations.linear(*op.inputs)
    dims = relations.of(op.inputs[0])
    rank = len(dims)
    order = list(range(rank))
    if op.name == "permute":
        order = [d % rank for d in ints_at(op, 1)]
    elif rank > 1:
        i, j = (dim_at(op, 1, rank), dim_at(op, 2, rank)) if op.name == "transpose" else (0, 1)
        order[i], order[j] = order[j], order[i]
    return [[dims[i] for i in order]]


def _expand(relations: Relations, op: Op) -> list[Dims]:
    relations.linear(*op.inputs)
    dims, fresh = relations.of(op.inputs[0]), relations.fresh(op.outputs[0])
    lead = len(fresh) - len(dims)
    return [[f if i < lead or not dims[i - lead] else dims[i - lead] for i, f in enumerate(fresh)]]


def _repeat(relations: Relations, op: Op) -> list[Dims]:
    """Copies one after another: a dim becomes (copy, element)."""
    relations.linear(*op.inputs)
    dims, sizes = relations.of(op.inputs[0]), relations.shapes[op.inputs[0]]
    after = relations.shapes[op.outputs[0]]
    lead = len(after) - len(dims)
    copies = [size // max(1, before) for size, before in zip(after, (*(1,) * lead, *sizes), strict=True)]
    new = [relations.atoms.new(count) for count in copies]
    return [[*new[:lead], *((*copy, *dim) for copy, dim in zip(new[lead:], dims, strict=True))]]


def _cut(relations: Relations, op: Op, changed: set[int], *, linear: bool = True) -> list[Dims]:
    """Some dims are needed whole and replaced by others, the rest pass."""
    if linear:
        relations.linear(op.inputs[0])
    before = relations.of(op.inputs[0])
    dims = list(before)
    for d in changed:
        relations.fix(before[d])
        dims[d] = relations.atoms.new(relations.shapes[op.outputs[0]][d])
        relations.bear(dims[d])
    return [dims]


def _slice(relations: Relations, op: Op) -> list[Dims]:
    """One dim is cut, unless it is kept whole."""
    d = dim_at(op, 1, len(relations.shapes[op.inputs[0]]))
    whole = relations.shapes[op.inputs[0]][d] == relations.shapes[op.outputs[0]][d]
    return _cut(relations, op, set() if whole else {d})


def _pad(relations: Relations, op: Op) -> list[Dims]:
    """Pairs (before, after) from the last dim on."""
    pads = ints_at(op, 1)
    rank = len(relations.shapes[op.inputs[0]])
    changed = {rank - 1 - i // 2 for i, pad in enumerate(pads) if pad}
    return _cut(relations, op, changed, linear=not (len(op.args) > 2 and op.args[2]))


def _in_place(relations: Relations, op: Op) -> list[Dims]:
    """Elements change places along some dims: roll and flip."""
    rank = len(relations.shapes[op.inputs[0]])
    relations.linear(op.inputs[0])
    dims = relations.of(op.inputs[0])
    relations.fix(*(dims[d] for d in dims_at(op, 2 if op.name == "roll" else 1, rank)))
    return [dims]


def _triangle(relations: Relations, op: Op) -> list[Dims]:
    relations.linear(op.inputs[0])
    dims = relations.of(op.inputs[0])
    relations.fix(*dims[-2:])
    return [dims]


def _unfold(relations: Relations, op: Op) -> list[Dims]:
    """Windows along one dim, which become the last one."""
    (windows,) = _cut(relations, op, {dim_at(op, 1, len(relations.shapes[op.inputs[0]]))})
    last = relations.atoms.new(relations.shapes[op.outputs[0]][-1])
    relations.bear(last)
    return [[*windows, last]]


def _select(relations: Relations, op: Op) -> list[Dims]:
    relations.linear(op.inputs[0])
    dims = list(relations.of(op.inputs[0]))
    relations.fix(dims.pop(dim_at(op, 1, len(dims))))
    return [dims]


def _split(relations: Relations, op: Op) -> list[Dims]:
    """Equal parts: the dim is (number of parts, part), and only the first is fixed. Unequal parts fix the whole dim."""
    relations.linear(op.inputs[0])
    dims = relations.of(op.inputs[0])
    d = dim_at(op, 2, len(dims))
    sizes = [relations.shapes[v][d] for v in op.outputs]
    if len(set(sizes)) == 1:
        count, part = relations.atoms.regroup(dims[d], (len(sizes), sizes[0]), relations.index)
        relations.fix(count)
        return [[*dims[:d], part, *dims[d + 1 :]] for _ in op.outputs]
    relations.fix(dims[d])
    parts = [relations.atoms.new(size) for size in sizes]
    relations.bear(*parts)
    return [[*dims[:d], part, *dims[d + 1 :]] for part in parts]


def _unbind(relations: Relations, op: Op) -> list[Dims]:
    (dims,) = _select(relations, op)
    return [list(dims) for _ in op.outputs]


def _join(relations: Relations, op: Op) -> list[Dims]:
    """cat and stack: the joined dim is new and fixed, all others are common."""
    relations.linear(*op.inputs)
    out = op.outputs[0]
    rank = len(relations.shapes[out])
    position = next((a for a in reversed(op.args) if type(a) is int), 0)
    d = position % rank
    parts = [relations.of(v) for v in op.inputs]
    if op.name == "stack":
        parts = [[*p[:d], (), *p[d:]] for p in parts]
    joined: Dims = list(parts[0])
    for part in parts[1:]:
        for i in range(rank):
            if i != d:
                relations.unify(joined[i], part[i])
    if op.name == "cat":
        relations.fix(*(part[d] for part in parts))
    joined[d] = relations.atoms.new(relations.shapes[out][d])
    relations.fix(joined[d])
    return [joined]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"), _view),
    **dict.fromkeys(("t", "transpose", "permute"), _permute),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("cat", "stack"), _join),
    **dict.fromkeys(("roll", "flip"), _in_place),
    **dict.fromkeys(("tril", "triu"), _triangle),
    "expand": _expand,
    "repeat": _repeat,
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    "constant_pad_nd": _pad,
    "unfold": _unfold,
}
