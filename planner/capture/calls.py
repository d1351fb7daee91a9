"""The calls of blocks: one run of the model tells which are alike, and what is needed to make or answer one again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from planner.capture.blocks import call_key, hides_tensors, uses_foreign_modules
from planner.capture.unchanged import replaced_forwards


@dataclass(frozen=True)
class TensorLike:
    """What is needed to make an empty tensor again."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool

    @staticmethod
    def of(tensor: torch.Tensor) -> TensorLike:
        return TensorLike(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad)

    def empty(self, *, requires_grad: bool | None = None) -> torch.Tensor:
        out = torch.empty_strided(self.size, self.stride, dtype=self.dtype)
        return out.requires_grad_(self.requires_grad if requires_grad is None else requires_grad)


@dataclass(frozen=True)
class BlockCall:
    """One distinct call of a block: everything needed to trace it and to answer for it."""

    module: nn.Module
    args: Any
    """``(args, kwargs)`` with tensors replaced by `TensorLike`, the same object for the same tensor."""
    output: Any
    """Pytree of the outputs, tensors as `TensorLike`."""
    grad_enabled: bool
    autocast: tuple[bool, torch.dtype]
    """Whether the call ran under autocast, and to which dtype."""

    @property
    def input_likes(self) -> list[TensorLike]:
        return unique(self.args, TensorLike)

    @property
    def output_likes(self) -> list[TensorLike]:
        return unique(self.output, TensorLike)

    @property
    def differentiable(self) -> list[bool]:
        """For each of ``input_likes``, whether it receives a gradient."""
        trained = any(like.requires_grad for like in self.output_likes)
        return [trained and like.requires_grad for like in self.input_likes]

    @contextlib.contextmanager
    def modes(self) -> Iterator[None]:
        """The modes of autograd and autocast that the call ran under."""
        enabled, dtype = self.autocast
        with torch.set_grad_enabled(self.grad_enabled), torch.autocast("cpu", dtype=dtype, enabled=enabled):
            yield


@dataclass(frozen=True)
class Observed:
    """Result of `observe`."""

    calls: tuple[BlockCall, ...]
    keys: Mapping[Hashable, int]
    """(structure key, call key) -> index into ``calls``."""
    loss: TensorLike


class NotOpaqueError(Exception):
    """A block does more than its inputs, outputs and own parameters tell; it can be no opaque call."""

    def __init__(self, fqn: str, reason: str) -> None:
        super().__init__(fqn, reason)
        self.fqn = fqn
        self.reason = reason


def unique(tree: Any, kind: type) -> list[Any]:
    """Leaves of a kind, each object once."""
    return list({id(leaf): leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, kind)}.values())


def _mapped(kind: type, change: Callable[[Any], Any], tree: Any) -> Any:
    """Change all leaves of a kind; what was one object stays one."""
    changed = {id(leaf): change(leaf) for leaf in unique(tree, kind)}
    return pytree.tree_map_only(kind, lambda leaf: changed[id(leaf)], tree)


def _as_likes(tree: Any) -> Any:
    return _mapped(torch.Tensor, TensorLike.of, tree)


def _as_tensors(tree: Any, **kwargs: Any) -> Any:
    return _mapped(TensorLike, lambda like: like.empty(**kwargs), tree)


def observe(
    model: nn.Module,
    run: Callable[[], torch.Tensor],
    blocks: Mapping[str, nn.Module],
    structure: Mapping[str, Hashable],
) -> Observed:
    """Run the model once; see the module docstring. ``run`` returns the loss of one microbatch on fake tensors.

    Raises:
        NotOpaqueError: a block cannot be answered for.
    """
    calls: list[BlockCall] = []
    keys: dict[Hashable, int] = {}

    def check(fqn: str, tree: Any) -> None:
        for leaf in pytree.tree_leaves(tree):
            if hides_tensors(leaf):
                kind = type(leaf).__name__
                raise NotOpaqueError(
                    fqn,
                    f"passes tensors inside of a {kind}; pass a tuple or dict, or register {kind} with "
                    "torch.utils._pytree.register_dataclass",
                )

    def make(fqn: str, block: nn.Module) -> Any:
        original = block.forward
        if block._forward_hooks or block._forward_pre_hooks:
            raise NotOpaqueError(fqn, "has forward hooks")
        if uses_foreign_modules(block):
            raise NotOpaqueError(fqn, "holds a module that is not registered as its own")

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = (structure[fqn], call_key(args, kwargs))
            if key not in keys:
                check(fqn, (args, kwargs))
                likes = _as_likes((args, kwargs))
                given = unique((args, kwargs), torch.Tensor)
                versions = [tensor._version for tensor in given]
                output = original(*args, **kwargs)
                check(fqn, output)
                if versions != [tensor._version for tensor in given]:
                    raise NotOpaqueError(fqn, "changes an input in place")
                keys[key] = len(calls)
                autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
                calls.append(BlockCall(block, likes, _as_likes(output), torch.is_grad_enabled(), autocast))
                return output
            return _as_tensors(calls[keys[key]].output)

        return forward

    with replaced_forwards(model, blocks, make):
        loss = run()
    return Observed(calls=tuple(calls), keys=keys, loss=TensorLike.of(loss))
