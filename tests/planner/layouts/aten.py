"""One call of a traced block on plain float64 tensors, by ATen itself where it has the operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor

from planner.graph import Op

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other

EPS = 1e-5
"""Of RMSNorm, where a call does not say."""
ALLOCATIONS = {"new_zeros", "new_empty", "new_ones", "new_full", "zeros_like", "ones_like", "empty_like", "full_like"}
SIZED = ALLOCATIONS | {"slice_backward", "select_backward"}


def execute(op: Op, args: list[Any], shapes: list[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """One call on plain tensors, its size arguments replaced by the sizes of its results."""
    if op.name in {"view", "_unsafe_view", "reshape"}:
        return (args[0].reshape(shapes[0]),)
    if op.name == "repeat":
        sizes = (*(1,) * (len(shapes[0]) - args[0].dim()), *args[0].shape)
        return (args[0].repeat([after // before for after, before in zip(shapes[0], sizes, strict=True)]),)
    if op.name == "expand":
        return (args[0].expand(shapes[0]),)
    if op.name == "attention":
        return _attention(*args[:5])
    if op.name == "attention_backward":
        return _attention_backward(*args)
    if op.name == "rms_norm":
        x, weight, num_dims, *eps = args
        root = x.square().mean(tuple(range(-num_dims, 0)), keepdim=True).add(*eps or (EPS,)).rsqrt()
        return x * root * (1.0 if weight is None else weight), root
    if op.name == "rms_norm_backward":
        grad, x, root, weight, _ = args
        scaled = grad * weight
        along = (scaled * x).mean(-1, keepdim=True) * x * root**3
        return scaled * root - along, (grad * x * root).flatten(0, -2).sum(0)
    if op.name == "_grouped_mm":
        return (_grouped(*args[:3]),)
    if op.name == "_to_copy":
        dtype = next((_plain(a) for a in args[1:] if isinstance(_plain(a), torch.dtype)), args[0].dtype)
        return (args[0].to(dtype, copy=True),)
    if op.name.startswith("rand"):
        return (torch.full(shapes[0], 0.5, dtype=torch.float64),)  # the same numbers on every rank
    if op.name.startswith(("empty", "new_empty")):
        like = args[0] if isinstance(args[0], Tensor) else torch.zeros(0, dtype=torch.float64)
        dtypes = [found for found in map(_plain, args) if isinstance(found, torch.dtype)]
        return (torch.zeros(shapes[0], dtype=next(iter(dtypes), like.dtype)),)  # whatever was there: the same for all
    if op.name.endswith("_like"):
        args[0] = args[0].new_empty(shapes[0])
    elif op.name in SIZED:
        args[1] = shapes[0]
    elif op.target == "arange.default":
        args[0] = shapes[0][0]
    elif op.name in {"zeros", "ones", "full"}:
        args[0] = shapes[0]
    elif op.name == "native_group_norm":
        samples, channels, *positions = args[0].shape
        args[3:7] = [samples, channels, prod(positions), shapes[1][1]]
    elif op.name == "_adaptive_avg_pool2d":
        args[1] = shapes[0][-2:]
    elif op.name == "convolution":
        args[8] = args[0].shape[1] // args[1].shape[0 if args[6] else 1]
    elif op.name == "native_dropout":
        args[1] = 0.0  # which elements are dropped differs from shard to shard
    if op.name.startswith("split"):
        dim = args[2] if len(args) > 2 else 0
        sizes = [shape[dim] for shape in shapes]
        args[1] = sizes if op.name == "split_with_sizes" else sizes[0]
    if op.name == "convolution_backward":
        args[3] = [args[2].shape[0]]
    return call(op, args)


def call(op: Op, args: list[Any]) -> tuple[Tensor, ...]:
    """One call as it is, by ATen."""
    positional, keywords = _bind(op, args)
    result = _overload(op)(*positional, **keywords)
    found = result if isinstance(result, tuple | list) else (result,)
    return tuple(t for t in found if isinstance(t, Tensor) and t is not None)


def window(op: Op, dim: int, shapes: Sequence[tuple[int, ...]]) -> tuple[int, int, int, int]:
    """Size, stride, padding and dilation of a convolution's or a pooling's window along its ``dim``-th position."""
    convolution = op.name == "convolution"
    sizes = shapes[op.inputs[1]][2:] if convolution else op.args[1]
    given = (sizes, *(op.args[3:6] if convolution else op.args[2:4]))
    size, stride, padding, dilation = (*(_at(g, dim) for g in given), None, None, None, None)[:4]
    return size or 1, stride or (1 if convolution else size) or 1, padding or 0, dilation or 1


def _at(arg: Any, dim: int) -> int | None:
    return (arg[dim] if len(arg) > 1 else arg[0]) if isinstance(arg, tuple) and arg else None


def unpadded(op: Op, dim: int) -> Op:
    """The operation without its padding along the ``dim``-th position."""
    place = 4 if op.name == "convolution" else 3
    given = op.args[place] if len(op.args) > place else ()
    if not isinstance(given, tuple) or not given:
        return op
    every = given if len(given) > 1 or op.name == "convolution" else given * 2
    without = tuple(0 if i == dim else p for i, p in enumerate(every))
    return replace(op, args=(*op.args[:place], without, *op.args[place + 1 :]))


def _overload(op: Op) -> Any:
    name, _, overload = op.target.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def _bind(op: Op, args: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments again, from the run in which capture keeps them."""
    schema = _overload(op)._schema.arguments
    places = sum(not a.kwarg_only for a in schema)
    rest = [a.name for a in schema if a.kwarg_only]
    count = next((i for i, a in enumerate(args) if isinstance(_plain(a), _OPTIONS) and rest), places)
    keywords: dict[str, Any] = {}
    for value in map(_plain, args[min(count, places) :]):
        kind = next((name for option, name in _OPTION_NAMES.items() if isinstance(value, option)), None)
        name = kind if kind in rest else rest[0]
        keywords[name] = value
        rest = rest[rest.index(name) + 1 :]
    return [_plain(a) for a in args[: min(count, places)]], keywords


_OPTIONS = (torch.dtype, torch.layout, torch.device, torch.memory_format)
_OPTION_NAMES = {
    torch.dtype: "dtype", torch.layout: "layout", torch.device: "device", torch.memory_format: "memory_format",
    bool: "pin_memory",
}  # fmt: skip


def _plain(arg: Any) -> Any:
    """torch's own objects again; every floating point type is float64 here."""
    if not isinstance(arg, str):
        return arg
    if arg == "cpu":
        return torch.device("cpu")
    found = getattr(torch, arg.removeprefix("torch."), arg) if arg.startswith("torch.") else arg
    return torch.float64 if isinstance(found, torch.dtype) and found.is_floating_point else found


def _scores(q: Tensor, k: Tensor, mask: Any, causal: bool) -> Tensor:
    scores = q @ _for_every(q, k).transpose(2, 3) / sqrt(q.shape[3])
    if mask is not None:
        scores = scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:], dtype=torch.bool).triu(1), float("-inf"))
    return scores


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool) -> tuple[Tensor, ...]:
    scores = _scores(q, k, mask, causal)
    return scores.softmax(3) @ _for_every(q, v), scores.logsumexp(3)


def _for_every(q: Tensor, heads: Tensor) -> Tensor:
    """Keys or values for every query head, where several share one."""
    return heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1)


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Any, causal: bool, _: bool
) -> tuple[Tensor, ...]:
    p = (_scores(q, k, mask, causal) - lse.unsqueeze(3)).exp()
    ds = p * (grad @ v.transpose(2, 3) - (grad * out).sum(3, keepdim=True)) / sqrt(q.shape[3])
    return ds @ k, ds.transpose(2, 3) @ q, p.transpose(2, 3) @ grad


def _grouped(a: Tensor, b: Tensor, ends: Tensor | None = None) -> Tensor:
    if ends is None:
        return a @ b
    starts = [0, *ends.tolist()[:-1]]
    runs = [slice(start, end) for start, end in zip(starts, ends.tolist(), strict=True)]
    if b.dim() == 3:
        return torch.cat([a[run] @ b[g] for g, run in enumerate(runs)])
    return torch.stack([a[:, run] @ b[run] for run in runs])
