"""Where this rank's part of a tensor lies in the whole: as boxes, which checkpoints are made of.

A part is not one box where each of several equal runs of a dim is sharded on its own (fused QKV over ``tp``), and after
that once more along the same dim (``fsdp``). DTensor has no word for that; a list of boxes has.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import _StridedShard

from planner.runtime.parts import chunked

Runs = list[tuple[int, int]]
"""(start, length) of consecutive indices of a dim of the whole, in this rank's order."""

_INNER, _OUTER = ("tp", "ep"), ("fsdp", "expert_shard")


@dataclass(frozen=True)
class Experts:
    """Of a layer's experts, those that a rank holds."""

    count: int
    held: tuple[int, ...]


@dataclass(frozen=True)
class Boxes:
    """One tensor of a checkpoint, as this rank holds it."""

    whole: torch.Size
    local: Tensor
    runs: tuple[Runs, ...]
    """Per dim."""

    @staticmethod
    def of(tensor: Tensor, experts: Experts | None = None) -> Boxes:
        """Of a tensor as the runtime lays it out, or of one that every rank holds whole.

        Args:
            experts: which of a layer's experts its rows over ``ep`` are, if not a share in order.
        """
        if not isinstance(tensor, DTensor):
            return Boxes(tensor.shape, tensor.detach(), tuple([(0, size)] for size in tensor.shape))
        mesh, runs = tensor.device_mesh, [[(0, size)] for size in tensor.shape]
        whole = tensor.shape
        if experts is not None:
            whole = torch.Size((experts.count, *tensor.shape[1:]))
        names = list(mesh.mesh_dim_names or ())
        # `fully_shard` divides what is left of a dim after the axes inside: what its own placement says of the order
        # is of no use here.
        for name in sorted(names, key=lambda name: name not in _INNER):
            axis = names.index(name)
            placed, size, at = tensor.placements[axis], mesh.size(axis), mesh.get_local_rank(name)
            if placed.is_replicate():
                continue
            dim: int = placed.dim  # type: ignore[attr-defined]
            if name == "ep" and experts is not None:
                runs[dim] = [(expert, 1) for expert in experts.held]
            elif name in _OUTER:
                runs[dim] = _cut(runs[dim], size, at)
            else:
                count = placed.split_factor if isinstance(placed, _StridedShard) else 1
                length = tensor.shape[dim] // count
                parts = chunked(length, size)
                runs[dim] = [(k * length + sum(parts[:at]), parts[at]) for k in range(count)]
        return Boxes(whole, tensor.to_local().detach(), tuple(runs))

    def chunks(self) -> list[tuple[ChunkStorageMetadata, Tensor]]:
        """(box in the whole, this rank's memory of it)."""
        found = []
        for boxes in product(*(_with_places(runs) for runs in self.runs)):
            part = self.local
            for dim, (_, place, length) in enumerate(boxes):
                part = part.narrow(dim, place, length)
            offsets, sizes = torch.Size(start for start, _, _ in boxes), torch.Size(length for _, _, length in boxes)
            if part.numel():
                found.append((ChunkStorageMetadata(offsets, sizes), part))
        return found

    def at(self, index: MetadataIndex) -> Tensor:
        """This rank's memory of the box with that offset."""
        return next(part for chunk, part in self.chunks() if chunk.offsets == index.offset)

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        """What torch.distributed.checkpoint asks of objects that it does not know."""
        properties = TensorProperties.create_from_tensor(self.local)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.whole),
            )
            for chunk, _ in self.chunks()
        ]


def _cut(runs: Runs, count: int, at: int) -> Runs:
    """The part of rank ``at`` of ``count``, as `torch.chunk` cuts what the runs make one after the other."""
    parts = chunked(sum(length for _, length in runs), count)
    begin, end, position, found = sum(parts[:at]), sum(parts[: at + 1]), 0, []
    for start, length in runs:
        a, b = max(begin, position), min(end, position + length)
        if a < b:
            found.append((start + a - position, b - a))
        position += length
    return found


def _with_places(runs: Runs) -> list[tuple[int, int, int]]:
    """(start in the whole, place in this rank's part, length)."""
    found, place = [], 0
    for start, length in runs:
        found.append((start, place, length))
        place += length
    return found
