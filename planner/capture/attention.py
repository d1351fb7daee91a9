"""One op per fused attention, whatever this machine's kernels would do.

On CPU tensors `scaled_dot_product_attention` falls back to explicit score matrices whenever its one flash kernel does
not fit (dropout, masks that need gradients, value dims unlike key dims), which no accelerator does: traced, a plan
would hold quadratic activations that never exist. So, while tracing, the call is replaced by
``meshwright::attention``, with the memory of a fused kernel: forward keeps the output and one float32 log-sum-exp per
query.
"""

from __future__ import annotations

from typing import Any

import torch

_library = torch.library.Library("meshwright", "FRAGMENT")
_library.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float dropout_p, float? scale) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? mask, "
    "bool causal, bool mask_grad) -> (Tensor, Tensor, Tensor, Tensor?)"
)


@torch.library.register_fake("meshwright::attention", lib=_library)
def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, causal: bool, dropout_p: float, scale: Any
) -> Any:
    out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("meshwright::attention_backward", lib=_library)
def _attention_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    mask: Any, causal: bool, mask_grad: bool,
) -> Any:  # fmt: skip
    return (
        torch.empty_like(q),
        torch.empty_like(k),
        torch.empty_like(v),
        torch.empty_like(mask) if mask_grad else None,
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: Any,
        causal: bool,
        dropout_p: float,
        scale: Any,
    ) -> torch.Tensor:
        out, lse = torch.ops.meshwright.attention(q, k, v, mask, causal, dropout_p, scale)
        ctx.save_for_backward(q, k, v, out, lse, mask)
        ctx.causal = causal
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        q, k, v, out, lse, mask = ctx.saved_tensors
        grads = torch.ops.meshwright.attention_backward(
            grad, q, k, v, out, lse, mask, ctx.causal, ctx.needs_input_grad[3]
        )
        return *grads, None, None, None


def fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: Any = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """`scaled_dot_product_attention` over [..., heads, len, dim] as one op, also with fewer key/value heads."""
    heads, kv_heads = (1 if t.dim() < 3 else t.shape[-3] for t in (query, key))
    fits = query.shape[-1] == key.shape[-1] and key.shape[:-1] == value.shape[:-1]
    if not fits or (kv_heads not in (1, heads) and not (enable_gqa and heads % kv_heads == 0)):
        shapes = ", ".join(f"{list(t.shape)}" for t in (query, key, value))
        raise ValueError(f"scaled_dot_product_attention: query, key and value {shapes} do not fit (gqa: {enable_gqa})")
    if query.dim() == 4:
        return _Attention.apply(query, key, value, attn_mask, is_causal, dropout_p, scale)
    lead = query.shape[:-2]
    flat = [t.reshape(-1, 1, *t.shape[-2:]) for t in (query, key, value)]
    if attn_mask is not None and attn_mask.dim() > 2:
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-2:]).reshape(-1, 1, *attn_mask.shape[-2:])
    out = _Attention.apply(*flat, attn_mask, is_causal, dropout_p, scale)
    return out.reshape(*lead, *out.shape[-2:])
