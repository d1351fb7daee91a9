"""Grouped matrix products with gradients: on CUDA the kernel, where it takes the operands, elsewhere group by group.

As an operator of its own, so that fake tensors of every dtype have a shape rule (ATen's takes bfloat16 alone) and
compilers see one call.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

ALIGNED_BYTES = 16
"""Rows of the kernel's operands begin at multiples of this."""

_library = torch.library.Library("meshwright", "FRAGMENT")
_library.define("grouped_product(Tensor a, Tensor b, Tensor ends) -> Tensor")


def grouped_mm(a: Tensor, b: Tensor, ends: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """``[T, k] x [G, k, n] -> [T, n]``, ``[m, T] x [T, n] -> [G, m, n]``, ``[G, m, k] x [k, T] -> [m, T]``; without
    ``ends`` ``[G, m, k] x [G, k, n] -> [G, m, n]``.

    Args:
        ends: int32, where each group's part of ``T`` ends.
    """
    if ends is None:
        return a @ b
    found: Tensor = _Grouped.apply(a, b, ends)
    return found


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, ends)
        return torch.ops.meshwright.grouped_product(a, b, ends)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b, ends = ctx.saved_tensors
        grad = grad.contiguous()  # the kernel takes no expanded ones
        wanted_a, wanted_b = ctx.needs_input_grad[:2]
        product = torch.ops.meshwright.grouped_product
        return (
            product(grad, b.transpose(-2, -1), ends) if wanted_a else None,
            product(a.transpose(-2, -1), grad, ends) if wanted_b else None,
            None,
        )


@torch.library.impl(_library, "grouped_product", "CompositeExplicitAutograd")
def _product(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    if a.is_cuda and a.dtype == torch.bfloat16 and all(_aligned(t) for t in (a, b)):
        return torch._grouped_mm(a, b, offs=ends)
    starts = [0, *ends.tolist()]
    runs = [slice(start, end) for start, end in pairwise(starts)]
    if a.dim() == 3:
        return torch.cat([a[group] @ b[:, run] for group, run in enumerate(runs)], dim=1)
    if b.dim() == 2:
        return torch.stack([a[:, run] @ b[run] for run in runs])
    out = a.new_empty(a.shape[0], b.shape[2])
    for group, run in enumerate(runs):
        torch.mm(a[run], b[group], out=out[run])
    return out


def _aligned(t: Tensor) -> bool:
    """Whether one of the last two dims is dense and rows of the other begin at multiples of `ALIGNED_BYTES`."""
    inner, outer = sorted(t.stride()[-2:])
    return inner == 1 and outer * t.element_size() % ALIGNED_BYTES == 0 and t.data_ptr() % ALIGNED_BYTES == 0


@torch.library.register_fake("meshwright::grouped_product", lib=_library)
def _shape(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    groups = (ends.shape[0],) if a.dim() == b.dim() == 2 else ()
    return a.new_empty(*groups, a.shape[-2], b.shape[-1])
