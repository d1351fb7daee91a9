"""Normalisations over what is sharded: every rank reduces its own part of each row, group or channel, and all add up.

Sums travel as float32 (float64 of float64). Variances are sums of squares about the common mean, which is summed
before: two all-reduces forward, and the gradients of the sums backward. A softmax reduces largest elements and sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from planner.capture.program import Call
from planner.graph import Op, Ref
from planner.runtime.moves import sum_over
from planner.runtime.parts import positions
from planner.runtime.site import Held, Run, Site

Sum = Callable[[Tensor], Tensor]


def statistics(ops: Sequence[Op], calls: Sequence[Call], site: Site, names: Sequence[str]) -> Run:
    """A softmax, RMS, layer or group norm of rows that ranks hold parts of."""
    (op,), (call,) = ops, calls
    over = [site.mesh.group_name(i) for i, name in enumerate(names) if name == "statistics"]
    if "softmax" in op.name:
        return _softmax(op, call, over)
    if op.name == "native_group_norm":
        return _group_norm(op, call, site, over)
    return _layer_norm(op, call, site, over)


def sync(ops: Sequence[Op], calls: Sequence[Call], site: Site, names: Sequence[str]) -> Run:
    """A batch norm in training, ``x, weight, bias[, mean, var], training, momentum, eps``, of samples or positions that
    ranks hold parts of; running statistics are those of all."""
    (op,), (call,) = ops, calls
    over = [site.mesh.group_name(i) for i, name in enumerate(names) if name == "sync"]
    momentum, eps = call.args[-2:]
    running = call.args[3:5] if len(call.args) > 6 else (None, None)
    shape = site.shapes[op.inputs[0]]
    count = prod(shape) // shape[1]

    def run(held: Held) -> dict[int, Tensor]:
        x, weight, bias = (_tensor(arg, held) for arg in call.args[:3])
        assert x is not None
        dims, per_channel = (0, *range(2, x.dim())), (1, -1, *(1 for _ in shape[2:]))
        y, mean, spread = _centred(x, dims, count, over)
        with torch.no_grad():
            for into, found in zip(running, (mean, spread * (count / max(1, count - 1))), strict=True):
                if (buffer := _tensor(into, held)) is not None:
                    buffer.mul_(1 - momentum).add_(found.flatten(), alpha=momentum)
        y = y * (spread + eps).rsqrt()
        views = [None if t is None else t.view(per_channel) for t in (weight, bias)]
        return {op.outputs[0]: _affine(y, *views).to(x.dtype)}

    return run


def _tensor(arg: Any, held: Held) -> Tensor | None:
    return held[arg.value] if isinstance(arg, Ref) else None


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _centred(x: Tensor, dims: tuple[int, ...], count: int, over: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """What is left without the mean, the mean, and the variance, over parts of ``count`` elements."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = summed(exact.sum(dims, keepdim=True), over) / count
    centred = exact - mean
    return centred, mean, summed(centred.square().sum(dims, keepdim=True), over) / count


def _layer_norm(op: Op, call: Call, site: Site, over: Sequence[str]) -> Run:
    """``rms_norm x, weight, num_dims, eps``; ``_fused_rms_norm x, shape, weight, eps``; ``native_layer_norm x, shape,
    weight, bias, eps``."""
    args = call.args
    num_dims = args[2] if op.name == "rms_norm" else len(args[1])
    weights = args[1:2] if op.name == "rms_norm" else args[2:-1]
    dims = tuple(range(-num_dims, 0))
    count = prod(site.shapes[op.inputs[0]][-num_dims:])

    def run(held: Held) -> dict[int, Tensor]:
        x = held[op.inputs[0]]
        weight, bias = (*(_tensor(arg, held) for arg in weights), None)[:2]
        eps = torch.finfo(x.dtype).eps if args[-1] is None else args[-1]
        if "rms" in op.name:
            y = x.to(torch.promote_types(x.dtype, torch.float32))
            spread = summed(y.square().sum(dims, keepdim=True), over) / count
        else:
            y, _, spread = _centred(x, dims, count, over)
        return {op.outputs[0]: _affine(y * (spread + eps).rsqrt(), weight, bias).to(x.dtype)}

    return run


def _softmax(op: Op, call: Call, over: Sequence[str]) -> Run:
    """``x, dim[, ...]``."""
    dim = call.args[1]

    def run(held: Held) -> dict[int, Tensor]:
        x = held[op.inputs[0]]
        top = x.detach().amax(dim, keepdim=True).to(torch.promote_types(x.dtype, torch.float32))
        for name in over:
            top = sum_over(top, name, "max")
        if op.name == "_safe_softmax":
            top = top.masked_fill(top == float("-inf"), 0.0)
        shifted = x - top
        total = summed(shifted.exp().sum(dim, keepdim=True), over)
        if op.name == "_log_softmax":
            return {op.outputs[0]: (shifted - total.log()).to(x.dtype)}
        total = total.masked_fill(total == 0, 1.0) if op.name == "_safe_softmax" else total
        return {op.outputs[0]: (shifted.exp() / total).to(x.dtype)}

    return run


def _group_norm(op: Op, call: Call, site: Site, over: Sequence[str]) -> Run:
    """``x, weight, bias, samples, channels, positions, groups, eps``: groups of channels, which may be parted too."""
    v, eps = op.inputs[0], call.args[-1]
    channels, groups = site.shapes[v][1], site.shapes[op.outputs[1]][1]
    count = channels // groups * prod(site.shapes[v][2:])
    group_of = (positions(site.layouts[v], site.shapes[v], 1, site.mesh) // (channels // groups)).tolist()

    def run(held: Held) -> dict[int, Tensor]:
        x, weight, bias = (_tensor(arg, held) for arg in call.args[:3])
        assert x is not None
        of_channel = torch.tensor(group_of, device=x.device)
        exact = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))

        def mean(of: Tensor) -> Tensor:
            """Of every group, for each own channel."""
            sums = of.new_zeros(of.shape[0], groups).index_add(1, of_channel, of.sum(2))
            return (summed(sums, over) / count).index_select(1, of_channel).unsqueeze(2)

        centred = exact - mean(exact)
        y = centred * (mean(centred.square()) + eps).rsqrt()
        per_channel = [None if t is None else t.view(1, -1, 1) for t in (weight, bias)]
        return {op.outputs[0]: _affine(y, *per_channel).view(x.shape).to(x.dtype)}

    return run


def summed(part: Tensor, over: Sequence[str]) -> Tensor:
    """A sum over ranks that each goes on with for its own part: gradients are partial sums, and summed as well."""
    for name in over:
        part = _Summed.apply(part, name)
    return part


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, name: str) -> Tensor:
        ctx.name = name
        return sum_over(part, name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return sum_over(grad, ctx.name), None
