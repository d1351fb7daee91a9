"""`trace`: any `nn.Module` and example inputs -> `ModelGraph`, without weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from costmodels.compute import DTYPE_BYTES
from planner.capture.batches import recorded
from planner.capture.blocks import find_blocks, position_attributes, structure_keys, watched
from planner.capture.calls import NotOpaqueError, Observed, observe
from planner.capture.failures import Located
from planner.capture.fused import FusedKernels
from planner.capture.joint import JointGraph, trace_block, trace_outer
from planner.capture.lower import Lowered
from planner.capture.segments import RawModel, cut, lower_block
from planner.capture.shapes import Point, ShapeMismatchError, fit
from planner.capture.unchanged import unchanged
from planner.errors import MeshwrightError, TraceError
from planner.graph import ModelGraph, Parameter, Segment
from planner.ops import is_unpriced

Inputs: TypeAlias = Callable[[int, int], Any]
"""``inputs(batch, seq_len)`` -> tuple of positional or dict of keyword example inputs; only shapes and dtypes count."""


def trace(
    model: nn.Module,
    inputs: Inputs,
    *,
    name: str = "model",
    seq_len: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    loss_fn: Callable[..., torch.Tensor] | None = None,
) -> ModelGraph:
    """Trace forward and backward of one microbatch.

    The model is run on fake CPU tensors (shape and dtype, no data); its own parameters are neither read nor changed, so
    it may live on ``meta``. Floating point parameters and inputs count as ``dtype``, the compute precision.

    Args:
        model: returns its own scalar loss (alone, as ``loss`` of an object or dict, or as the only scalar of a tuple),
            or tensors for ``loss_fn``.
        inputs: see `Inputs`; batch is the number of samples of the microbatch.
        seq_len: the length of interest; shapes are found from it, a half and a quarter of it (see
            `planner.capture.shapes`).
        loss_fn: ``loss_fn(output, target)``; the last positional input is then the target and not given to the model.
            Without it a model that returns no loss is differentiated through the sum of its outputs, with a warning.
    Raises:
        TraceError: the model fails on fake tensors, is compiled, or its operations change with the batch.
    """
    return trace_with(model, inputs, name=name, seq_len=seq_len, dtype=dtype, loss_fn=loss_fn)[0]


def trace_with(
    model: nn.Module,
    inputs: Inputs,
    *,
    name: str = "model",
    seq_len: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    loss_fn: Callable[..., torch.Tensor] | None = None,
    batch: int | None = None,
) -> tuple[ModelGraph, tuple[Traced, ...]]:
    """`trace`; and the graphs themselves of a microbatch of ``batch`` samples, where that is given: those of two and
    three where one sample has other operations."""
    compiled = [fqn for fqn, m in model.named_modules() if hasattr(m, "_orig_mod") or m._compiled_call_impl is not None]
    if compiled:
        raise TraceError(
            f"cannot trace {type(model).__name__}: {compiled[0] or 'the model'} went through torch.compile, which fake "
            "tensors cannot enter. What to do: plan the plain module and compile what runs."
        )
    with unchanged(model):
        model.train()  # dropout and batch norm do in training what they do not in evaluation
        tracer = _Tracer(model, inputs, dtype, loss_fn)
        raw, fixed_seq_len = tracer.symbolic(seq_len)
        traced = tracer.microbatch(raw, batch, seq_len) if batch is not None else ()
    params = tuple(
        Parameter(fqn=fqn, shape=tuple(p.shape), requires_grad=p.requires_grad) for fqn, p in model.named_parameters()
    )
    canonical = {id(p): fqn for fqn, p in model.named_parameters()}
    aliases = {
        fqn: canonical[id(p)] for fqn, p in model.named_parameters(remove_duplicate=False) if canonical[id(p)] != fqn
    }
    read = {
        aliases.get(fqn := segment.absolute(relative), fqn)
        for segment in raw.segments
        for relative, _ in raw.blocks[segment.block].params
    }
    unread = {p.fqn: p.numel * DTYPE_BYTES["float32"] for p in params if p.fqn not in read}
    buffers = {fqn: b.numel() * b.element_size() for fqn, b in model.named_buffers()}
    segments, resident_bytes = _resident(raw.segments, buffers, unread)
    if unread:
        tracer.warnings[f"no operation reads {', '.join(unread)}: held in memory, never trained"] = None
    for segment in raw.segments:
        for op in raw.blocks[segment.block].ops:
            if is_unpriced(op):
                where = segment.absolute(op.fqn) or name
                tracer.warnings[
                    f"{op.target} at {where} is priced by the bytes that it moves: its FLOP are not known"
                ] = None
    dims = [dim for block in raw.blocks for value in block.values for dim in value.dims]
    graph = ModelGraph(
        name=name,
        blocks=raw.blocks,
        segments=segments,
        params=params,
        aliases=aliases,
        crossings=raw.crossings,
        resident_bytes=resident_bytes,
        fixed_seq_len=fixed_seq_len,
        has_sequence=fixed_seq_len is not None or any(dim.slope for dim in dims),
        warnings=tuple(tracer.warnings),
        inputs=recorded(inputs, seq_len),
    )
    return graph, traced


def _resident(
    segments: tuple[Segment, ...], buffers: Mapping[str, int], unread: Mapping[str, int]
) -> tuple[tuple[Segment, ...], tuple[int, ...]]:
    """Give what no operation accounts for to the segment of its module, or to the first; unread modules join it."""

    def home(fqn: str) -> int:
        owners = ((i, name) for i, segment in enumerate(segments) for name in segment.modules)
        return next((i for i, name in owners if f"{fqn}.".startswith(f"{name}.")), 0)

    sizes = [0] * len(segments)
    for fqn, size in (*buffers.items(), *unread.items()):
        sizes[home(fqn)] += size
    named = {name for segment in segments for name in segment.modules}
    orphans = [
        fqn.rpartition(".")[0] or fqn for fqn in unread if not any(f"{fqn}.".startswith(f"{name}.") for name in named)
    ]
    first = replace(segments[0], modules=tuple(dict.fromkeys((*segments[0].modules, *orphans))))
    return (first, *segments[1:]), tuple(sizes)


@dataclass(frozen=True)
class Traced:
    """A model's graphs at one batch and sequence length."""

    raw: RawModel
    made: tuple[Lowered, ...]
    """Per segment (see `planner.capture.segments.cut`)."""
    outer: JointGraph
    calls: tuple[tuple[JointGraph, Lowered], ...]
    """Per distinct call of a block."""


class _Tracer:
    def __init__(
        self, model: nn.Module, inputs: Inputs, dtype: torch.dtype, loss_fn: Callable[..., torch.Tensor] | None
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.dtype = dtype
        self.loss_fn = loss_fn
        self.blocks = find_blocks(model)
        self.positions = position_attributes(self.blocks)
        self.structure = structure_keys(self.blocks, self.positions)
        self.warnings: dict[str, None] = {}

    def symbolic(self, seq_len: int) -> tuple[RawModel, int | None]:
        """The model with symbolic shapes, and the only length that it holds for (``None``: any length)."""
        batch_points = [(2, seq_len), (4, seq_len)]
        traced = {point: self.at(*point) for point in batch_points}

        def fitted(points: Sequence[tuple[int, int]]) -> RawModel:
            for point in points:
                if point not in traced:
                    traced[point] = self.at(*point)
            return fit([Point(batch, length, traced[batch, length]) for batch, length in points])

        if not self._inputs_depend_on(seq_len):
            return self._fixed(fitted, seq_len), None
        try:
            return fitted([*batch_points, (2, seq_len // 2), (3, max(seq_len // 4, 1))]), None
        except (ShapeMismatchError, TraceError) as failure:
            raw = self._fixed(fitted, seq_len)
            self.warnings[f"traced for seq_len {seq_len} only: at other lengths {failure}"] = None
            return raw, seq_len

    def _fixed(self, fitted: Callable[[Sequence[tuple[int, int]]], RawModel], seq_len: int) -> RawModel:
        try:
            return fitted([(2, seq_len), (4, seq_len), (3, seq_len)])
        except ShapeMismatchError as failure:
            raise TraceError(
                f"the operations of {type(self.model).__name__} change with the number of samples: {failure}. A plan "
                "needs one program for every microbatch; remove the branch on the batch size, or pad."
            ) from failure

    def _inputs_depend_on(self, seq_len: int) -> bool:
        if seq_len < 2:
            return False
        with FakeTensorMode(allow_non_fake_inputs=True):
            whole, half = (pytree.tree_leaves(self._example(2, length)) for length in (seq_len, seq_len // 2))
        return any(isinstance(a, torch.Tensor) and a.shape != b.shape for a, b in zip(whole, half, strict=True))

    def microbatch(self, raw: RawModel, batch: int, seq_len: int) -> tuple[Traced, ...]:
        """The graphs of a microbatch, or of two and of three samples (`planner.capture.one_sample`)."""
        traced = self.graphs(batch, seq_len)
        if batch > 1 or _targets(traced.raw) == _targets(raw):
            return (traced,)
        return self.graphs(2, seq_len), self.graphs(3, seq_len)

    def at(self, batch: int, seq_len: int) -> RawModel:
        """Trace at one point."""
        return self.graphs(batch, seq_len).raw

    def graphs(self, batch: int, seq_len: int) -> Traced:
        """Trace at one point, and keep the graphs."""
        with FakeTensorMode(allow_non_fake_inputs=True), FusedKernels(), torch.enable_grad():
            params = {fqn: self._fake(p) for fqn, p in self.model.named_parameters()}
            buffers = {fqn: torch.empty(b.shape, dtype=b.dtype) for fqn, b in self.model.named_buffers()}
            example = self._example(batch, seq_len)
            with Located(self.model, batch, seq_len):
                observed = self._observe(lambda: self._loss({**params, **buffers}, example))
                calls = [
                    trace_block(
                        call,
                        {fqn: self._fake(p) for fqn, p in call.module.named_parameters()},
                        {fqn: torch.empty(b.shape, dtype=b.dtype) for fqn, b in call.module.named_buffers()},
                    )
                    for call in observed.calls
                ]
                outer = trace_outer(
                    self.model, self._loss, observed, self.blocks, self.structure, params, buffers, example
                )
            lowered = [lower_block(call) for call in calls]
            raw, made = cut(outer, observed, list(self.blocks), lowered)
            return Traced(raw, made, outer, tuple(zip(calls, lowered, strict=True)))

    def _observe(self, run: Callable[[], torch.Tensor]) -> Observed:
        """Run the model until it is known which calls are alike; mostly once."""
        while True:
            try:
                with watched(self.blocks, self.positions) as read:
                    observed = observe(self.model, run, self.blocks, self.structure)
            except NotOpaqueError as found:
                kind = type(self.blocks[found.fqn])
                self.blocks = {fqn: block for fqn, block in self.blocks.items() if type(block) is not kind}
                self.warnings[
                    f"every {kind.__name__} is traced anew, and no plan cuts between them: {found.fqn} {found.reason}"
                ] = None
            else:
                if not read:
                    return observed
                self.positions = {fqn: paths - read for fqn, paths in self.positions.items()}
            self.structure = structure_keys(self.blocks, self.positions)

    def _fake(self, param: nn.Parameter) -> torch.Tensor:
        dtype = self.dtype if param.is_floating_point() else param.dtype
        return torch.empty(param.shape, dtype=dtype, requires_grad=param.requires_grad)

    def _example(self, batch: int, seq_len: int) -> Any:
        """Example inputs as fake tensors of the compute precision."""
        try:
            example = self.inputs(batch, seq_len)
        except MeshwrightError:
            raise
        except Exception as cause:
            raise TraceError(
                f"inputs(batch={batch}, seq_len={seq_len}) raised {type(cause).__name__}: {cause}. It must return the "
                "example inputs (a tuple, or a dict for keyword arguments) for any batch and sequence length."
            ) from cause

        if not isinstance(example, tuple | list | dict):
            raise TraceError(
                f"inputs(batch={batch}, seq_len={seq_len}) returned {type(example).__name__}: it must return the "
                "example inputs as a tuple, or as a dict for keyword arguments."
            )

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty(tensor.shape, dtype=self.dtype if tensor.is_floating_point() else tensor.dtype)

        return pytree.tree_map_only(torch.Tensor, fake, example)

    def _loss(self, state: Mapping[str, torch.Tensor], example: Any) -> torch.Tensor:
        args, kwargs = ((), example) if isinstance(example, dict) else (tuple(example), {})
        target = ()
        if self.loss_fn is not None:
            args, target = args[:-1], args[-1:]
        out = torch.func.functional_call(self.model, dict(state), args, kwargs)
        loss = _own_loss(out) if self.loss_fn is None else self.given_loss(out, *target)
        if loss is not None:
            if loss.requires_grad:
                return loss
            raise TraceError(
                f"the loss of {type(self.model).__name__} depends on no trained parameter: check requires_grad, and "
                "that forward neither detaches nor runs under no_grad."
            )
        floats = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not floats:
            raise TraceError(
                f"{type(self.model).__name__} returns nothing that depends on a trained parameter; return a loss, or "
                "give loss_fn."
            )
        self.warnings["the model returns no loss: the sum of its outputs was differentiated instead"] = None
        return torch.stack([t.float().sum() for t in floats]).sum()

    def given_loss(self, out: Any, *target: Any) -> torch.Tensor:
        assert self.loss_fn is not None
        loss = self.loss_fn(out, *target)
        if _is_scalar(loss):
            return loss
        kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise TraceError(f"loss_fn returned {kind}: it must return one floating point number, e.g. a mean.")


def _targets(raw: RawModel) -> list[list[str]]:
    return [[op.target for op in block.ops] for block in raw.blocks]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 0 and value.is_floating_point()


def _own_loss(out: Any) -> torch.Tensor | None:
    """The loss among a model's results: the scalar itself, what is called ``loss``, or the only scalar of a tuple."""
    if _is_scalar(out):
        return out
    named = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    if _is_scalar(named):
        return named
    scalars = [t for t in out if _is_scalar(t) and t.requires_grad] if isinstance(out, tuple | list) else []
    return scalars[0] if len(scalars) == 1 else None
