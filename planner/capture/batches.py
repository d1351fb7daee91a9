"""What a model is fed, as plans record it: a function of the number of samples and their length, written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from planner.graph import InputTensor


def recorded(inputs: Callable[[int, int], Any], seq_len: int) -> tuple[InputTensor, ...]:
    """What ``inputs(batch, seq_len)`` returns, tensor by tensor; nothing where it is more than a tuple or dict of
    tensors with samples along dim 0, or has sizes that are neither constant nor the length."""
    with torch.device("meta"):
        given, longer, shorter = (inputs(b, n) for b, n in ((2, seq_len), (3, seq_len), (2, max(1, seq_len // 2))))
    if not isinstance(given, tuple | list | dict):
        return ()
    names = list(given) if isinstance(given, dict) else [None] * len(given)
    leaves = [list(each.values()) if isinstance(each, dict) else list(each) for each in (given, longer, shorter)]
    found = []
    for name, tensor, more, short in zip(names, *leaves, strict=True):
        if not isinstance(tensor, torch.Tensor) or not tensor.dim() or (tensor.shape[0], more.shape[0]) != (2, 3):
            return ()
        sizes: list[Any] = []
        for size, other in zip(tensor.shape[1:], short.shape[1:], strict=True):
            if size != other and (size, other) != (seq_len, max(1, seq_len // 2)):
                return ()
            sizes.append("seq_len" if size != other else int(size))
        found.append(InputTensor(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(sizes)))
    return tuple(found)


def batch_of(tensors: Sequence[InputTensor]) -> Callable[[int, int], Any]:
    """The function that was `recorded`."""

    def inputs(batch: int, seq_len: int) -> Any:
        made = [
            torch.empty(
                (batch, *(seq_len if size == "seq_len" else size for size in tensor.shape)),
                dtype=getattr(torch, tensor.dtype), device="meta",
            )
            for tensor in tensors
        ]  # fmt: skip
        if all(tensor.name is None for tensor in tensors):
            return tuple(made)
        return {tensor.name: like for tensor, like in zip(tensors, made, strict=True)}

    return inputs
