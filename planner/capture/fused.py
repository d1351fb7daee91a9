"""Kernels that accelerators fuse, as one op each while tracing.

What CPU tensors would run instead keeps tensors that no accelerator keeps, so a plan would count memory and traffic
that never exist: attention falls back to explicit score matrices (see `planner.capture.attention`), RMSNorm to a
chain of float32 copies, where CUDA and ROCm have a kernel that saves its input and one reciprocal root per row, and
dropout to four calls and a mask of the input's dtype, where they have one and a mask of bytes. Grouped products have a
shape rule for bfloat16 alone; the kernels take others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from planner.capture.attention import fused_attention

_library = torch.library.Library("meshwright", "FRAGMENT")
_library.define("rms_norm(Tensor x, Tensor? weight, int num_dims, float? eps) -> (Tensor, Tensor)")
_library.define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor root, Tensor? weight, int num_dims) -> (Tensor, Tensor?)"
)


@torch.library.register_fake("meshwright::rms_norm", lib=_library)
def _rms_norm(x: torch.Tensor, weight: Any, num_dims: int, eps: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rows = (*x.shape[: x.dim() - num_dims], *(1,) * num_dims)
    return torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)


@torch.library.register_fake("meshwright::rms_norm_backward", lib=_library)
def _rms_norm_backward(grad: torch.Tensor, x: torch.Tensor, root: torch.Tensor, weight: Any, num_dims: int) -> Any:
    return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Any, num_dims: int, eps: Any) -> torch.Tensor:
        out, root = torch.ops.meshwright.rms_norm(x, weight, num_dims, eps)
        ctx.save_for_backward(x, root, weight)
        ctx.num_dims = num_dims
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, root, weight = ctx.saved_tensors
        return *torch.ops.meshwright.rms_norm_backward(grad, x, root, weight, ctx.num_dims), None, None


def fused_rms_norm(
    input: torch.Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Any = None,
    eps: float | None = None,
) -> torch.Tensor:
    """`torch.rms_norm` as one op: [..., *normalized_shape] -> the same shape."""
    return _RMSNorm.apply(input, weight, len(normalized_shape), eps)


_library.define("_grouped_mm(Tensor a, Tensor b, Tensor? offs) -> Tensor")


@torch.library.register_fake("meshwright::_grouped_mm", lib=_library)
def _grouped_mm(a: torch.Tensor, b: torch.Tensor, offs: Any) -> torch.Tensor:
    groups = (len(offs),) if a.dim() == b.dim() == 2 else tuple(b.shape[:-2]) if a.dim() == 3 else ()
    return a.new_empty(*groups, a.shape[-2], b.shape[-1])


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor, offs: Any) -> torch.Tensor:
        ctx.save_for_backward(a, b, offs)
        return torch.ops.meshwright._grouped_mm(a, b, offs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        a, b, offs = ctx.saved_tensors
        product = torch.ops.meshwright._grouped_mm
        return product(grad, b.transpose(-2, -1), offs), product(a.transpose(-2, -1), grad, offs), None


def fused_grouped_mm(a: torch.Tensor, b: torch.Tensor, *, offs: Any = None, **options: Any) -> torch.Tensor:
    """`torch.nn.functional.grouped_mm` for any dtype."""
    if a.dtype == torch.bfloat16 or options.get("bias") is not None:
        return GROUPED(a, b, offs=offs, **options)
    return _GroupedProduct.apply(a, b, offs)


def fused_dropout(
    input: torch.Tensor,  # noqa: A002
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> torch.Tensor:
    """`torch.nn.functional.dropout` as one op."""
    if inplace or not training or not 0.0 < p <= 1.0:
        return DROPOUT(input, p, training, inplace)
    return torch.native_dropout(input, p, training)[0]


ATTENTION, RMS_NORM, DROPOUT, GROUPED = F.scaled_dot_product_attention, torch.rms_norm, F.dropout, F.grouped_mm
FUSED = {
    ATTENTION: fused_attention, RMS_NORM: fused_rms_norm, DROPOUT: fused_dropout, GROUPED: fused_grouped_mm,
    torch._grouped_mm: fused_grouped_mm,
}  # fmt: skip


class FusedKernels(TorchFunctionMode):
    """While active, attention, RMSNorm and dropout are one op each.

    The names in torch are replaced, for calls from torch's own Python (``nn.RMSNorm``, ``nn.MultiheadAttention``),
    which modes do not see; the mode is for models that imported the functions before.
    """

    def __enter__(self) -> FusedKernels:
        F.scaled_dot_product_attention, F.dropout = fused_attention, fused_dropout
        torch.rms_norm = fused_rms_norm  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        F.scaled_dot_product_attention, torch.rms_norm, F.dropout = ATTENTION, RMS_NORM, DROPOUT

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return FUSED.get(func, func)(*args, **(kwargs or {}))
