"""Fused attention with its log-sum-exp, forward and backward, on any device.

``q [B, H, M, D]``, ``k [B, G, N, D]``, ``v [B, G, N, E]`` with ``G`` dividing ``H``; log-sum-exps are float32 (float64
of float64) ``[B, H, M]``. Flash kernels take no masks but the causal one, and on CUDA no float32: there the formula
itself runs, with all scores in memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNED = 8
"""Of which CUDA's kernels want the head dim to be a multiple."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """The result and its log-sum-exp; ``causal`` aligns first query and first key."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if bias is not None or not _flash(q):
        scores = _scores(q, k, bias, causal, scale)
        lse = scores.logsumexp(3)
        return _weights(scores, lse) @ _repeated(v, q).to(lse.dtype), lse
    width = v.shape[3]
    q, k, v = _widened(q, k, v)
    if q.is_cuda:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return out[..., :width], lse


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, bias: Tensor | None, *, causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and of the mask's elements, where ``out`` and ``lse`` may be those of more keys."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if bias is not None or not _flash(q):
        p = _weights(_scores(q, k, bias, causal, scale), lse)
        exact = (t.to(p.dtype) for t in (grad, out, _repeated(k, q), _repeated(v, q)))
        grad, out, keys, values = exact
        ds = p * (grad @ values.transpose(2, 3) - (grad * out).sum(3, keepdim=True))
        dk, dv = (_summed(t, k) for t in (ds.transpose(2, 3) @ q.to(p.dtype) * scale, p.transpose(2, 3) @ grad))
        return (ds @ keys * scale).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), ds
    widths = q.shape[3], v.shape[3]
    q, k, v = _widened(q, k, v)
    grad, out = (F.pad(t, (0, q.shape[3] - t.shape[3])) for t in (grad, out))
    lse = lse.contiguous()
    if q.is_cuda:
        seed = torch.empty(2, dtype=torch.uint64, device=q.device)
        found = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, seed, seed[:0], scale=scale
        )
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, scale=scale
        )
    dq, dk, dv = found
    return dq[..., : widths[0]], dk[..., : widths[0]], dv[..., : widths[1]], None


def merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Adds a piece's result to what other keys have made of the same queries, in place."""
    total = torch.logaddexp(lse, more_lse)
    kept, added = ((t - total).exp().nan_to_num_(0.0).unsqueeze(3) for t in (lse, more_lse))
    out.mul_(kept).add_(more * added)
    lse.copy_(total)


def _flash(q: Tensor) -> bool:
    return not q.is_cuda or q.dtype in (torch.bfloat16, torch.float16)


def _widened(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """All of one width, zeros behind."""
    width = max(q.shape[3], v.shape[3])
    width += -width % ALIGNED if q.is_cuda else 0
    return [F.pad(t, (0, width - t.shape[3])) if t.shape[3] < width else t for t in (q, k, v)]


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
    exact: Any = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(exact) @ _repeated(k, q).to(exact).transpose(2, 3) * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        later = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """Shares of the keys; none where a query has no key at all."""
    return (scores - lse.unsqueeze(3)).exp().nan_to_num(0.0)


def _repeated(t: Tensor, q: Tensor) -> Tensor:
    groups = q.shape[1] // t.shape[1]
    return t.repeat_interleave(groups, 1) if groups > 1 else t


def _summed(grad: Tensor, like: Tensor) -> Tensor:
    """Gradients of heads that several queries share."""
    groups = grad.shape[1] // like.shape[1]
    return grad.unflatten(1, (-1, groups)).sum(2) if groups > 1 else grad
