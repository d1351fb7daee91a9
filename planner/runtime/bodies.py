"""Calls that a rank does not make as the program does: sizes of its part, and what needs more than sizes."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planner.capture.program import Call
from planner.graph import Op
from planner.layouts.placements import REPLICATE
from planner.layouts.rules.arguments import dim_at
from planner.runtime.grouped import grouped_mm
from planner.runtime.parts import lay, reordered
from planner.runtime.site import Body, Site

# Sizes of the part.


def _shaped(change: Callable[..., Any]) -> Callable[[Op, Call, Site], Body]:
    """A body that is told the shape of its result."""

    def make(op: Op, call: Call, site: Site) -> Body:
        shape = list(site.local(op.outputs[0]))
        return lambda *args, **keywords: change(call.target, shape, *args, **keywords)

    return make


def _repeat(target: Any, shape: list[int], x: Tensor, *_: Any) -> Tensor:
    sizes = (*(1,) * (len(shape) - x.dim()), *x.shape)
    return x.repeat([after // max(1, before) for after, before in zip(shape, sizes, strict=True)])


def _strided(target: Any, shape: list[int], *args: Any, **keywords: Any) -> Tensor:
    """``empty_strided``: strides in the order in which the whole's are."""
    *like, _, given = args
    order, strides, step = sorted(range(len(shape)), key=lambda d: given[d]), [0] * len(shape), 1
    for d in order:
        strides[d], step = step, step * max(1, shape[d])
    return target(*like, shape, strides, **keywords)


def _like(op: Op, call: Call, site: Site) -> Body:
    """``zeros_like`` and the like read only the dtype of their argument, which may lie anyhow."""
    shape = site.local(op.outputs[0])
    return lambda x, *args, **keywords: call.target(x.detach().new_empty(()).expand(shape), *args, **keywords)


def _arange(op: Op, call: Call, site: Site) -> Body:
    """Where each part counts its own elements (a rank's visits of experts)."""
    here, whole = (shape[0] for shape in (site.local(op.outputs[0]), site.shapes[op.outputs[0]]))
    return call.target if here == whole else lambda *_, **keywords: torch.arange(here, **keywords)


def _split(op: Op, call: Call, site: Site) -> Body:
    dim = dim_at(op, 2, len(site.shapes[op.inputs[0]]))
    sizes = [site.local(v)[dim] for v in op.outputs]
    given = sizes if "with_sizes" in op.name else sizes[0]
    return lambda x, _, dim=0: call.target(x, given, dim)


def _group_norm(op: Op, call: Call, site: Site) -> Body:
    samples, channels, *extents = site.local(op.inputs[0])
    groups = site.local(op.outputs[1])[1]
    return lambda x, w, b, *rest: call.target(x, w, b, samples, channels, prod(extents), groups, rest[-1])


def _convolution(op: Op, call: Call, site: Site) -> Body:
    """Channels are sharded in whole groups."""
    return lambda x, w, *rest: call.target(x, w, *rest[:-1], rest[-1] if rest[4] else x.shape[1] // max(1, w.shape[1]))


# Elements of the whole.


def _mean(op: Op, call: Call, site: Site) -> Body:
    x, out = op.inputs[0], op.outputs[0]
    here = prod(site.local(x)) / max(1, prod(site.local(out)))
    share = here / (prod(site.shapes[x]) / max(1, prod(site.shapes[out])))
    return call.target if share == 1 else lambda *args, **keywords: call.target(*args, **keywords) * share


def _embedding(op: Op, call: Call, site: Site) -> Body:
    """``weight, indices, padding_idx``: of sharded rows only the own are found."""
    table = op.inputs[0]
    if not site.sharded(table, 0):
        return call.target
    locate = site.located(table, 0)

    def body(weight: Tensor, indices: Tensor, padding: int = -1, *_: Any) -> Tensor:
        place, inside = locate(indices, indices >= 0)
        padded, is_own = locate(padding, padding >= 0)
        rows = call.target(weight, place.masked_fill(~inside, 0), padded if is_own else -1)
        return rows.masked_fill(~inside.unsqueeze(-1), 0)

    return body


def _random(op: Op, call: Call, site: Site) -> Body:
    """What draws numbers without reading any: the own part of what is drawn for the whole."""
    out = op.outputs[0]
    if not site.is_cut(out) and not op.name.endswith("_like"):
        return call.target
    shape, into = list(site.shapes[out]), op.name.endswith("_")

    def body(first: Any, *args: Any, **keywords: Any) -> Tensor:
        if isinstance(first, Tensor):
            drawn = call.target(first.detach().new_empty(shape), *args, **keywords)
        else:
            drawn = call.target(shape, *args, **keywords)
        return first.copy_(site.own(drawn, out)) if into else site.own(drawn, out)

    return body


def _dropout(op: Op, call: Call, site: Site) -> Body:
    """``x, p, train``."""
    out = op.outputs[0]
    if not site.is_cut(out):
        return call.target

    def body(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, ...]:
        if not train or p == 0:
            return call.target(x, p, train)
        drawn = torch.empty(site.shapes[out], dtype=torch.bool, device=x.device).bernoulli_(1 - p)
        kept = site.own(drawn, out)
        return x * kept * (1 / (1 - p) if p < 1 else 0.0), kept

    return body


def _bernoulli(op: Op, call: Call, site: Site) -> Body:
    """``x`` or ``x, p``, of probabilities: a uniform number for each element of the whole."""
    out = op.outputs[0]
    if not site.is_cut(out):
        return call.target
    shape = site.shapes[out]

    def body(x: Tensor, p: float | None = None, **_: Any) -> Tensor:
        return (site.own(torch.rand(shape, device=x.device), out) < (x if p is None else p)).to(x.dtype)

    return body


# Kernels that devices have under other names.


def _attention(op: Op, call: Call, site: Site) -> Body:
    """``q, k, v, mask, causal, dropout, scale``."""

    def body(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float = 0.0,
        scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        if dropout and site.is_cut(op.outputs[0]) and q.device.type == "cpu":
            kept = _kept_scores(op, site, dropout)
            return dropped_attention(q, k, v, mask, causal=causal, kept=kept, dropout=dropout, scale=scale)
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale, enable_gqa=gqa)

    return body


def _kept_scores(op: Op, site: Site, dropout: float) -> Tensor:
    """Which of this rank's scores dropout keeps: the own part of what is drawn for all."""
    out, key = op.outputs[0], op.inputs[1]
    shape = (*site.shapes[out][:3], site.shapes[key][2])
    drawn = torch.empty(shape, dtype=torch.bool).bernoulli_(1 - dropout)
    layout = tuple(p if p.kind == "S" and p.dim < 3 else REPLICATE for p in site.layouts[out])
    sequences = (*site.sequences(out)[:3], site.sequences(key)[2])
    return lay(reordered(drawn, sequences, site.mesh.zigzag), layout, site.mesh)


def dropped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, kept: Tensor, dropout: float,
    scale: float | None,
) -> Tensor:  # fmt: skip
    """Attention whose dropout is given, as CPUs compute it: with all scores in memory."""
    groups = q.shape[1] // k.shape[1]
    keys, values = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (k, v))
    scores = q @ keys.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[2:], dtype=torch.bool).tril(), float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(3) * kept / (1 - dropout) @ values


def _flash_for_cpu(op: Op, call: Call, site: Site) -> Body:
    def body(
        q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, *, attn_mask: Any = None,
        scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, causal, scale=scale)

    return body


def _rms_norm(op: Op, call: Call, site: Site) -> Body:
    """``x, weight, num_dims, eps``."""
    return lambda x, w, dims, eps=None: F.rms_norm(x, x.shape[x.dim() - dims :], w, eps)


Maker = Callable[[Op, Call, Site], Body]
BODIES: dict[str, Maker] = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape"), _shaped(lambda _, shape, x, *__: x.reshape(shape))),
    "expand": _shaped(lambda _, shape, x, *__, **___: x.expand(shape)),
    "repeat": _shaped(_repeat),
    **dict.fromkeys(("zeros", "ones", "empty"), _shaped(lambda target, shape, _, *a, **k: target(shape, *a, **k))),
    "full": _shaped(lambda target, shape, _, *a, **k: target(shape, *a, **k)),
    **dict.fromkeys(
        ("new_zeros", "new_ones", "new_empty", "new_full"),
        _shaped(lambda target, shape, x, _, *a, **k: target(x, shape, *a, **k)),
    ),
    **dict.fromkeys(("empty_strided", "new_empty_strided"), _shaped(_strided)),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like"), _like),
    "_adaptive_avg_pool2d": _shaped(lambda target, shape, x, _: target(x, shape[-2:])),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), _split),
    "arange": _arange,
    "native_group_norm": _group_norm,
    "convolution": _convolution,
    "mean": _mean,
    "embedding": _embedding,
    **dict.fromkeys(("rand", "randn", "rand_like", "randn_like", "randint", "randint_like"), _random),
    **dict.fromkeys(("uniform_", "normal_", "exponential_", "random_", "bernoulli_"), _random),
    "bernoulli": _bernoulli,
    "native_dropout": _dropout,
    "attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _flash_for_cpu,
    "rms_norm": _rms_norm,
    "_grouped_mm": lambda *_: grouped_mm,
}
"""Calls that do not run as they are, by the operation's name."""
