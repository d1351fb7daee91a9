"""Which module a program is in, forward and backward, without hooks on its tensors."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as hooks

_FSDP = re.compile(r"FSDP::(?P<task>\w+)(?: for (?P<ahead>\S+)| \((?P<unit>\S+)\))?$")


class _Label(NamedTuple):
    task: str
    unit: str | None


class Whereabouts:
    """The innermost named module whose forward runs, or whose forward made the autograd node that runs.

    Autograd numbers its nodes in order of creation. The number at every entry into and exit from a module is noted, so
    a node is found in the module that made it. It holds for pipelines, split backward passes and recomputation, where
    hooks on modules are called in no order.
    """

    def __init__(self, names: Mapping[nn.Module, str], on_enter: Callable[[nn.Module], object] = id) -> None:
        """
        Args:
            on_enter: told of every module whose forward begins.
        """
        self._names = dict(names)
        self._on_enter = on_enter
        self._stack: list[str] = [""]
        self._labels: list[_Label | None] = []
        self._since = [0]
        self._fqn = [""]

    @property
    def backward(self) -> bool:
        """Whether autograd runs a node (recomputation inside of it included)."""
        return torch._C._current_autograd_node() is not None

    @property
    def sharding_task(self) -> str:
        """What ``fully_shard`` is at (``all_gather``, ``post_backward_reduce``, ...); empty where it is not."""
        return next((label.task for label in reversed(self._labels) if label is not None), "")

    @property
    def fqn(self) -> str:
        """The module's FQN, of ``fully_shard``'s transfers that of the unit; empty outside of all."""
        unit = next((label.unit for label in reversed(self._labels) if label is not None and label.unit), None)
        if unit is not None:
            return unit
        node = torch._C._current_autograd_node()
        if len(self._stack) > 1 or node is None:
            return self._stack[-1]
        return self._fqn[bisect_right(self._since, node._sequence_nr()) - 1]

    def enter_label(self, label: str) -> None:
        """A ``record_function`` begins; ``fully_shard`` says in its own what they are for."""
        found = _FSDP.match(label)
        self._labels.append(_Label(found["task"], found["ahead"] or found["unit"]) if found else None)

    def exit_label(self) -> None:
        """The innermost ``record_function`` ends."""
        if self._labels:
            self._labels.pop()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, modules' calls are noted."""
        handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: object) -> None:
        self._on_enter(module)
        self._stack.append(self._names.get(module, self._stack[-1]))
        self._note()

    def _leave(self, _: nn.Module, __: object, ___: object) -> None:
        self._stack.pop()
        self._note()

    def _note(self) -> None:
        number = torch._C._autograd._get_sequence_nr()
        if self._since[-1] == number:
            self._fqn[-1] = self._stack[-1]
        elif self._fqn[-1] != self._stack[-1]:
            self._since.append(number)
            self._fqn.append(self._stack[-1])
