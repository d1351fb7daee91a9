"""What torch itself says of a model: FLOP, operations and saved tensors of a plain eager or traced run."""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from costmodels.compute import DTYPE_BYTES
from planner import models, ops
from planner.capture.fused import FusedKernels
from planner.capture.segments import RawModel
from planner.capture.trace import _Tracer, trace
from planner.capture.unchanged import unchanged
from planner.graph import ModelGraph
from planner.models import ModelConfig

aten = torch.ops.aten
Inputs = Callable[[int, int], Any]


# --- graphs, each traced once ---


@cache
def built(config: ModelConfig, seq_len: int, dtype: torch.dtype = torch.bfloat16) -> ModelGraph:
    """Graph of a built-in model."""
    with torch.device("meta"):
        model, inputs = models.build_from_config(config)
    return trace(model, inputs, seq_len=seq_len, dtype=dtype)


def at_one_point(
    model: nn.Module,
    inputs: Inputs,
    batch: int,
    seq_len: int,
    dtype: torch.dtype = torch.bfloat16,
    loss_fn: Callable[..., Tensor] | None = None,
) -> RawModel:
    """What one pass of the tracer finds: a quarter of the work of `trace`, with sizes that hold for this point only."""
    with unchanged(model):
        model.train()
        return _Tracer(model, inputs, dtype, loss_fn).at(batch, seq_len)


def built_at_one_point(config: ModelConfig, batch: int, seq_len: int, dtype: torch.dtype = torch.bfloat16) -> RawModel:
    with torch.device("meta"):
        model, inputs = models.build_from_config(config)
    return at_one_point(model, inputs, batch, seq_len, dtype)


def shallow(name: str) -> ModelConfig:
    """A preset with every width, but no more layers than it takes to have each kind of block twice."""
    config = models.preset(name).config
    if not hasattr(config, "num_layers"):
        return config
    return dataclasses.replace(config, num_layers=getattr(config, "num_dense_layers", 0) + 2)


def count_flop(graph: ModelGraph | RawModel, batch: int, seq_len: int) -> tuple[int, int]:
    """Forward and backward FLOP."""
    total = {"forward": 0, "backward": 0}
    for segment in graph.segments:
        block = graph.blocks[segment.block]
        shapes = [value.shape(batch, seq_len) for value in block.values]
        for op in block.ops:
            total[op.phase] += ops.flop(op, shapes)
    return total["forward"], total["backward"]


def count_ops(graph: ModelGraph | RawModel, batch: int, seq_len: int) -> Counter[Any]:
    """(target, input shapes, output shapes) of every operation."""
    counts: Counter[Any] = Counter()
    for segment in graph.segments:
        block = graph.blocks[segment.block]
        shapes = [value.shape(batch, seq_len) for value in block.values]
        for op in block.ops:
            inputs, outputs = (tuple(sorted(shapes[v] for v in side)) for side in (op.inputs, op.outputs))
            counts[op.target, inputs, outputs] += 1
    return counts


def saved_bytes(graph: ModelGraph | RawModel, batch: int, seq_len: int) -> int:
    """Bytes of what all segments save for the backward pass."""
    blocks = [graph.blocks[segment.block] for segment in graph.segments]
    values = [block.values[v] for block in blocks for v in block.saved]
    return sum(prod(value.shape(batch, seq_len)) * DTYPE_BYTES[value.dtype] for value in values)


# --- torch's word ---


def _attention_flop(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """q k^T and p v: a multiply and an add for each of the head's elements, per pair of positions."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def _attention_backward_flop(_grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """The scores again, dq and dk over the query/key dim; dv and dp over the value dim."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (3 * q[3] + 2 * v[3])


def _grouped_mm_flop(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Every row meets one expert's matrix; for the weights' gradient, every row yields one outer product."""
    return 2 * a[-2] * a[-1] * b[-1]


MISSING_IN_TORCH = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
    aten._grouped_mm: _grouped_mm_flop,
}
"""Formulas that torch's counter lacks, from the definitions of the operations."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def eager_flop(config: ModelConfig, batch: int, seq_len: int, dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
    """Forward and backward FLOP of the built-in model, run eagerly on fake CPU tensors."""
    with default_dtype(dtype), FakeTensorMode(allow_non_fake_inputs=True):
        model, inputs = models.build_from_config(config)
        return eager_flop_of(lambda: model(*inputs(batch, seq_len)))


def eager_flop_of(run: Callable[[], Tensor]) -> tuple[int, int]:
    """Forward and backward FLOP of whatever ``run`` does to return a loss."""
    with FlopCounterMode(display=False, custom_mapping=MISSING_IN_TORCH) as forward:
        loss = run()
    with FlopCounterMode(display=False, custom_mapping=MISSING_IN_TORCH) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def plain_ops(model: nn.Module, inputs: Inputs, batch: int, seq_len: int, dtype: torch.dtype) -> Counter[Any]:
    """As `count_ops`, of a plain ``make_fx`` of the whole step that knows nothing of blocks."""
    with FakeTensorMode(allow_non_fake_inputs=True), FusedKernels():
        params = {
            name: torch.empty(p.shape, dtype=dtype, requires_grad=p.requires_grad)
            for name, p in model.named_parameters()
        }
        buffers = {name: torch.empty(b.shape, dtype=b.dtype) for name, b in model.named_buffers()}
        example = tuple(
            torch.empty(t.shape, dtype=dtype if t.is_floating_point() else t.dtype) for t in inputs(batch, seq_len)
        )

        def step(params: Any, buffers: Any, example: Any, grad: Tensor) -> Any:
            loss = torch.func.functional_call(model, {**params, **buffers}, example)
            trained = [p for p in params.values() if p.requires_grad]
            return loss, torch.autograd.grad(loss, trained, grad, allow_unused=True)

        traced = make_fx(step)(params, buffers, example, torch.empty((), dtype=torch.float32))
    counts: Counter[Any] = Counter()
    for node in traced.graph.nodes:
        # torch records these two around saved tensors; they compute nothing.
        if not isinstance(node.target, torch._ops.OpOverload) or node.target._opname in ("detach", "alias"):
            continue
        outputs = tuple(sorted(tuple(t.shape) for t in _tensors(node.meta["val"])))
        read = {id(n): tuple(n.meta["val"].shape) for n in node.all_input_nodes}
        counts[str(node.target).partition(".")[2], tuple(sorted(read.values())), outputs] += 1
    return counts


def _tensors(value: Any) -> list[Tensor]:
    return [v for v in (value if isinstance(value, tuple | list) else [value]) if isinstance(v, Tensor)]


@contextmanager
def seen_inputs(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the tensors that are handed to the modules, once per call."""
    seen: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.extend(_tensors(args))

    handles = [module.register_forward_pre_hook(note) for module in modules]
    yield seen
    for handle in handles:
        handle.remove()


class _Saved:
    """What autograd holds instead of a saved tensor, for as long as it would hold the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def eager_saved_bytes(
    model: nn.Module, example: tuple[Tensor, ...], segments: list[nn.Module], *, fused: bool = True
) -> int:
    """Bytes that stay in memory from forward to backward, by autograd's own hooks, and held as segments hold them.

    Each storage counts once. Not counted: parameters, buffers and the model's inputs, which live anyway, and what
    segments are handed that needs no gradient (rotary angles), which all of them share. What a segment is handed
    that does need one counts once per segment, even if backward could do without: a stage keeps its inputs.

    Args:
        segments: one module per segment, except the first segment, which is handed the model's inputs alone.
        fused: run with the kernels of an accelerator.
    """
    lasting = [*model.parameters(), *model.buffers(), *example]
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def keep(tensor: Tensor) -> _Saved:
        kept = _Saved(tensor)
        alive.add(kept)
        return kept

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor)
    with seen_inputs(segments) as handed, hooks, FusedKernels() if fused else nullcontext():
        loss = model(*example)
    # What the loss does not depend on (a router's choice) autograd has dropped by now.
    saved = {kept.tensor.untyped_storage()._cdata: kept.tensor for kept in alive}
    del loss
    for tensor in (*lasting, *handed):
        saved.pop(tensor.untyped_storage()._cdata, None)
    kept = [*saved.values(), *(tensor for tensor in handed if tensor.requires_grad)]
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)
