"""The collectives that are timed, and the process groups that they run in."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
import torch.distributed as dist

from hardware_profiles.measuring.accelerator import Accelerator
from hardware_profiles.measuring.sizes import Axis
from hardware_profiles.samples import Measurement

Call = Callable[[], object]

FLOAT32_BYTES = 4

# torch 2.13 renamed them.
_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Groups:
    """Process groups by axis, made when first asked for. All ranks must ask for the same axes in the same order."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._known: dict[Axis, tuple[dist.ProcessGroup, tuple[int, ...]] | None] = {}

    def own(self, axis: Axis) -> tuple[dist.ProcessGroup, tuple[int, ...]] | None:
        """This rank's group of the axis and its ranks; None where it is in none."""
        if axis not in self._known:
            self._known[axis] = None
            for ranks in axis.groups(self.world_size):
                group = dist.new_group(list(ranks))
                if self.rank in ranks:
                    self._known[axis] = group, ranks
        return self._known[axis]


def collective(device: Accelerator, groups: Groups, what: Measurement) -> Call | None:
    """The collective that ``what`` names as a function without arguments; None where this rank takes no part.

    Messages are float32, rounded down to whole shards. `RuntimeError` (of torch) where the operands do not fit.
    """
    axis = Axis(size=what.size, stride=what.stride, only=what.ranks)
    if what.kind == "send":
        return _send(device, axis, groups, what.num_bytes)
    own = groups.own(axis)
    if own is None:
        return None
    group, ranks = own
    shard = max(1, what.num_bytes // FLOAT32_BYTES // what.size)
    whole = torch.ones(shard * what.size, device=device.device)
    if what.kind == "all_reduce":
        # Sums of ones grow and overflow to infinity after a while, which costs no time.
        return lambda: dist.all_reduce(whole, group=group)
    if what.kind == "broadcast":
        # The root moves on with every call, so that no call can begin before the one before it has arrived.
        turn = count()
        return lambda: dist.broadcast(whole, src=ranks[next(turn) % len(ranks)], group=group)
    if what.kind == "all_to_all":
        received = torch.empty_like(whole)
        return lambda: dist.all_to_all_single(received, whole, group=group)
    part = torch.ones(shard, device=device.device)
    if what.kind == "all_gather":
        return lambda: _GATHER(whole, part, group=group)
    assert what.kind == "reduce_scatter", what.kind
    return lambda: _SCATTER(part, whole, group=group)


def operand_bytes(what: Measurement) -> int:
    """Memory of the operands, with one more message for what the library may need."""
    return 3 * what.num_bytes


def _send(device: Accelerator, axis: Axis, groups: Groups, num_bytes: int) -> Call | None:
    """There and back between two ranks: two transfers, the second of which waits for the first."""
    pair = next((ranks for ranks in axis.groups(groups.world_size) if groups.rank in ranks), None)
    if pair is None:
        return None
    message = torch.ones(max(1, num_bytes // FLOAT32_BYTES), device=device.device)
    first, second = pair

    def there_and_back() -> None:
        if groups.rank == first:
            dist.send(message, second)
            dist.recv(message, second)
        else:
            dist.recv(message, first)
            dist.send(message, first)

    return there_and_back
