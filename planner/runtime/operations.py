"""One ATen call on a rank's own tensors: the program's call, with what it says of sizes made local.

`operation` works everything out beforehand and leaves a function of the tensors that a rank holds. Most calls run as
they are. Others say sizes (views, allocations, splits, groups), which are those of the part; or need more than sizes:

- a lookup in a table whose rows are sharded finds what the rank has, zeros for the rest;
- a mean's share is divided by what the whole has;
- random numbers are drawn for the whole, so that ranks with equal seeds draw what one device would, and keep their own;
- fused attention and RMSNorm, which the program names abstractly, run as torch's own on whatever device;
- what counts along a sequence in zig-zag order sees it in its own order.

What a call writes into (``add_``) is written into only where the program looks at it again through another name, or
where it outlives the program (buffers); else the result is a tensor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from planner.capture.program import Call
from planner.graph import Op, Ref
from planner.layouts.rules.arguments import base_name
from planner.runtime.bodies import BODIES
from planner.runtime.parts import Sequences, reordered
from planner.runtime.site import Body, Held, Run, Site


def operation(op: Op, call: Call, site: Site) -> Run:
    """One call as this rank makes it."""
    make = BODIES.get(op.name) or BODIES.get(base_name(op))
    body = make(op, call, site) if make else call.target
    if op.name != base_name(op):
        body = _writing(op, call, site, body)
    body = _in_own_order(op, site, body)
    fill, outputs = _filled(call, site), op.outputs

    def run(held: Held) -> dict[int, Tensor]:
        args, keywords = fill(held)
        found = body(*args, **keywords)
        if isinstance(found, Tensor):
            return {outputs[0]: found} if outputs else {}
        return dict(zip(outputs, (t for t in found if isinstance(t, Tensor)), strict=False))

    return run


def in_turn(ops: Sequence[Op], calls: Sequence[Call], site: Site, keep: Set[int] = frozenset()) -> Run:
    """Operations one after another, each with what the rank holds and what those before it made.

    Args:
        keep: values that are handed on besides those that have a layout.
    """
    runs = [operation(op, call, site) for op, call in zip(ops, calls, strict=True)]
    if len(runs) == 1:
        return runs[0]
    last = {v: i for i, op in enumerate(ops) for v in (*op.outputs, *op.inputs)}
    kept = keep | site.layouts.keys()
    dropped = [[v for v, at in last.items() if at == i and v not in kept] for i in range(len(ops))]

    def run(held: Held) -> dict[int, Tensor]:
        every = dict(held)
        for one, gone in zip(runs, dropped, strict=True):
            every.update(one(every))
            for v in gone:
                every.pop(v, None)
        return {v: t for v, t in every.items() if v not in held}

    return run


def _filled(call: Call, site: Site) -> Callable[[Held], tuple[list[Any], dict[str, Any]]]:
    """The call's arguments, with tensors where it says which."""
    names = list(call.kwargs)
    plain = [_here(arg, site.device) for arg in (*call.args, *call.kwargs.values())]
    refs = [(i, arg.value) for i, arg in enumerate(plain) if isinstance(arg, Ref)]
    dtypes = {v: getattr(torch, site.block.values[v].dtype) for _, v in refs}
    runs = [
        (i, arg) for i, arg in enumerate(plain)
        if isinstance(arg, tuple | list) and not isinstance(arg, Ref) and any(isinstance(a, Ref) for a in arg)
    ]  # fmt: skip
    count, detached = len(call.args), call.detached

    def take(held: Held, v: int) -> Tensor:
        if v not in held:  # an allocation's, which reads its dtype alone
            return torch.empty((), dtype=dtypes[v], device=site.device)
        return held[v].detach() if v in detached else held[v]

    def fill(held: Held) -> tuple[list[Any], dict[str, Any]]:
        args = plain.copy()
        for i, v in refs:
            args[i] = take(held, v)
        for i, run in runs:
            args[i] = [take(held, a.value) if isinstance(a, Ref) else a for a in run]
        return args[:count], dict(zip(names, args[count:], strict=True))

    return fill


def _here(arg: Any, device: torch.device) -> Any:
    return device if isinstance(arg, torch.device) else arg.to(device) if isinstance(arg, Tensor) else arg


def _writing(op: Op, call: Call, site: Site, body: Body) -> Body:
    """An operation that writes into its first argument, or makes a new tensor instead where nobody could tell."""
    written = op.inputs[0]
    aliases = {v for v, value in enumerate(site.block.values) if value.storage == site.block.values[written].storage}
    later = site.block.ops[site.block.ops.index(op) + 1 :]
    if written in site.buffers or any((aliases - {*op.outputs}).intersection(o.inputs) for o in later):
        return body
    name, overload = op.name[:-1], call.target._overloadname
    functional = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if body is call.target and functional is not None and name != "copy":  # which has no derivative
        return functional
    return lambda x, *args, **keywords: body(x.clone(), *args, **keywords)


# Sequences in zig-zag order.


def _in_own_order(op: Op, site: Site, body: Body) -> Body:
    """For what counts along a sequence: whole ones are brought into their own order, and results back."""
    zigzag = site.mesh.zigzag
    if zigzag == 1 or not _counts(op):
        return body
    orders = [_whole_sequences(site, v) for v in _tensors(op)]
    after = [_whole_sequences(site, v) for v in op.outputs]
    if not any(map(any, (*orders, *after))):
        return body

    def ordered(*args: Any, **keywords: Any) -> Any:
        waiting = iter(orders)

        def own(arg: Any) -> Any:
            if isinstance(arg, list) and any(isinstance(a, Tensor) for a in arg):
                return [own(a) for a in arg]
            return reordered(arg, next(waiting), zigzag, back=True) if isinstance(arg, Tensor) else arg

        found = body(*map(own, args), **keywords)
        if isinstance(found, Tensor):
            return reordered(found, after[0], zigzag)
        return tuple(reordered(t, order, zigzag) for t, order in zip(found, after, strict=False))

    return ordered


def _counts(op: Op) -> bool:
    causal = op.name == "attention" and op.args[4] is True
    return causal or base_name(op) in COUNTING


def _tensors(op: Op) -> list[int]:
    """Tensor arguments in the order in which the call has them, in lists too."""
    return [
        a.value
        for arg in op.args
        for a in ((arg,) if isinstance(arg, Ref) or not isinstance(arg, tuple) else arg)
        if isinstance(a, Ref)
    ]


def _whole_sequences(site: Site, v: int) -> Sequences:
    """Sequences of a value in the dims that this rank has whole."""
    return tuple(0 if site.sharded(v, dim) else count for dim, count in enumerate(site.sequences(v)))


COUNTING = {
    "slice", "select", "cat", "stack", "roll", "flip", "tril", "triu", "cumsum", "constant_pad_nd", "unfold", "split",
    "split_with_sizes", "convolution", "index", "index_select", "gather", "scatter", "scatter_add", "index_put",
    "index_add", "_unsafe_index", "_unsafe_index_put", "sort", "argsort", "topk", "argmax", "argmin", "max", "min",
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "arange", "linspace", "eye",
}  # fmt: skip
"""Operations to which it matters where along a sequence an element stands."""
