"""Whole parameters and buffers by name, one module's at a time.

A model with weights keeps them. One that was built on ``meta`` fills them module by module, each from a seed of its own
that is made of torch's and of the module's name, so that equal seeds give equal models on any number of devices, and no
device ever holds more than its parts and one module.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from planner.errors import ModelSourceError


class Weights:
    """What a model begins with, on the device that computes."""

    def __init__(self, model: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
        """
        Args:
            dtype: of floating point parameters; buffers keep theirs.
        """
        self.model, self.device, self.dtype = model, device, dtype
        self.seed = torch.initial_seed()
        self.canonical = {id(p): fqn for fqn, p in model.named_parameters()}
        self._filled: tuple[str, nn.Module] | None = None

    def parameter(self, fqn: str) -> Tensor:
        """The whole parameter; equal for all names of a tied one.

        Raises:
            ModelSourceError: it is on ``meta`` and its module cannot fill it.
        """
        param = self.model.get_parameter(fqn)
        if param.is_meta:
            owner, _, name = self.canonical[id(param)].rpartition(".")
            param = self._module(owner)._parameters[name]  # type: ignore[assignment]
        return param.detach().to(self.device, self.dtype if param.is_floating_point() else param.dtype)

    def buffer(self, fqn: str) -> Tensor:
        """The whole buffer.

        Raises:
            ModelSourceError: it is on ``meta`` and its module cannot fill it.
        """
        buffer = self.model.get_buffer(fqn)
        if buffer.is_meta:
            owner, _, name = fqn.rpartition(".")
            buffer = self._module(owner)._buffers[name]  # type: ignore[assignment]
        return buffer.detach().to(self.device)

    def _module(self, fqn: str) -> nn.Module:
        """A module's own weights on the device, beside those of the model; the last one asked for is kept."""
        if self._filled is None or self._filled[0] != fqn:
            self._filled = None
            self._filled = fqn, self._fill(fqn)
        return self._filled[1]

    def _fill(self, fqn: str) -> nn.Module:
        original = self.model.get_submodule(fqn)
        module = copy.copy(original)
        module._parameters = {
            name: None if p is None else nn.Parameter(_unknown(p, self.device), requires_grad=p.requires_grad)
            for name, p in original._parameters.items()
        }
        module._buffers = {
            name: b if b is None or not b.is_meta else _unknown(b, self.device) for name, b in original._buffers.items()
        }
        with _seeded(self.seed, fqn, self.device), torch.no_grad():
            self._initialiser(fqn, module)()
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_floating_point() and _is_real(tensor) and tensor.isnan().any():
                raise ModelSourceError(
                    f"{fqn}.{name} is on meta and nothing fills it: neither {type(module).__name__}.reset_parameters "
                    "nor the model's _init_weights does. Fill it there (buffers too), or build the model with weights."
                )
        return module

    def _initialiser(self, fqn: str, module: nn.Module) -> Callable[[], Any]:
        """The nearest model's own way to fill a module, else the module's."""
        path = fqn.split(".") if fqn else []
        for length in range(len(path), -1, -1):
            above = self.model.get_submodule(".".join(path[:length]))
            if callable(fill := getattr(above, "_init_weights", None)):  # of `transformers`
                return partial(fill, module)
        if callable(reset := getattr(module, "reset_parameters", None)):
            return reset
        return lambda: None


def _unknown(like: Tensor, device: torch.device) -> Tensor:
    """Memory that shows whether it was written."""
    filled = torch.empty_like(like, device=device)
    return filled.fill_(float("nan")) if like.is_floating_point() else filled.zero_()


def _is_real(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter)


@contextmanager
def _seeded(seed: int, name: str, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed((seed + zlib.crc32(name.encode())) % 2**63)
        yield
