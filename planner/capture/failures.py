"""What a model raises while it is traced, as a `TraceError`: where, why, and what to do."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from planner.capture.calls import NotOpaqueError
from planner.errors import MeshwrightError, TraceError

FAKE_TENSOR_LOG = logging.getLogger("torch._subclasses.fake_tensor")

ADVICE = {
    "DataDependentOutputException": "a tensor's value is read (`.item()`, `if tensor:`, `int(tensor)`), which tracing "
    "does not have; use torch.where, or keep the decision out of forward",
    "DynamicOutputShapeException": "a result's shape depends on values (nonzero, boolean indexing, unique); use a form "
    "with fixed shapes, e.g. top-k with sorting and torch grouped_mm for experts",
    "GuardOnDataDependentSymNode": "a branch depends on a tensor's value; use torch.where",
    "UnsupportedFakeTensorException": "an operation has no shape rule; register one with torch.library.register_fake",
    "UnsupportedOperatorException": "an operation has no shape rule; register one with torch.library.register_fake",
}
"""By the name of an exception, or a part of its message."""


class Located:
    """Turns what the model raises into a `TraceError` with the module's FQN and the source line.

    The model is at fault when the error passed through one of its modules, its own source, its loss or autograd's
    engine. Anything else is a bug of ours and escapes as it is.
    """

    def __init__(self, model: nn.Module, batch: int, seq_len: int) -> None:
        self.names = {id(module): fqn for fqn, module in model.named_modules()}
        self.model = model
        self.where = f"batch {batch}, seq_len {seq_len}"

    def __enter__(self) -> None:
        # torch logs what fake tensors refuse; the error below says it once, with its place.
        self.level = FAKE_TENSOR_LOG.level
        FAKE_TENSOR_LOG.setLevel(logging.CRITICAL)

    def __exit__(self, _kind: Any, cause: BaseException | None, trace: TracebackType | None) -> None:
        FAKE_TENSOR_LOG.setLevel(self.level)
        if not isinstance(cause, Exception) or isinstance(cause, MeshwrightError | NotOpaqueError):
            return
        frames = [frame for frame, _ in traceback.walk_tb(trace)]
        running = [self.names[id(f.f_locals["self"])] for f in frames if id(f.f_locals.get("self")) in self.names]
        line = _source_line(trace)
        if not (running or line or {"given_loss", "_engine_run_backward"} & {f.f_code.co_name for f in frames}):
            return
        fqn = running[-1] if running else ""
        place = f"{type(self.model).__name__}{'.' + fqn if fqn else ''}"
        told = _told(cause)
        advice = next((text for sign, text in ADVICE.items() if sign in told), None)
        raise TraceError(
            f"cannot trace {place}{' at ' + line if line else ''}: {type(cause).__name__}: {_first_line(cause)} "
            f"(on fake tensors, {self.where}). "
            + (f"What to do: {advice}." if advice else "What to do: check that the model runs on its example inputs.")
        ) from cause


def _told(cause: BaseException | None) -> str:
    """Names and messages of an exception and of those that led to it."""
    told = ""
    while cause is not None:
        told += " ".join((*(kind.__name__ for kind in type(cause).__mro__), str(cause), ""))
        cause = cause.__cause__ or cause.__context__
    return told


def _first_line(cause: BaseException) -> str:
    text = str(cause).strip()
    return text.splitlines()[0] if text else "no message"


def _source_line(trace: TracebackType | None) -> str:
    """``file:line: code`` of the innermost frame that is the model's own rather than torch's or ours; or nothing."""
    ours = Path(__file__).parent
    torch_root = Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(trace)):
        path = Path(frame.filename)
        if frame.filename.startswith("<") or path.is_relative_to(torch_root) or path.is_relative_to(ours):
            continue
        return f"{path.name}:{frame.lineno}: `{(frame.line or '').strip()}`"
    return ""
