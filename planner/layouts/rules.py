"""How ATen operations relate the dims of their tensors: one rule per family, on `Atoms`.

A rule gives the result's atoms and unifies what must be sharded alike. What an operation cannot do on a shard
(normalise, sort or slice along a dim) is *fixed*. An operation without a rule fixes all dims of its arguments: it is
never sharded wrongly, only not at all. Backward operations follow the forward tensors whose gradients they compute
and fix nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from planner import ops
from planner.graph import Arg, Block, Op, Ref
from planner.layouts.atoms import Atoms, Factors

Dims = list[Factors]
"""Atoms of every dim of a tensor."""


@dataclass
class DimFlow:
    """Atoms of all values of a block, found by walking its operations in order."""

    block: Block
    shapes: list[tuple[int, ...]]
    atoms: Atoms = field(default_factory=Atoms)
    dims: dict[int, Dims] = field(default_factory=dict)
    contracted: dict[int, Factors] = field(default_factory=dict)
    """Op index -> atoms that it sums over (matrix products and lookups): sharded, its result is a partial sum."""
    born: list[Factors] = field(default_factory=list)
    """Dims that a forward operation makes of whole arguments (sorted, cut, ...): nothing could hold a shard of them."""
    weights: set[int] = field(default_factory=set)
    """Parameters, and what is a mere copy of them (transposed, cast, reshaped)."""
    index: int = -1
    """The operation being related."""

    def run(self) -> DimFlow:
        gradient_of = {
            grad: param for fqn, grad in self.block.param_grads for name, param in self.block.params if name == fqn
        }
        self.weights.update(v for _, v in self.block.params)
        for index, op in enumerate(self.block.ops):
            self.index = index
            rule = RULES.get(op.name, _pointwise if op.pointwise else _unknown)
            results = rule(self, op)
            for value, dims in zip(op.outputs, results, strict=False):
                self.dims[value] = dims
            if op.name in ops.COPIES and op.inputs and self.weights.issuperset(op.inputs):
                self.weights.update(op.outputs)
            for value in op.outputs:
                if value in gradient_of:
                    self.same(value, gradient_of[value])
        return self

    def of(self, value: int) -> Dims:
        """Atoms of a value; one that comes from outside starts with an atom of its own per dim."""
        if value not in self.dims:
            self.dims[value] = [self.atoms.new(size) for size in self.shapes[value]]
        return self.dims[value]

    def fresh(self, value: int) -> Dims:
        return [self.atoms.new(size) for size in self.shapes[value]]

    def unify(self, a: Factors, b: Factors) -> None:
        self.atoms.unify(a, b, self.index)

    def same(self, a: int, b: int) -> None:
        for x, y in zip(self.of(a), self.of(b), strict=True):
            self.unify(x, y)

    def fix(self, *factors: Factors) -> None:
        if self.block.ops[self.index].phase == "forward":
            for run in factors:
                self.atoms.fix(run, self.index)

    def bear(self, *factors: Factors) -> None:
        if self.block.ops[self.index].phase == "forward":
            self.born.extend(factors)


Rule = Callable[[DimFlow, Op], list[Dims]]


def _dim(op: Op, position: int, rank: int, default: int = 0) -> int:
    arg = op.args[position] if len(op.args) > position else default
    return arg % rank if isinstance(arg, int) and rank else 0


def _dim_list(arg: Arg, rank: int) -> set[int]:
    if isinstance(arg, tuple) and not isinstance(arg, Ref):
        return {a % rank for a in arg if isinstance(a, int)} or set(range(rank))
    return {arg % rank} if isinstance(arg, int) else set(range(rank))


def _unknown(flow: DimFlow, op: Op) -> list[Dims]:
    for value in op.inputs:
        flow.fix(*flow.of(value))
    results = [flow.fresh(value) for value in op.outputs]
    for dims in results:
        flow.bear(*dims)
    return results


def _pointwise(flow: DimFlow, op: Op) -> list[Dims]:
    """Broadcasting: dims are aligned from the right, size 1 matches anything."""
    results = []
    for out in op.outputs:
        dims: Dims = [() for _ in flow.shapes[out]]
        for value in op.inputs:
            for i, factors in enumerate(reversed(flow.of(value)), start=1):
                if not factors:
                    continue
                if dims[-i]:
                    flow.unify(dims[-i], factors)
                else:
                    dims[-i] = factors
        results.append([d or f for d, f in zip(dims, flow.fresh(out), strict=True)])
    return results


def _like_first(flow: DimFlow, op: Op) -> list[Dims]:
    return [flow.of(op.inputs[0]) for _ in op.outputs]


def _allocation(flow: DimFlow, op: Op) -> list[Dims]:
    return [flow.fresh(value) for value in op.outputs]


def _view(flow: DimFlow, op: Op) -> list[Dims]:
    whole = tuple(atom for factors in flow.of(op.inputs[0]) for atom in factors)
    return [flow.atoms.regroup(whole, flow.shapes[op.outputs[0]], flow.index)]


def _permute(flow: DimFlow, op: Op) -> list[Dims]:
    dims = flow.of(op.inputs[0])
    rank = len(dims)
    if op.name == "permute":
        order = [a % rank for a in op.args[1] if isinstance(a, int)] if isinstance(op.args[1], tuple) else []
    else:
        order = list(range(rank))
        i, j = (_dim(op, 1, rank), _dim(op, 2, rank)) if op.name == "transpose" else (0, rank - 1)
        order[i], order[j] = order[j], order[i]
    return [[dims[i] for i in order]]


def _expand(flow: DimFlow, op: Op) -> list[Dims]:
    dims, fresh = flow.of(op.inputs[0]), flow.fresh(op.outputs[0])
    lead = len(fresh) - len(dims)
    return [[f if i < lead or not dims[i - lead] else dims[i - lead] for i, f in enumerate(fresh)]]


def _slice(flow: DimFlow, op: Op) -> list[Dims]:
    """One dim is cut: its atoms are fixed unless it is kept whole."""
    dims = list(flow.of(op.inputs[0]))
    d = _dim(op, 1, len(dims))
    if flow.shapes[op.inputs[0]][d] != flow.shapes[op.outputs[0]][d]:
        flow.fix(dims[d])
        dims[d] = flow.atoms.new(flow.shapes[op.outputs[0]][d])
        flow.bear(dims[d])
    return [dims]


def _select(flow: DimFlow, op: Op) -> list[Dims]:
    dims = list(flow.of(op.inputs[0]))
    flow.fix(dims.pop(_dim(op, 1, len(dims))))
    return [dims]


def _split(flow: DimFlow, op: Op) -> list[Dims]:
    """Equal parts: the dim is (number of parts, part), and only the first is fixed. Unequal parts fix the whole dim."""
    dims = flow.of(op.inputs[0])
    d = _dim(op, 2, len(dims))
    sizes = [flow.shapes[v][d] for v in op.outputs]
    if len(set(sizes)) == 1:
        count, part = flow.atoms.regroup(dims[d], (len(sizes), sizes[0]), flow.index)
        flow.fix(count)
        return [[*dims[:d], part, *dims[d + 1 :]] for _ in op.outputs]
    flow.fix(dims[d])
    parts = [flow.atoms.new(size) for size in sizes]
    flow.bear(*parts)
    return [[*dims[:d], part, *dims[d + 1 :]] for part in parts]


def _unbind(flow: DimFlow, op: Op) -> list[Dims]:
    dims = list(flow.of(op.inputs[0]))
    flow.fix(dims.pop(_dim(op, 1, len(dims))))
    return [list(dims) for _ in op.outputs]


def _join(flow: DimFlow, op: Op) -> list[Dims]:
    """cat and stack: the joined dim is new and fixed, all others are common."""
    out = op.outputs[0]
    rank = len(flow.shapes[out])
    position = next((a for a in reversed(op.args) if type(a) is int), 0)
    d = position % rank
    parts = [flow.of(v) for v in op.inputs]
    if op.name == "stack":
        parts = [[*p[:d], (), *p[d:]] for p in parts]
    joined: Dims = list(parts[0])
    for part in parts[1:]:
        for i in range(rank):
            if i != d:
                flow.unify(joined[i], part[i])
    if op.name == "cat":
        flow.fix(*(part[d] for part in parts))
    joined[d] = flow.atoms.new(flow.shapes[out][d])
    flow.fix(joined[d])
    return [joined]


def _reduce(flow: DimFlow, op: Op) -> list[Dims]:
    """Reduced dims are fixed: what follows (a norm, say) would need the whole sum."""
    dims = flow.of(op.inputs[0])
    reduced = _dim_list(op.args[1] if len(op.args) > 1 else None, len(dims)) if dims else set()
    flow.fix(*(dims[i] for i in reduced))
    kept = [f for i, f in enumerate(dims) if i not in reduced]
    results: list[Dims] = []
    for out in op.outputs:
        keepdim = len(flow.shapes[out]) == len(dims)
        results.append([() if i in reduced else f for i, f in enumerate(dims)] if keepdim else list(kept))
    return results


def _softmax(flow: DimFlow, op: Op) -> list[Dims]:
    dims = flow.of(op.inputs[0])
    if not (op.name == "_log_softmax" and _only_cross_entropy(flow.block, op.outputs[0])):
        flow.fix(dims[_dim(op, 1, len(dims))])
    return [dims]


def _only_cross_entropy(block: Block, log_probs: int) -> bool:
    """Whether log-probabilities serve the cross-entropy alone; it can then run on shards of the classes (loss
    parallel)."""
    readers = [op for op in block.ops if op.phase == "forward" and log_probs in op.inputs]
    return bool(readers) and all(op.name == "nll_loss_forward" for op in readers)


def _loss(flow: DimFlow, op: Op) -> list[Dims]:
    return [flow.fresh(value) for value in op.outputs]


def _layer_norm(flow: DimFlow, op: Op) -> list[Dims]:
    """Results: normalised tensor, then statistics with the normalised dims gone (size 1)."""
    dims = flow.of(op.inputs[0])
    normalised = len(flow.shapes[op.inputs[1]]) if len(op.inputs) > 1 else 1
    for value in op.inputs[1:]:
        for ours, theirs in zip(dims[-normalised:], flow.of(value), strict=True):
            flow.unify(ours, theirs)
    flow.fix(*dims[-normalised:])
    lead = dims[: len(dims) - normalised]
    return [dims, *([*lead, *((),) * (len(flow.shapes[v]) - len(lead))] for v in op.outputs[1:])]


def _batch_norm(flow: DimFlow, op: Op) -> list[Dims]:
    """Per channel: the batch and the positions are summed over, the channels are independent."""
    dims = flow.of(op.inputs[0])
    for value in op.inputs[1:]:
        if len(flow.shapes[value]) == 1:
            flow.unify(dims[1], flow.of(value)[0])
    flow.fix(*dims[2:])
    return [dims, *([dims[1]] if len(flow.shapes[v]) == 1 else flow.fresh(v) for v in op.outputs[1:])]


def _pool(flow: DimFlow, op: Op) -> list[Dims]:
    dims = flow.of(op.inputs[0])
    flow.fix(*dims[2:])
    return [[*dims[:2], *flow.fresh(out)[2:]] for out in op.outputs]


def _contract(flow: DimFlow, a: int, b: int, left: Factors, right: Factors) -> None:
    flow.unify(left, right)
    if not {a, b} & flow.weights:
        flow.fix(left)  # activations times activations: what follows is rarely linear in the sum (attention scores)
    flow.contracted[flow.index] = flow.atoms.leaves(left)


def _matmul(flow: DimFlow, op: Op) -> list[Dims]:
    a, b = (op.inputs * 2)[:2] if len(op.inputs) == 1 else op.inputs[-2:]
    left, right = flow.of(a), flow.of(b)
    _contract(flow, a, b, left[-1], right[-2])
    if len(left) == 3:
        flow.unify(left[0], right[0])
    out: Dims = [*left[:-1], right[-1]]
    if len(op.inputs) == 3:
        for ours, bias in zip(reversed(out), reversed(flow.of(op.inputs[0])), strict=False):
            if bias:
                flow.unify(ours, bias)
    return [out]


def _grouped_matmul(flow: DimFlow, op: Op) -> list[Dims]:
    """[T, k] x [G, k, n] -> [T, n]; [m, T] x [T, n] -> [G, m, n]. Rows belong to groups, so neither T nor G is free."""
    a, b = op.inputs[:2]
    left, right = flow.of(a), flow.of(b)
    if len(left) == 2 and len(right) == 3:
        _contract(flow, a, b, left[1], right[1])
        flow.fix(left[0], right[0])
        return [[left[0], right[2]]]
    if len(left) == 2:
        return [[flow.atoms.new(flow.shapes[op.outputs[0]][0]), left[0], right[1]]]
    return _unknown(flow, op)


def _embedding(flow: DimFlow, op: Op) -> list[Dims]:
    """Rows of the table are looked up: over shards of the rows, the result is a partial sum of zeros and one hit."""
    table, index = flow.of(op.inputs[0]), flow.of(op.inputs[1])
    flow.contracted[flow.index] = flow.atoms.leaves(table[0])
    return [[*index, table[1]]]


def _embedding_backward(flow: DimFlow, op: Op) -> list[Dims]:
    """Rows of the gradient are added up by index into a table."""
    grad, index = flow.of(op.inputs[0]), flow.of(op.inputs[1])
    for ours, theirs in zip(grad, index, strict=False):
        flow.unify(ours, theirs)
    return [[flow.atoms.new(flow.shapes[op.outputs[0]][0]), grad[-1]]]


def _attention(flow: DimFlow, op: Op) -> list[Dims]:
    """q, k, v [batch, heads, len, dim]. Fewer KV heads: query heads are (KV head, query per KV head)."""
    query, key, value, *masks = (arg.value for arg in op.args if isinstance(arg, Ref))
    q, k, v = flow.of(query), flow.of(key), flow.of(value)
    for other in (k, v):
        flow.unify(q[0], other[0])
        if flow.atoms.leaves(other[1]):
            heads, kv_heads = flow.shapes[query][1], flow.shapes[key][1]
            grouped = flow.atoms.regroup(q[1], (kv_heads, heads // kv_heads), flow.index)
            flow.unify(grouped[0], other[1])
    flow.unify(q[3], k[3])
    flow.unify(k[2], v[2])
    flow.fix(q[3], k[2])
    for mask in masks:
        for ours, theirs in zip(reversed([*q[:3], k[2]]), reversed(flow.of(mask)), strict=False):
            if theirs:
                flow.unify(ours, theirs)
    return [[*q[:3], v[3]], q[:3]]


def _attention_backward(flow: DimFlow, op: Op) -> list[Dims]:
    tensors = [arg.value for arg in op.args if isinstance(arg, Ref)]
    return [list(flow.of(value)) for value in (*tensors[1:4], *tensors[6:7])]


def _convolution(flow: DimFlow, op: Op) -> list[Dims]:
    """[n, c_in, ...] * [c_out, c_in, ...] -> [n, c_out, ...]; grouped and depthwise ones are left whole."""
    x, weight = flow.of(op.inputs[0]), flow.of(op.inputs[1])
    if flow.shapes[op.inputs[0]][1] != flow.shapes[op.inputs[1]][1]:
        return _unknown(flow, op)
    _contract(flow, op.inputs[0], op.inputs[1], x[1], weight[1])
    flow.fix(*x[2:], *weight[2:])
    for bias in op.inputs[2:]:
        flow.unify(weight[0], flow.of(bias)[0])
    return [[x[0], weight[0], *flow.fresh(op.outputs[0])[2:]]]


def _like_inputs(*positions: int) -> Rule:
    """A backward call whose results are the gradients of the arguments at ``positions``; where the incoming gradient
    has the shape of the first of them (norms), it lies alike."""

    def rule(flow: DimFlow, op: Op) -> list[Dims]:
        tensors = [arg.value for arg in op.args if isinstance(arg, Ref)]
        if flow.shapes[tensors[0]] == flow.shapes[tensors[positions[0]]] and "norm" in op.name:
            flow.same(tensors[0], tensors[positions[0]])
        by_shape = {
            flow.shapes[value]: value for value in reversed([tensors[p] for p in positions if p < len(tensors)])
        }
        return [
            list(flow.of(by_shape[flow.shapes[out]])) if flow.shapes[out] in by_shape else flow.fresh(out)
            for out in op.outputs
        ]

    return rule


def _index(flow: DimFlow, op: Op) -> list[Dims]:
    """x[index] along the first dim with one index tensor; anything else is unknown."""
    if not _by_rows(op.args[1]):
        return _unknown(flow, op)
    x, index = flow.of(op.inputs[0]), flow.of(op.inputs[1])
    flow.fix(x[0])
    return [[*index, *x[1:]]]


def _by_rows(indices: Arg) -> bool:
    """Whether an ``x[indices]`` names one tensor of indices, for the first dim."""
    return isinstance(indices, tuple) and len(indices) == 1 and isinstance(indices[0], Ref)


def _along(flow: DimFlow, op: Op) -> list[Dims]:
    """topk, sort, cumsum, ...: one dim is fixed, the others pass."""
    dims = flow.of(op.inputs[0])
    ints = [a for a in op.args if type(a) is int][1 if op.name == "topk" else 0 :]
    d = (ints[0] if ints else -1) % len(dims) if dims else 0
    flow.fix(*dims[d : d + 1])
    results = [[f if i != d else flow.fresh(out)[d] for i, f in enumerate(dims)] for out in op.outputs]
    flow.bear(*(result[d] for result in results if result))
    return results


def _scatter_rows(flow: DimFlow, op: Op) -> list[Dims]:
    """index_add / index_put along the first dim: rows of the last argument go into the first; the other dims pass."""
    if not (op.args[1] == 0 if op.name == "index_add" else _by_rows(op.args[1])):
        return _unknown(flow, op)
    base, source = flow.of(op.inputs[0]), flow.of(op.inputs[-1])
    flow.fix(base[0], source[0])
    for ours, theirs in zip(reversed(base[1:]), reversed(source[1:]), strict=False):
        flow.unify(ours, theirs)
    return [base]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze"), _view),
    **dict.fromkeys(("t", "transpose", "permute"), _permute),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _matmul),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "var", "var_mean", "std", "prod", "argmax", "any", "all"), _reduce),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(("_softmax_backward_data", "_log_softmax_backward_data"), _pointwise),
    **dict.fromkeys(("native_layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
                     "cudnn_batch_norm"), _batch_norm),
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d"), _pool),
    **dict.fromkeys(("topk", "sort", "cumsum", "argsort"), _along),
    **dict.fromkeys(("index_add", "index_put", "index_put_", "_unsafe_index_put"), _scatter_rows),
    **dict.fromkeys(("clone", "_to_copy", "native_dropout", "full_like", "zeros_like", "ones_like",
                     "bernoulli_", "bernoulli", "fill_"), _like_first),
    **dict.fromkeys((*ops.ALLOCATION, "new_zeros", "new_ones", "new_full"), _allocation),
    **dict.fromkeys(("cat", "stack"), _join),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(ops.ATTENTION, _attention),
    **dict.fromkeys(ops.ATTENTION_BACKWARD, _attention_backward),
    "native_layer_norm_backward": _like_inputs(1, 4, 5),
    "rms_norm_backward": _like_inputs(1, 3),
    "native_batch_norm_backward": _like_inputs(1, 2),
    "convolution_backward": _like_inputs(1, 2),
    "nll_loss_backward": _like_inputs(1),
    "nll_loss_forward": _loss,
    "copy_": _pointwise,
    "empty_like": _like_first,
    "embedding": _embedding,
    "embedding_dense_backward": _embedding_backward,
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    "_grouped_mm": _grouped_matmul,
    "convolution": _convolution,
    "index": _index,
}  # fmt: skip
