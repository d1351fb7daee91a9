"""Activations that are computed again in the backward pass, by torch's checkpoints.

What a checkpoint computes again ends where the last saved tensor is there again. Collectives inside of it are issued
again as well, except, under the selective policies, those whose results are kept: of sums over ranks (all-reduce,
reduce-scatter), which end what a product begins.

torch's own selective contexts know operations by name alone, and would keep a row-parallel product's partial sum beside
the sum. Here `summed` marks such products: nobody reads them but the collective, whose result is kept, so that the
backward pass makes do with a tensor of their shape and computes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from planner import ops
from planner.errors import UsageError

Forward = Callable[..., Any]

_SUMS = {"all_reduce", "reduce_scatter_tensor"}
_PRODUCTS = (ops.MATMUL | ops.CONVOLUTION) - {"convolution_backward"}
EXECUTED = ("none", "selective", "half", "full")
"""Policies of `planner.solvers.saved.POLICIES` that run."""

_summed: ContextVar[bool] = ContextVar("meshwright_summed", default=False)


@contextmanager
def summed() -> Iterator[None]:
    """Products made inside are partial sums that a collective alone reads."""
    token = _summed.set(True)
    try:
        yield
    finally:
        _summed.reset(token)


def recomputed(forward: Forward, policy: str) -> Forward:
    """A block's forward under a policy; tensors are its only arguments.

    Raises:
        UsageError: a policy that frameworks have and this runtime has not.
    """
    if policy not in EXECUTED:
        raise UsageError(
            f"recompute {policy!r} is a policy of frameworks that plans are compared with: this runtime has "
            f"{', '.join(EXECUTED)}."
        )
    if policy == "none":
        return forward
    settings: dict[str, Any] = {"use_reentrant": False}
    if policy != "full":
        settings["context_fn"] = partial(_contexts, every=1 if policy == "selective" else 2)

    @wraps(forward, updated=())
    def run(*tensors: torch.Tensor) -> Any:
        return checkpoint(forward, *tensors, **settings)

    return run


def _contexts(every: int) -> tuple[_Keeping, _Replaying]:
    """For the forward pass and for computing it again."""
    kept: deque[Any] = deque()
    return _Keeping(every, kept), _Replaying(every, kept)


class _Selective(TorchDispatchMode):
    """Attention, sums over ranks, and the first of ``every`` so many products are kept, in order."""

    def __init__(self, every: int, kept: deque[Any]) -> None:
        super().__init__()
        self.every, self.kept, self.products = every, kept, 0

    def keeps(self, op: Any) -> bool:
        name = op._schema.name.partition("::")[2]
        if name in _PRODUCTS:
            self.products += 1
            return (self.products - 1) % self.every == 0
        return name in _SUMS or "attention" in name


class _Keeping(_Selective):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.keeps(func):
            self.kept.append(pytree.tree_map_only(torch.Tensor, _like if _summed.get() else torch.Tensor.detach, found))
        return found


class _Replaying(_Selective):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.keeps(func):
            return func(*args, **(kwargs or {}))
        return pytree.tree_map_only(_Like, lambda like: like(), self.kept.popleft())


class _Like(partial[torch.Tensor]):
    """Makes a tensor of some shape."""


def _like(tensor: torch.Tensor) -> _Like:
    return _Like(torch.empty_strided, tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
