"""One call of a traced block on plain float64 tensors, by ATen itself where it has the operation."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from planner.graph import Op

EPS = 1e-5
"""Of RMSNorm, which the graph does not keep."""
ALLOCATIONS = {"new_zeros", "new_empty", "new_ones", "new_full", "zeros_like", "ones_like", "empty_like", "full_like"}
SIZED = ALLOCATIONS | {"slice_backward", "select_backward"}


def execute(op: Op, args: list[Any], shapes: list[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """One call on plain tensors, its size arguments replaced by the sizes of its results."""
    if op.name in {"view", "_unsafe_view", "reshape"}:
        return (args[0].reshape(shapes[0]),)
    if op.name == "expand":
        return (args[0].expand(shapes[0]),)
    if op.name == "attention":
        return _attention(*args)
    if op.name == "attention_backward":
        return _attention_backward(*args)
    if op.name == "rms_norm":
        root = args[0].square().mean(-1, keepdim=True).add(EPS).rsqrt()
        return args[0] * root * args[1], root
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
    if op.name.endswith("_like"):
        args[0] = args[0].new_empty(shapes[0])
    elif op.name in SIZED:
        args[1] = shapes[0]
    if op.name.startswith("split"):
        dim = args[2] if len(args) > 2 else 0
        sizes = [shape[dim] for shape in shapes]
        args[1] = sizes if op.name == "split_with_sizes" else sizes[0]
    if op.name == "convolution_backward":
        args[3] = [args[2].shape[0]]
    positional, keywords = _bind(op, args)
    result = _overload(op)(*positional, **keywords)
    found = result if isinstance(result, tuple | list) else (result,)
    return tuple(t for t in found if isinstance(t, Tensor) and t is not None)


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
    scores = q @ k.transpose(2, 3) / sqrt(q.shape[3])
    if mask is not None:
        scores = scores + mask
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:], dtype=torch.bool).triu(1), float("-inf"))
    return scores


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, causal: bool) -> tuple[Tensor, ...]:
    scores = _scores(q, k, mask, causal)
    return scores.softmax(3) @ v, scores.logsumexp(3)


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Any, causal: bool, _: bool
) -> tuple[Tensor, ...]:
    p = (_scores(q, k, mask, causal) - lse.unsqueeze(3)).exp()
    ds = p * (grad @ v.transpose(2, 3) - (grad * out).sum(3, keepdim=True)) / sqrt(q.shape[3])
    return ds @ k, ds.transpose(2, 3) @ q, p.transpose(2, 3) @ grad


def _grouped(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    starts = [0, *ends.tolist()[:-1]]
    runs = [slice(start, end) for start, end in zip(starts, ends.tolist(), strict=True)]
    if b.dim() == 3:
        return torch.cat([a[run] @ b[g] for g, run in enumerate(runs)])
    return torch.stack([a[:, run] @ b[run] for run in runs])
