"""Elements by index: read (``index``, ``gather``) or written (``index_put``, ``scatter_add``).

The dim that indices count along is needed whole. The indices' own dims are free where elements are read; where they are
added to others, a share of them gives a partial sum.
"""

from __future__ import annotations

from planner.graph import Arg, Op, Ref
from planner.layouts.relations import Dims, Relations, Rule, whole
from planner.layouts.rules.arguments import base_name, dim_at, tensors


def _index_select(relations: Relations, op: Op) -> list[Dims]:
    """x, dim, index [n]: one dim becomes that of the index."""
    relations.linear(op.inputs[0])
    dims = list(relations.of(op.inputs[0]))
    d = dim_at(op, 1, len(dims))
    relations.fix(dims[d])
    (dims[d],) = relations.of(op.inputs[1]) or ((),)
    return [dims]


def _gather(relations: Relations, op: Op) -> list[Dims]:
    """x, dim, index: ``out[i][j] = x[i][index[i][j]]``."""
    x, index = tensors(op)
    relations.linear(x)
    d = dim_at(op, 1, len(relations.shapes[x]))
    relations.fix(*relations.of(x)[d : d + 1])
    _alike(relations, x, index, d)
    return [relations.of(index)]


def _alike(relations: Relations, a: int, b: int, along: int | None = None) -> None:
    """Dims other than ``along`` are the same; where one is longer, its rest is not read and both stay whole."""
    for d, (ours, theirs) in enumerate(zip(relations.of(a), relations.of(b), strict=False)):
        if d == along:
            continue
        if relations.shapes[a][d] == relations.shapes[b][d]:
            relations.unify(ours, theirs)
        else:
            relations.fix(ours, theirs)


def _scatter(relations: Relations, op: Op) -> list[Dims]:
    """base, dim, index[, src]: ``out[i][index[i][j]] = src[i][j]``, or added to it."""
    base, index, *sources = tensors(op)
    d = dim_at(op, 1, len(relations.shapes[base]))
    relations.fix(*relations.of(base)[d : d + 1])
    _alike(relations, base, index, d)
    for source in sources:
        _alike(relations, index, source)
    for counted in relations.of(index)[d : d + 1]:
        if base_name(op) == "scatter_add":
            relations.linear(base, *sources)
            relations.contract(counted)
        else:
            relations.fix(counted)
    return [relations.of(base)]


def _indices(arg: Arg) -> list[int | None]:
    """Per dim of ``x[indices]``: the tensor that indexes it, ``None`` where it is kept."""
    given = arg if isinstance(arg, tuple) and not isinstance(arg, Ref) else ()
    return [a.value if isinstance(a, Ref) else None for a in given]


def _indexed(relations: Relations, op: Op) -> tuple[Dims, Dims, int] | None:
    """Of ``x[indices]``: dims of the indices together, dims of ``x`` that are kept, and where the former are inserted
    among the latter; ``None`` for a mask."""
    x, indices = op.inputs[0], _indices(op.args[1])
    given = [value for value in indices if value is not None]
    if any(relations.block.values[v].dtype == "bool" for v in given):
        return None
    along = [d for d, value in enumerate(indices) if value is not None]
    relations.fix(*(relations.of(x)[d] for d in along))
    together: Dims = [() for _ in range(max(len(relations.shapes[v]) for v in given))]
    for value in given:
        for i, factors in enumerate(reversed(relations.of(value)), start=1):
            if factors and together[-i]:
                relations.unify(together[-i], factors)
            together[-i] = together[-i] or factors
    kept = [dim for d, dim in enumerate(relations.of(x)) if d not in along]
    adjacent = along == list(range(along[0], along[-1] + 1))
    return together, kept, along[0] if adjacent else 0


def _index(relations: Relations, op: Op) -> list[Dims]:
    """``x[indices]``."""
    found = _indexed(relations, op)
    if found is None:
        return whole(relations, op)
    together, kept, at = found
    relations.linear(op.inputs[0])
    return [[*kept[:at], *together, *kept[at:]]]


def _index_put(relations: Relations, op: Op) -> list[Dims]:
    """``base[indices] = values``, or added to it where the last argument says so."""
    found = _indexed(relations, op)
    if found is None:
        return whole(relations, op)
    together, kept, at = found
    base, values = tensors(op)
    for ours, theirs in zip(
        reversed([*kept[:at], *together, *kept[at:]]), reversed(relations.of(values)), strict=False
    ):
        if theirs:
            relations.unify(ours, theirs)
    if len(op.args) > 3 and op.args[3] is True:
        relations.linear(base, values)
        relations.contract(tuple(atom for factors in together for atom in factors))
    else:
        relations.fix(*together)
    return [relations.of(base)]


def _index_add(relations: Relations, op: Op) -> list[Dims]:
    """base, dim, index, source: slices of the source are added to those of the base that the index names."""
    base, index, source = tensors(op)
    d = dim_at(op, 1, len(relations.shapes[base]))
    ours, theirs = relations.of(base), relations.of(source)
    relations.fix(*ours[d : d + 1])
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if i != d:
            relations.unify(a, b)
    relations.unify(theirs[d], relations.of(index)[0])
    relations.contract(theirs[d])
    relations.linear(base, source)
    return [ours]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("scatter", "scatter_add"), _scatter),
    **dict.fromkeys(("index_put", "_unsafe_index_put"), _index_put),
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    "index_select": _index_select,
    "index_add": _index_add,
    "gather": _gather,
}
