"""Bytes of live tensors over one step, by category and module, without hooks on modules.

A storage counts from the call that makes it until the last tensor over it is gone: what a caching allocator has to
hold. What a storage is for may be known only later (a gradient is an ordinary result until a parameter keeps it), so
events are logged and summed up afterwards.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed.fsdp  # registers its operators
from torch import Tensor, UntypedStorage
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from planner.runtime.dry_run.whereabouts import Whereabouts

_COPY_TO_REDUCE = torch.ops.fsdp.chunk_cat.default
"""What ``fully_shard`` copies gradients with into what it reduces."""

Category = Literal[
    "parameters", "buffers", "optimizer", "gradients", "inputs", "activations", "gathered_parameters", "temporary"
]
"""``temporary``: made by the backward pass or the optimizer and not kept."""


@dataclass(slots=True)
class _Storage:
    category: Category
    fqn: str
    num_bytes: int
    alive: weakref.ref[UntypedStorage]


@dataclass(frozen=True)
class Peak:
    """The moment at which most is alive."""

    num_bytes: int
    categories: Mapping[Category, int]
    by_fqn: Mapping[tuple[Category, str], int]
    """Bytes by category and module."""


class Ledger:
    """Storages that are alive, and when that changed."""

    def __init__(self, where: Whereabouts) -> None:
        self._where = where
        self._live: dict[int, _Storage] = {}
        self._events: list[tuple[_Storage, int]] = []

    @property
    def live_bytes(self) -> int:
        """Bytes that are alive now."""
        return sum(entry.num_bytes for entry in self._live.values())

    def hold(self, tensors: Iterable[Tensor], category: Category, fqn: str | None = None) -> None:
        """Count tensors under a category, new ones or those that calls have made."""
        for tensor in tensors:
            for storage in storages(tensor):
                self._entry(storage, category, fqn).category = category

    def on_call(self, func: OpOverload, args: Sequence[Any], result: Any) -> None:
        """Note what a dispatched operator has made."""
        if func is _COPY_TO_REDUCE:
            self.hold(args[0], "gradients")
        category: Category | None = None
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                if category is None:
                    category = self._new()
                for storage in storages(tensor):
                    self._entry(storage, category, None)

    def _new(self) -> Category:
        """What a new storage is for, as long as nothing else is known."""
        task = self._where.sharding_task
        if "all_gather" in task:
            return "gathered_parameters"
        if task.startswith("post_backward"):
            return "gradients"
        return "temporary" if self._where.backward else "activations"

    @contextmanager
    def resizes(self) -> Iterator[None]:
        """While it lasts, resized storages are noted: ``fully_shard`` frees gathered parameters by that."""
        resize = UntypedStorage.resize_

        def noted(storage: UntypedStorage, size: int) -> Any:
            done = resize(storage, size)
            entry = self._live.get(storage._cdata)
            if entry is not None:
                entry.category = "gathered_parameters"
                self._change(entry, storage.nbytes() - entry.num_bytes)
            return done

        UntypedStorage.resize_ = noted  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            UntypedStorage.resize_ = resize  # type: ignore[assignment, method-assign]

    def peak(self) -> Peak:
        """The first moment at which most is alive."""
        total = most = 0
        last = 0
        for index, (_, change) in enumerate(self._events, start=1):
            total += change
            if total > most:
                most, last = total, index
        by_fqn: dict[tuple[Category, str], int] = defaultdict(int)
        for entry, change in self._events[:last]:
            by_fqn[entry.category, entry.fqn] += change
        categories: dict[Category, int] = defaultdict(int)
        for (category, _), size in by_fqn.items():
            categories[category] += size
        kept = {key: size for key, size in by_fqn.items() if size}
        return Peak(most, {name: size for name, size in categories.items() if size}, kept)

    def _entry(self, storage: UntypedStorage, category: Category, fqn: str | None) -> _Storage:
        key = storage._cdata
        entry = self._live.get(key)
        if entry is None:
            entry = _Storage(
                category, self._where.fqn if fqn is None else fqn, 0, weakref.ref(storage, self._gone(key))
            )
            self._live[key] = entry
            self._change(entry, storage.nbytes())
        return entry

    def _gone(self, key: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            entry = self._live.pop(key, None)
            if entry is not None:
                self._change(entry, -entry.num_bytes)

        return forget

    def _change(self, entry: _Storage, change: int) -> None:
        if change:
            entry.num_bytes += change
            self._events.append((entry, change))


def storages(tensor: Tensor) -> Iterator[UntypedStorage]:
    """Storages of a tensor, or of the tensors that a subclass wraps."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        for name in flatten()[0]:
            inner = getattr(tensor, name)
            if isinstance(inner, Tensor):
                yield from storages(inner)
    else:
        yield tensor.untyped_storage()
