"""Normalisations whose statistics go over the ranks of an axis."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from planner.graph import Op
from planner.layouts.strategies import Option
from tests.planner.layouts import aten
from tests.planner.layouts.strategies.running import Node, Ranks, all_reduce, outputs, positions


def of_rows(node: Node, option: Option, ranks: Ranks) -> Ranks:
    """Largest elements and sums of each row are reduced over the ranks."""
    (op,) = node.ops
    xs = [held[op.inputs[0]] for held in ranks]
    if "softmax" in op.name:
        dim = op.args[1]
        assert isinstance(dim, int)
        top = torch.stack([x.detach().amax(dim, keepdim=True) for x in xs]).amax(0)
        total = all_reduce([(x - top).exp().sum(dim, keepdim=True) for x in xs])
        results = [(x - top - total.log(),) for x in xs]
        return outputs(node, results if "log" in op.name else [(y.exp(),) for (y,) in results])
    weights = [[held[v] for v in op.inputs[1:]] for held in ranks]
    if op.name == "native_group_norm":
        return outputs(node, _group_norm(node, option, xs, weights))
    dims, eps = tuple(range(-_num_normalised(node), 0)), _eps(op)
    count = prod(node.shapes[op.inputs[0]][d] for d in dims)
    if "rms" in op.name:
        root = (all_reduce([x.square().sum(dims, keepdim=True) for x in xs]) / count + eps).rsqrt()
        return outputs(node, [(_affine(x * root, w), root) for x, w in zip(xs, weights, strict=True)])
    mean = all_reduce([x.sum(dims, keepdim=True) for x in xs]) / count
    root = (all_reduce([(x - mean).square().sum(dims, keepdim=True) for x in xs]) / count + eps).rsqrt()
    return outputs(node, [(_affine((x - mean) * root, w), mean, root) for x, w in zip(xs, weights, strict=True)])


def _eps(op: Op) -> float:
    last = op.args[-1]
    return last if isinstance(last, float) else aten.EPS


def _num_normalised(node: Node) -> int:
    (op,) = node.ops
    given = op.args[2] if op.name == "rms_norm" else op.args[1]
    return given if isinstance(given, int) else len(given) if isinstance(given, tuple) else 1


def _affine(x: Tensor, weights: list[Tensor]) -> Tensor:
    scaled = x * weights[0] if weights else x
    return scaled + weights[1] if len(weights) > 1 else scaled


def _group_norm(node: Node, option: Option, xs: list[Tensor], weights: list[list[Tensor]]) -> list[tuple[Tensor, ...]]:
    (op,) = node.ops
    x, groups = op.inputs[0], node.shapes[op.outputs[1]][1]
    samples, channels, *extents = node.shapes[x]
    of_channel = torch.arange(channels) // (channels // groups)
    owners = [
        torch.nn.functional.one_hot(of_channel[positions(channels, 1, option.inputs[0], r, len(xs))], groups).double()
        for r in range(len(xs))
    ]
    count = channels // groups * prod(extents)
    sums = [x.flatten(2).sum(2) @ own for x, own in zip(xs, owners, strict=True)]
    mean = all_reduce(sums) / count
    spread = [((x.flatten(2) - (mean @ own.T)[:, :, None]).square().sum(2)) @ own
              for x, own in zip(xs, owners, strict=True)]  # fmt: skip
    root = (all_reduce(spread) / count + _eps(op)).rsqrt()
    results = []
    for x, own, w in zip(xs, owners, weights, strict=True):
        shape = (samples, -1, *(1 for _ in extents))
        y = (x - (mean @ own.T).view(shape)) * (root @ own.T).view(shape)
        results.append((_affine(y, [t.view(1, *shape[1:]) for t in w]), mean, root))
    return results


def of_channels(node: Node, option: Option, ranks: Ranks) -> Ranks:
    """Sums of each channel are reduced over the ranks."""
    (op,) = node.ops
    xs = [held[op.inputs[0]] for held in ranks]
    dims = (0, *range(2, xs[0].dim()))
    count = sum(x.numel() for x in xs) / xs[0].shape[1]
    mean = all_reduce([x.sum(dims) for x in xs]) / count
    spread = [(x - _channels(mean, x)).square().sum(dims) for x in xs]
    root = (all_reduce(spread) / count + _eps(op)).rsqrt()
    results = []
    for x, held in zip(xs, ranks, strict=True):
        weights = [_channels(held[v], x) for v in op.inputs[1:3]]
        results.append((_affine((x - _channels(mean, x)) * _channels(root, x), weights), mean, root))
    return outputs(node, results)


def _channels(t: Tensor, x: Tensor) -> Tensor:
    return t.view(1, -1, *(1 for _ in x.shape[2:]))
