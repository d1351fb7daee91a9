"""Every collective that a rank issues: kind, mesh axis, bytes and the module that it is for.

Seen where torch dispatches operators, below DTensor: in-place ones of ``torch.distributed`` (FSDP2, pipelines),
functional ones, and those that DTensor issues by itself. Bytes are those of the largest tensor of a call: an
all-gather's result, a reduce-scatter's input, the tensor of an all-reduce, what one rank puts into an all-to-all, a
message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from planner.runtime.dry_run.whereabouts import Whereabouts

Kind = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "broadcast", "send", "recv"]

_WAITS = frozenset({"wait_tensor", "barrier", "monitored_barrier_"})
_NAMESPACES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor"})
_KINDS: Mapping[str, Kind] = {
    "allgather": "all_gather",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "all_reduce": "all_reduce",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "shard_dim_alltoall": "all_to_all",
    "broadcast": "broadcast",
    "send": "send",
    "recv": "recv",
}
"""How the names of the operators begin (after an underscore) -> kind."""


@dataclass(frozen=True, slots=True)
class Call:
    """One collective as one rank issues it."""

    kind: Kind
    axis: str
    group: tuple[int, ...]
    """Global ranks of its members, in their order; empty where only counts are asked for."""
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    num_bytes: int
    fqn: str
    backward: bool
    peer: int | None = None
    """Global rank at the other end of a ``send`` or ``recv``."""


@dataclass
class CollectiveLog:
    """Collectives of one rank, in the order in which it issues them; groups of one member do not communicate."""

    axes: Mapping[str, str]
    """Name of a process group -> mesh axis."""
    where: Whereabouts
    calls: list[Call] = field(default_factory=list)
    _groups: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def on_call(self, func: OpOverload, args: Sequence[Any], result: Any) -> None:
        """Note a dispatched operator where it is a collective."""
        kind = kind_of(func)
        if kind is None:
            return
        group = _process_group(func, args)
        if group.size() == 1:
            return
        name = group.group_name
        if name not in self._groups:
            self._groups[name] = tuple(dist.get_process_group_ranks(group))
        ranks = self._groups[name]
        tensors = _counted(kind, func, args, result)
        peer = ranks[args[2]] if kind in ("send", "recv") else None
        self.calls.append(
            Call(
                kind=kind,
                axis=self.axes.get(name, group.group_desc.removeprefix("mesh_")),
                group=ranks,
                shapes=tuple(tuple(t.shape) for t in tensors),
                dtype=str(tensors[0].dtype).removeprefix("torch."),
                num_bytes=sum(t.numel() * t.element_size() for t in tensors),
                fqn=self.where.fqn,
                backward=self.where.backward,
                peer=peer,
            )
        )


def kind_of(func: OpOverload) -> Kind | None:
    """Kind of collective that an operator is, or ``None``."""
    if func.namespace not in _NAMESPACES:
        return None
    name = func._schema.name.partition("::")[2].lstrip("_")
    if name in _WAITS:
        return None
    return next((kind for start, kind in _KINDS.items() if name.startswith(start)), None)


def _counted(kind: Kind, func: OpOverload, args: Sequence[Any], result: Any) -> list[Tensor]:
    """The tensors whose bytes count."""
    in_place = func.namespace == "c10d"
    if kind == "all_gather":
        found = args[0] if in_place else result
    elif kind in ("reduce_scatter", "all_to_all"):
        found = args[1] if in_place else args[0]
    else:
        found = args[0]
    return [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]


_GROUP_NAMES = ("process_group", "group_name", "group")
_GROUP_ARGUMENTS: dict[OpOverload, int] = {}


def _process_group(func: OpOverload, args: Sequence[Any]) -> dist.ProcessGroup:
    if func not in _GROUP_ARGUMENTS:
        names = [argument.name for argument in func._schema.arguments]
        _GROUP_ARGUMENTS[func] = next(
            i for i, name in enumerate(names) if name in ("process_group", "group_name", "group")
        )
    group = args[_GROUP_ARGUMENTS[func]]
    resolve: Callable[[Any], dist.ProcessGroup] = (
        torch._C._distributed_c10d._resolve_process_group if isinstance(group, str) else dist.ProcessGroup.unbox
    )
    return resolve(group)
