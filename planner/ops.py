"""What one ATen call does, from its name and shapes alone: kind, FLOP, GEMM dims, bytes moved.

Shapes are passed in, so the same functions price the whole tensor and one device's shard of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from costmodels.compute import DTYPE_BYTES
from planner.graph import Block, Op, Ref

Shape = tuple[int, ...]
Shapes = Sequence[Shape] | Mapping[int, Shape]
"""Shape of values of a block, by value index."""

GROUPED = {"_grouped_mm"}
MATMUL = {"mm", "addmm", "bmm", "baddbmm"} | GROUPED
CONVOLUTION = {"convolution", "convolution_backward"}
ATTENTION = {"attention"}
ATTENTION_BACKWARD = {"attention_backward"}
"""Fused attention as capture records it (see `planner.capture.attention`)."""
COMPUTE_HEAVY = MATMUL | CONVOLUTION | ATTENTION
"""Forward calls whose results selective recomputation keeps."""
NORMS = {
    "native_layer_norm", "native_layer_norm_backward", "native_group_norm", "native_group_norm_backward",
    "native_batch_norm", "native_batch_norm_backward", "_native_batch_norm_legit", "cudnn_batch_norm", "rms_norm",
    "rms_norm_backward", "_fused_rms_norm", "_fused_rms_norm_backward", "_softmax", "_softmax_backward_data",
    "_log_softmax", "_log_softmax_backward_data",
}  # fmt: skip
"""Calls that reduce over rows before they write them, which reach less of the memory bandwidth than streaming."""
ALLOCATION = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
LOOKUP = {"embedding", "index", "index_select", "gather", "select", "slice"}
"""Calls that read of their first argument only what they return."""
UNREAD = {"nll_loss_forward": 0, "nll_loss_backward": 1}
"""Calls that read next to nothing of the argument at this place: a loss looks up one log-probability per row."""

COPIES = {
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "t", "transpose", "permute", "expand", "clone",
    "_to_copy", "index", "index_select", "gather", "select",
}  # fmt: skip
"""Calls that only move values: what they read may be communicated in place of their result."""
LINEAR = COPIES | {"mul", "sum", "index_add", "index_put", "_unsafe_index_put", "scatter_add", "div"}
"""Calls through which a partial sum may pass before it is reduced."""

SHUFFLES = {
    "sort", "topk", "argsort", "cumsum", "index", "index_select", "gather", "scatter", "scatter_add", "index_add",
    "index_put", "index_put_", "_unsafe_index_put",
}  # fmt: skip
"""Calls that reorder tokens."""


@dataclass(frozen=True, slots=True)
class Gemm:
    """``groups`` independent products [m, k] x [k, n]."""

    groups: int
    m: int
    n: int
    k: int

    @property
    def flop(self) -> int:
        """2 m n k per group: a multiply and an add each."""
        return 2 * self.groups * self.m * self.n * self.k


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(q k^T) v over [batch, heads, q_len, head_dim]; ``value_dim`` may differ from ``head_dim`` (MLA)."""

    batch: int
    heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    causal: bool
    backward: bool

    @property
    def flop(self) -> int:
        """FLOP without credit for causal skipping, as torch.utils.flop_counter counts them.

        Forward: q k^T and p v. Backward: the scores again, dp = do v^T, dv = p^T do, dq = ds k, dk = ds^T q.
        """
        values = self.scores_flop // self.head_dim * self.value_dim
        return 3 * self.scores_flop + 2 * values if self.backward else self.scores_flop + values

    @property
    def scores_flop(self) -> int:
        """FLOP of one product q k^T."""
        return 2 * self.batch * self.heads * self.q_len * self.kv_len * self.head_dim


def gemms(op: Op, shapes: Shapes) -> tuple[Gemm, ...]:
    """Matrix products of a call; a convolution counts as its implicit GEMMs (im2col), none for any other call."""
    if op.name in CONVOLUTION:
        return _convolution(op, shapes)
    if op.name not in MATMUL:
        return ()
    tensors = [shapes[arg.value] for arg in op.args if isinstance(arg, Ref)]
    if op.name == "_grouped_mm":
        return (_grouped(tensors[0], tensors[1], shapes[op.outputs[0]]),)
    a, b = tensors[-2:]
    groups = a[0] if len(a) == 3 else 1
    return (Gemm(groups, m=a[-2], n=b[-1], k=a[-1]),)


def _grouped(a: Shape, b: Shape, out: Shape) -> Gemm:
    """[T, k] x [G, k, n]: rows are shared out over G groups. [m, T] x [T, n] -> [G, m, n]: the contraction is."""
    if len(a) == 2 and len(b) == 3:
        return Gemm(groups=b[0], m=max(1, a[0] // b[0]), n=b[2], k=b[1])
    if len(a) == 2 and len(b) == 2:
        return Gemm(groups=out[0], m=a[0], n=b[1], k=max(1, a[1] // out[0]))
    return Gemm(groups=a[0], m=a[-2], n=b[-1], k=a[-1])


def is_depthwise(op: Op, products: Sequence[Gemm]) -> bool:
    """Whether a call is a convolution channel by channel: too little arithmetic per byte for a matrix unit."""
    return op.name in CONVOLUTION and products[0].groups > 1 and min(products[0].n, products[0].k) < MATRIX_UNIT


MATRIX_UNIT = 8
"""Shortest side that matrix units work on (the m16n8k8 instruction of CUDA's PTX ISA)."""


def _convolution(op: Op, shapes: Shapes) -> tuple[Gemm, ...]:
    """Output positions x output channels x (input channels per group x kernel), per group; backward once per
    gradient. A transposed convolution is the same with input and output exchanged."""
    backward = op.name == "convolution_backward"
    tensors = [shapes[arg.value] for arg in op.args if isinstance(arg, Ref)]
    out, x, weight = tensors[:3] if backward else (shapes[op.outputs[0]], *tensors[:2])
    transposed = op.args[7 if backward else 6] is True
    groups = max(1, (out if transposed else x)[1] // weight[1])  # of a shard: fewer than the call's argument says
    positions = x[0] * prod(x[2:]) if transposed else out[0] * prod(out[2:])
    forward = Gemm(groups, m=positions, n=weight[0] // groups, k=prod(weight[1:]))
    if not backward:
        return (forward,)
    input_grad = Gemm(groups, m=positions, n=forward.k, k=forward.n)
    weight_grad = Gemm(groups, m=forward.n, n=forward.k, k=positions)
    mask = op.args[-1]
    assert isinstance(mask, tuple)
    return tuple(g for g, wanted in zip((input_grad, weight_grad), mask[:2], strict=True) if wanted)


def attention(op: Op, shapes: Shapes) -> Attention | None:
    """The fused attention that a call runs, if it is one."""
    backward = op.name in ATTENTION_BACKWARD
    if not backward and op.name not in ATTENTION:
        return None
    tensors = [shapes[arg.value] for arg in op.args if isinstance(arg, Ref)]
    q, k, v = tensors[1:4] if backward else tensors[:3]
    causal = op.args[7 if backward else 4] is True
    return Attention(
        batch=q[0], heads=q[1], q_len=q[2], kv_len=k[2], head_dim=q[3], value_dim=v[3], causal=causal, backward=backward
    )


def flop(op: Op, shapes: Shapes) -> int:
    """FLOP of matrix products, convolutions and attention; pointwise work is priced by bytes and counts as none.

    The convention of ``torch.utils.flop_counter``: what kernels do, the scores that attention computes again included.
    """
    fused = attention(op, shapes)
    return fused.flop if fused else sum(gemm.flop for gemm in gemms(op, shapes))


def model_flop(op: Op, shapes: Shapes) -> int:
    """FLOP that the model asks for, by the convention of MFU: nothing that is computed again (Chowdhery et al. 2022,
    PaLM, appendix B), so four products in attention's backward rather than five."""
    fused = attention(op, shapes)
    return flop(op, shapes) - (fused.scores_flop if fused and fused.backward else 0)


def is_unpriced(op: Op) -> bool:
    """Whether a call may do arithmetic that `flop` knows nothing of: recurrent and Fourier kernels, linear algebra, and
    operators from outside of ATen."""
    return op.target.count(".") > 1 or op.name.startswith(UNPRICED)


UNPRICED = ("mkldnn_rnn", "_cudnn_rnn", "_thnn_fused", "lstm", "gru", "rnn_", "_fft", "linalg_", "_linalg", "_cdist")


def is_free(op: Op, block: Block) -> bool:
    """Whether a call launches no kernel: views and bare allocations."""
    if op.name in ALLOCATION:
        return True
    if op.name.endswith("_") or not op.outputs:
        return False
    sources = {block.values[v].storage for v in op.inputs}
    return all(block.values[v].storage in sources for v in op.outputs)


def moved_bytes(op: Op, block: Block, shapes: Shapes) -> int:
    """Bytes that a call reads and writes: each argument and result once, lookups only what they return."""
    written = sum(prod(shapes[v]) * DTYPE_BYTES[block.values[v].dtype] for v in op.outputs)
    read = op.inputs
    if op.name in LOOKUP:
        written *= 2
        read = read[1:]
    elif op.name in UNREAD:
        place = UNREAD[op.name]
        read = (*read[:place], *read[place + 1 :])
    return written + sum(prod(shapes[v]) * DTYPE_BYTES[block.values[v].dtype] for v in read)
