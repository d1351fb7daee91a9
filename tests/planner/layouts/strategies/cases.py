"""For every operation that a rule names, calls with random sizes: shapes that are alike, unlike, even and uneven."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.planner.layouts.strategies.calls import Call, Sizes

INF = float("-inf")
Calls = Callable[[Sizes], Iterator[Call]]


def pointwise(s: Sizes) -> Iterator[Call]:
    x, y = s.x(s.b, s.s, s.d), s.x(s.b, s.s, s.d)
    row, column, score = s.x(s.d), s.x(s.s, 1), s.coin(s.b, s.s, s.d)
    for name in ("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "maximum.default"):
        yield (name, x, y)
        yield (name, x, row)
        yield (name, column, x)
    yield from (("mul.Tensor", x, x), ("add.Tensor", x, x), ("add.Scalar", x, 1.5), ("mul.Scalar", x, 0.5))
    yield from (("div.Scalar", x, 3.0), ("add_.Tensor", x, row), ("mul_.Tensor", x, y), ("sub.Scalar", x, 1.0))
    yield from (("gelu.default", x), ("silu.default", x), ("tanh.default", x), ("neg.default", x), ("exp.default", x))
    yield from (("rsqrt.default", x.square() + 1), ("pow.Tensor_Scalar", x, 2), ("div.Tensor_mode", x, y, "floor"))
    yield from (("where.self", score, x, y), ("where.self", score, x, row), ("bitwise_not.default", score))
    yield from (("masked_fill.Scalar", x, score, INF), ("masked_fill.Scalar", x, score, 0))
    yield ("masked_fill_.Scalar", x, score[..., :1], 0)
    yield from (("floor_divide.default", s.ids(9, s.s, s.d), 2), ("add.Tensor", s.ids(9, s.d), s.ids(9, s.s, s.d)))
    yield from (("clone.default", x), ("_to_copy.default", x, "torch.bfloat16"), ("copy_.default", x, row))
    yield from (("_to_copy.default", s.ids(9, s.d), "torch.float32"), ("_to_copy.default", x, "torch.int64"))
    yield from (("lift_fresh_copy.default", x), ("native_dropout.default", x, 0.0, True))
    yield from (
        ("bernoulli.default", score.double()),
        ("bernoulli_.float", x, 1.0),
        ("fill_.Scalar", x, 2.0),
        ("zero_.default", x),
    )


def allocation(s: Sizes) -> Iterator[Call]:
    x, shape = s.x(s.b, s.d), (s.b, s.s)
    yield from (("zeros.default", shape), ("ones.default", shape), ("full.default", shape, 3.0))
    yield from (
        ("empty.memory_format", shape),
        ("empty_strided.default", shape, (s.s, 1)),
        ("scalar_tensor.default", 2.0),
    )
    yield from (("new_zeros.default", x, shape), ("new_ones.default", x, shape), ("new_full.default", x, shape, 3.0))
    yield from (("new_empty.default", x, shape), ("new_empty_strided.default", x, shape, (s.s, 1)))
    yield from (("zeros_like.default", x), ("ones_like.default", x), ("full_like.default", x, 2.0))
    yield from (("empty_like.default", x), ("arange.default", s.d), ("linspace.default", 0.0, 1.0, s.d))
    yield from (("eye.default", s.d), ("rand.default", shape), ("randn.default", shape))
    yield from (("rand_like.default", x), ("randn_like.default", x))


def views(s: Sizes) -> Iterator[Call]:
    x, y = s.x(s.b, s.s, s.d), s.x(s.b, s.s, s.d)
    yield from (("view.default", x, (s.b * s.s, s.d)), ("view.default", s.x(s.b * s.s, s.d), (s.b, s.s, s.d)))
    yield from (("reshape.default", x, (s.b, s.s * s.d)), ("_unsafe_view.default", x, (s.b, 1, s.s, s.d)))
    yield ("view.default", s.x(s.b, s.h * s.d * 2), (s.b, s.h, 2, s.d))
    yield ("reshape.default", s.x(4, 6), (6, 4))
    yield from (("unsqueeze.default", x, 1), ("squeeze.dim", s.x(s.b, 1, s.d), 1))
    yield from (
        ("t.default", x[0]),
        ("t.default", x[0, 0]),
        ("transpose.int", x, 1, -1),
        ("permute.default", x, (2, 0, 1)),
    )
    yield from (("expand.default", s.x(s.s, 1, s.d), (s.b, s.s, s.h, s.d)), ("expand.default", x, (s.b, s.s, s.d)))
    yield from (("repeat.default", x, (1, 2, 3)), ("repeat.default", x, (2, 1, 1, 2)))
    yield from (("slice.Tensor", x, 1, 1, 2), ("slice.Tensor", x, 1, 0, 2**63 - 1), ("select.int", x, -1, 1))
    yield from (("split.Tensor", s.x(s.b, 3 * s.d), s.d, 1), ("split.Tensor", s.x(s.b, 2 * s.d + 1), s.d, -1))
    yield from (("split_with_sizes.default", s.x(s.b, s.d + 3), (s.d, 3), 1), ("unbind.int", s.x(s.b, 2, s.d), 1))
    yield from (("cat.default", (x, y), -1), ("cat.default", (x, s.x(s.b, 2, s.d)), 1), ("stack.default", (x, y), 1))
    yield from (("roll.default", x, (1,), (1,)), ("roll.default", x, (1, 2), (0, 2)), ("flip.default", x, (-1,)))
    yield from (("roll.default", x, (1,), ()), ("tril.default", x, -1), ("triu.default", x, 1))
    yield from (("constant_pad_nd.default", x, (1, 2)), ("constant_pad_nd.default", x, (0, 0, 1, 0), 1.0))
    yield from (("constant_pad_nd.default", s.ids(9, s.b, s.s), (0, 1), -100), ("unfold.default", x, 1, 2, 1))


def linear(s: Sizes) -> Iterator[Call]:
    x, w, many, others = s.x(s.s, s.d), s.x(s.d, s.h), s.x(s.b, s.s, s.d), s.x(s.b, s.d, s.h)
    yield from (("mm.default", x, w), ("addmm.default", s.x(s.h), x, w), ("addmm.default", s.x(s.s, s.h), x, w))
    yield from (("addmm.default", s.x(1, s.h), x, w), ("bmm.default", many, others))
    yield from (("baddbmm.default", s.x(s.b, s.s, s.h), many, others), ("baddbmm.default", s.x(s.h), many, others))
    square = s.x(s.d, s.d)
    yield ("mm.default", square, square)
    rows, groups = s.x(s.b * s.s, s.d), torch.arange(1, s.b + 1, dtype=torch.int32) * s.s
    yield ("_grouped_mm.default", rows, s.x(s.b, s.d, s.h), groups)
    yield ("_grouped_mm.default", rows.T.contiguous(), s.x(s.b * s.s, s.h), groups)
    yield ("_grouped_mm.default", many, others)


def attention(s: Sizes) -> Iterator[Call]:
    k = s.x(s.b, s.h, s.s, s.d)
    for causal in (False, True):
        yield ("attention.default", s.x(s.b, s.h, s.s, s.d), k, s.x(s.b, s.h, s.s, s.e), None, causal)
        yield ("attention.default", s.x(s.b, 2 * s.h, s.s, s.d), k, s.x(s.b, s.h, s.s, s.e), None, causal)
    yield ("attention.default", s.x(s.b, s.h, s.q, s.d), k, s.x(s.b, s.h, s.s, s.e), None, False)
    yield ("attention.default", s.x(s.b, s.h, s.q, s.d), k[:, :1], s.x(s.b, 1, s.s, s.e), None, False)
    for mask in (s.x(s.s, s.s), s.x(s.b, 1, 1, s.s), s.x(1, s.h, s.s, s.s), s.x(s.b, s.h, s.s, s.s)):
        yield ("attention.default", s.x(s.b, s.h, s.s, s.d), k, s.x(s.b, s.h, s.s, s.e), mask, False)


def embedding(s: Sizes) -> Iterator[Call]:
    yield ("embedding.default", s.x(s.v, s.d), s.ids(s.v, s.b, s.s))


def norms(s: Sizes) -> Iterator[Call]:
    x, w, image = s.x(s.b, s.s, s.d), s.x(s.d), s.x(s.b, 2 * s.c, s.s, s.h)
    for name in ("_softmax.default", "_log_softmax.default"):
        yield from ((name, x, -1, False), (name, x, 1, False))
    yield ("_safe_softmax.default", x, -1)
    yield from (("native_layer_norm.default", x, (s.d,), w, s.x(s.d), 1e-5),
                ("native_layer_norm.default", x, (s.s, s.d), s.x(s.s, s.d), None, 1e-5),
                ("native_layer_norm.default", x, (s.s, s.d), None, None, 1e-5),
                ("_fused_rms_norm.default", x, (s.d,), w, 1e-5), ("rms_norm.default", x, w, 1),
                ("rms_norm.default", x, None, 1), ("rms_norm.default", x, s.x(s.s, s.d), 2),
                ("rms_norm.default", s.x(s.b, s.d), w, 1))  # fmt: skip
    weights = s.x(2 * s.c), s.x(2 * s.c)
    yield ("native_group_norm.default", image, *weights, s.b, 2 * s.c, s.s * s.h, 2, 1e-5)
    channels = [*weights, torch.zeros(2 * s.c).double(), torch.ones(2 * s.c).double()]
    for name in ("native_batch_norm.default", "_native_batch_norm_legit.default"):
        yield from ((name, image, *channels, training, 0.1, 1e-5) for training in (True, False))
    yield ("_native_batch_norm_legit.no_stats", image, *channels[:2], True, 0.1, 1e-5)
    yield ("native_batch_norm.default", image, None, None, None, None, True, 0.1, 1e-5)


def reductions(s: Sizes) -> Iterator[Call]:
    x = s.x(s.b, s.s, s.d)
    for name in ("sum", "mean"):
        yield from ((f"{name}.default", x), (f"{name}.dim_IntList" if name == "sum" else "mean.dim", x, (1,)))
        yield (f"{name}.dim_IntList" if name == "sum" else "mean.dim", x, (0, -1), True)
    yield from (("amax.default", x, (1,)), ("amin.default", x, (-1,), True), ("prod.dim_int", x, 1))
    yield from (("var.correction", x, (1,)), ("std.correction", x, (1,)), ("var_mean.correction", x, (2,)))
    yield from (("argmax.default", x, 1), ("argmin.default", x, 2), ("logsumexp.default", x, (1,)))
    yield from (("max.dim", x, 1), ("min.dim", x, 2, True), ("max.default", x), ("max.other", x, s.x(s.d)))
    yield from (("linalg_vector_norm.default", x), ("linalg_vector_norm.default", x, 2, (1,)))
    yield from (("any.dim", x > 1, 1), ("all.dim", x > 0, 2), ("sum.dim_IntList", s.ids(9, s.b, s.d), (0,)))


def routing(s: Sizes) -> Iterator[Call]:
    x = s.x(s.b, s.s, s.d)
    yield from (("topk.default", x, 2), ("topk.default", x, 2, 1), ("sort.default", x), ("sort.default", x, 1))
    yield from (("sort.stable", s.ids(5, s.b, s.d), True), ("argsort.default", x, 1), ("cumsum.default", x, 1))
    yield ("histc.default", s.x(s.b * s.s).abs(), s.d, 0, 3)


def indexing(s: Sizes) -> Iterator[Call]:
    x, rows = s.x(s.s, s.h, s.d), s.ids(s.s, s.q)
    yield from (("index_select.default", x, 0, rows), ("index_select.default", x, 2, s.ids(s.d, s.q)))
    yield from (("index.Tensor", x, (rows,)), ("index.Tensor", x, (None, s.ids(s.h, s.q, s.b))),
                ("index.Tensor", x, (rows.unsqueeze(1), s.ids(s.h, s.b))),
                ("index.Tensor", x, (rows, None, s.ids(s.d, s.q))),
                ("_unsafe_index.Tensor", x, (None, None, s.ids(s.d, s.q))))  # fmt: skip
    yield from (
        ("gather.default", x, 1, s.ids(s.h, s.s, s.q, s.d)),
        ("gather.default", x, 0, s.ids(s.s, s.q, s.h, s.d)),
    )
    yield ("gather.default", x, 1, s.ids(s.h, s.s - 1, s.q, s.d))
    order = torch.randperm(s.h, generator=s.random).view(1, -1, 1).expand(s.s, -1, s.d).contiguous()
    yield from (
        ("scatter.src", x, 1, order, s.x(s.s, s.h, s.d)),
        ("scatter_.value", x, 1, order, 0.5),
        ("scatter.value", x, 1, order, 0.5),
    )
    zeros, ones = (torch.full((size,), value) for size, value in ((s.d, 0), (s.q, 1)))
    yield from (("scatter_add.default", x, 1, s.ids(s.h, s.s, s.q, s.d), s.x(s.s, s.q, s.d)),
                ("scatter_add.default", zeros, 0, s.ids(s.d, s.q), ones))  # fmt: skip
    once = torch.randperm(s.s, generator=s.random)
    yield from (("index_put.default", x, (once,), s.x(s.s, s.h, s.d)),
                ("index_put_.default", x, (once,), s.x(s.h, s.d)),
                ("index_put.default", x, (rows,), s.x(s.q, s.h, s.d), True),
                ("_unsafe_index_put.default", x, (None, s.ids(s.h, s.q)), s.x(s.q, s.d), True),
                ("index_put.default", x, (s.coin(s.s),), s.x(1)),
                ("index_add.default", x, 0, rows, s.x(s.q, s.h, s.d)),
                ("index_add.default", x, 2, s.ids(s.d, s.q), s.x(s.s, s.h, s.q)))  # fmt: skip


def convolution(s: Sizes) -> Iterator[Call]:
    def conv(x: Tensor, w: Tensor, bias: Any, stride: int, padding: int, dilation: int = 1, groups: int = 1) -> Call:
        dims = x.dim() - 2
        return ("convolution.default", x, w, bias, (stride,) * dims, (padding,) * dims, (dilation,) * dims, False,
                (0,) * dims, groups)  # fmt: skip

    even = s.x(s.b, s.c, 8, 12)
    yield from (conv(even, s.x(s.o, s.c, 3, 3), None, 1, 1), conv(even, s.x(s.o, s.c, 3, 3), s.x(s.o), 2, 1))
    yield from (conv(even, s.x(s.o, s.c, 2, 2), s.x(s.o), 2, 0), conv(even, s.x(s.o, s.c, 1, 1), None, 2, 0))
    yield from (conv(even, s.x(s.o, s.c, 3, 3), None, 1, 2, 2), conv(even, s.x(s.o, s.c, 3, 3), None, 1, 0))
    yield conv(s.x(s.b, 2 * s.c, 9), s.x(2 * s.o, s.c, 3), s.x(2 * s.o), 1, 1, 1, 2)
    yield conv(s.x(s.b, s.c, 9), s.x(s.c, 1, 4), s.x(s.c), 1, 3, 1, s.c)
    yield ("convolution.default", even, s.x(s.c, s.o, 2, 2), s.x(s.o), (2, 2), (0, 0), (1, 1), True, (0, 0), 1)
    pooled = s.x(s.b, s.c, 8, 12)
    yield from (("max_pool2d_with_indices.default", pooled, (3, 3), (2, 2), (1, 1)),
                ("max_pool2d_with_indices.default", pooled, (2, 2)), ("avg_pool2d.default", pooled, (2,)),
                ("avg_pool2d.default", pooled, (3, 3), (1, 1), (1, 1)),
                ("_adaptive_avg_pool2d.default", pooled, (4, 1)),
                ("max_pool2d_with_indices.default", s.x(s.b, s.c, 7, 9), (3, 3), (2, 2), (1, 1)))  # fmt: skip


def loss(s: Sizes) -> Iterator[Call]:
    logits, labels = s.x(s.s * 2, s.v), s.ids(s.v, s.s * 2)
    labels[0] = -100
    for reduction in (0, 1, 2):
        yield ("nll_loss_forward.default", logits, labels, None, reduction, -100)


CASES: dict[str, Calls] = {
    "pointwise": pointwise, "allocation": allocation, "views": views, "linear": linear, "attention": attention,
    "embedding": embedding, "norms": norms, "reductions": reductions, "routing": routing, "indexing": indexing,
    "convolution": convolution, "loss": loss,
}  # fmt: skip
