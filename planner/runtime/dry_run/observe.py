"""One pair of eyes on a rank's program: every operator that torch dispatches, below DTensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from planner.runtime.dry_run.collectives import CollectiveLog
from planner.runtime.dry_run.memory import Ledger
from planner.runtime.dry_run.whereabouts import Whereabouts

_WAIT = torch.ops._c10d_functional.wait_tensor.default
_LABEL = {
    torch.ops.profiler._record_function_enter_new.default: True,
    torch.ops.profiler._record_function_exit._RecordFunction: False,
}


class Observer(TorchDispatchMode):
    """Passes every operator on to a `CollectiveLog` and a `Ledger`.

    Tensor subclasses that run other operators (DTensor) come first, so that what those do is seen.
    """

    def __init__(
        self, names: Mapping[nn.Module, str], axes: Mapping[str, str], first_stage: nn.Module | None = None
    ) -> None:
        """
        Args:
            names: FQNs of modules.
            axes: name of a process group -> mesh axis.
            first_stage: module whose forward passes are noted in ``starts``.
        """
        super().__init__()
        self.starts: list[int] = []
        """Per forward pass of the first stage, how many collectives came before."""
        self._first_stage = first_stage
        self.where = Whereabouts(names, self._enter)
        self.collectives = CollectiveLog(axes, self.where)
        self.memory = Ledger(self.where)

    @contextmanager
    def watching(self) -> Iterator[Observer]:
        """While it lasts, what runs is seen."""
        with _sizes_worked_out_unseen(), self.where.watching(), self.memory.resizes(), self:
            yield self

    def _enter(self, module: nn.Module) -> None:
        if module is self._first_stage:
            self.starts.append(len(self.collectives.calls))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented
        if func is _WAIT and isinstance(args[0], FakeTensor):
            return args[0]  # what runs for real gives back its argument; the fake kernel allocates
        entered = _LABEL.get(func)
        if entered is not None:
            self.where.enter_label(args[0]) if entered else self.where.exit_label()
        result = func(*args, **(kwargs or {}))
        self.collectives.on_call(func, args, result)
        self.memory.on_call(func, args, result)
        return result


@contextmanager
def _sizes_worked_out_unseen() -> Iterator[None]:
    """DTensor works out an operator's sizes, the first time, on fakes of whole tensors: none of a rank's memory."""
    name = "_propagate_tensor_meta_non_cached"
    work_out = getattr(ShardingPropagator, name)

    def unseen(propagator: ShardingPropagator, schema: Any) -> Any:
        with _disable_current_modes():
            return work_out(propagator, schema)

    setattr(ShardingPropagator, name, unseen)
    try:
        yield
    finally:
        setattr(ShardingPropagator, name, work_out)
