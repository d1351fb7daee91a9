"""`trace`: any `nn.Module` and example inputs -> `ModelGraph`, without weights in memory."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from planner.capture.blocks import find_blocks, structure_keys
from planner.capture.fused import FusedKernels
from planner.capture.joint import observe, trace_block, trace_outer
from planner.capture.segments import RawModel, cut, lower_block
from planner.capture.shapes import Point, ShapeMismatchError, fit
from planner.errors import MeshwrightError, TraceError
from planner.graph import ModelGraph, Parameter

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
        model: returns its own scalar loss, an object with a ``loss``, or tensors for ``loss_fn``. inputs: see
        `Inputs`; batch is the number of samples of the microbatch. seq_len: the length of interest; shapes are found
        from it, a half and a quarter of it (see `planner.capture.shapes`). loss_fn: ``loss_fn(output, target)``; the
        last positional input is then the target and not given to the model.
            Without it a model that returns no loss is differentiated through the sum of its outputs, with a warning.
    Raises:
        TraceError: the model fails on fake tensors, or its operations change with the batch.
    """
    with _TrainingMode(model):
        tracer = _Tracer(model, inputs, dtype, loss_fn)
        raw, fixed_seq_len = tracer.symbolic(seq_len)
    params = tuple(
        Parameter(fqn=fqn, shape=tuple(p.shape), requires_grad=p.requires_grad) for fqn, p in model.named_parameters()
    )
    canonical = {id(p): fqn for fqn, p in model.named_parameters()}
    aliases = {
        fqn: canonical[id(p)] for fqn, p in model.named_parameters(remove_duplicate=False) if canonical[id(p)] != fqn
    }
    dims = [dim for block in raw.blocks for value in block.values for dim in value.dims]
    return ModelGraph(
        name=name,
        blocks=raw.blocks,
        segments=raw.segments,
        params=params,
        aliases=aliases,
        crossings=raw.crossings,
        fixed_seq_len=fixed_seq_len,
        has_sequence=fixed_seq_len is not None or any(dim.slope for dim in dims),
        warnings=tuple(tracer.warnings),
    )


class _TrainingMode:
    """Trains for the time of the context: dropout and batch norm do in training what they do not in evaluation."""

    def __init__(self, model: nn.Module) -> None:
        self.modes = {module: module.training for module in model.modules()}
        self.model = model

    def __enter__(self) -> None:
        self.model.train()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes.items():
            module.training = mode


class _Tracer:
    def __init__(
        self, model: nn.Module, inputs: Inputs, dtype: torch.dtype, loss_fn: Callable[..., torch.Tensor] | None
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.dtype = dtype
        self.loss_fn = loss_fn
        self.blocks = find_blocks(model)
        self.structure = structure_keys(self.blocks)
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
        if seq_len < 4:
            return False
        with FakeTensorMode(allow_non_fake_inputs=True):
            whole, half = (pytree.tree_leaves(self._example(2, length)) for length in (seq_len, seq_len // 2))
        return any(isinstance(a, torch.Tensor) and a.shape != b.shape for a, b in zip(whole, half, strict=True))

    def at(self, batch: int, seq_len: int) -> RawModel:
        """Trace at one point."""
        with FakeTensorMode(allow_non_fake_inputs=True), FusedKernels(), torch.enable_grad():
            params = {fqn: self._fake(p) for fqn, p in self.model.named_parameters()}
            buffers = {fqn: torch.empty(b.shape, dtype=b.dtype) for fqn, b in self.model.named_buffers()}
            example = self._example(batch, seq_len)
            with _Located(self.model, batch, seq_len):
                observed = observe(lambda: self._loss({**params, **buffers}, example), self.blocks, self.structure)
                graphs = [
                    lower_block(
                        trace_block(
                            call,
                            {fqn: self._fake(p) for fqn, p in call.module.named_parameters()},
                            {fqn: torch.empty(b.shape, dtype=b.dtype) for fqn, b in call.module.named_buffers()},
                        )
                    )
                    for call in observed.calls
                ]
                outer = trace_outer(
                    self.model, self._loss, observed, self.blocks, self.structure, params, buffers, example
                )
            return cut(outer, observed, list(self.blocks), graphs)

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

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty(tensor.shape, dtype=self.dtype if tensor.is_floating_point() else tensor.dtype)

        return pytree.tree_map_only(torch.Tensor, fake, example)

    def _loss(self, state: Mapping[str, torch.Tensor], example: Any) -> torch.Tensor:
        args, kwargs = ((), example) if isinstance(example, dict) else (tuple(example), {})
        target = ()
        if self.loss_fn is not None:
            args, target = args[:-1], args[-1:]
        out = torch.func.functional_call(self.model, dict(state), args, kwargs)
        if self.loss_fn is not None:
            return self.loss_fn(out, *target)
        loss = getattr(out, "loss", out)
        if isinstance(loss, torch.Tensor) and loss.dim() == 0 and loss.is_floating_point():
            return loss
        floats = [t for t in pytree.tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not floats:
            raise TraceError(
                f"{type(self.model).__name__} returns nothing that depends on a trained parameter; return a loss, or "
                "give loss_fn."
            )
        self.warnings["the model returns no loss: the sum of its outputs was differentiated instead"] = None
        return torch.stack([t.float().sum() for t in floats]).sum()


ADVICE = {
    "DataDependentOutputException": "a tensor's value is read (`.item()`, `if tensor:`, `int(tensor)`), which tracing "
    "does not have; use torch.where, or keep the decision out of forward",
    "DynamicOutputShapeException": "a result's shape depends on values (nonzero, boolean indexing, unique); use a form "
    "with fixed shapes, e.g. top-k with sorting and torch grouped_mm for experts",
    "GuardOnDataDependentSymNode": "a branch depends on a tensor's value; use torch.where",
    "UnsupportedFakeTensorException": "an operation has no shape rule; register one with torch.library.register_fake",
    "UnsupportedOperatorException": "an operation has no shape rule; register one with torch.library.register_fake",
}


class _Located:
    """Turns whatever the model raises into a `TraceError` with the module's FQN and the source line."""

    def __init__(self, model: nn.Module, batch: int, seq_len: int) -> None:
        self.names: dict[Hashable, str] = {id(module): fqn for fqn, module in model.named_modules()}
        self.model = model
        self.where = f"batch {batch}, seq_len {seq_len}"
        self.running: list[str] = []

    def __enter__(self) -> None:
        hooks = torch.nn.modules.module
        self.handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave),
        ]

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.running.append(self.names.get(id(module), ""))

    def _leave(self, module: nn.Module, *_: Any) -> None:
        self.running.pop()

    def __exit__(self, kind: Any, cause: BaseException | None, _: Any) -> None:
        for handle in self.handles:
            handle.remove()
        if cause is None or isinstance(cause, MeshwrightError) or not isinstance(cause, Exception):
            return
        fqn = self.running[-1] if self.running else ""
        place = f"{type(self.model).__name__}{'.' + fqn if fqn else ''}"
        advice = next((text for name, text in ADVICE.items() if name in _exception_names(cause)), None)
        raise TraceError(
            f"cannot trace {place} at {_source_line(cause)}: {type(cause).__name__}: {_first_line(cause)} "
            f"(on fake tensors, {self.where}). "
            + (f"What to do: {advice}." if advice else "What to do: check that the model runs on its example inputs.")
        ) from cause


def _exception_names(cause: BaseException | None) -> set[str]:
    names: set[str] = set()
    while cause is not None:
        names |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    return names


def _first_line(cause: BaseException) -> str:
    text = str(cause).strip()
    return text.splitlines()[0] if text else "no message"


def _source_line(cause: BaseException) -> str:
    """``file:line: code`` of the innermost frame that is the model's own rather than torch's or ours."""
    ours = Path(__file__).parent
    torch_root = Path(torch.__file__).parent
    frames = traceback.extract_tb(cause.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        if frame.filename.startswith("<") or path.is_relative_to(torch_root) or path.is_relative_to(ours):
            continue
        return f"{path.name}:{frame.lineno}: `{(frame.line or '').strip()}`"
    return "an unknown line"
