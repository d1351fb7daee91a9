"""From a plan's degrees to process groups and device meshes.

Only the groups that this rank is a member of are made, one per axis: `init_device_mesh` makes every group of every axis
on every rank, which takes minutes on 16,384 of them. All members of a group make it in the same order of axes, and only
they take part, so that ranks of different pipeline stages need not wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from planner.plan import Candidate
from planner.runtime.parts import AxisGroups, ExpertGroup
from planner.solvers.block_layout.meaning import RING, ULYSSES, mesh_axes


@dataclass(frozen=True, kw_only=True)
class Meshes:
    """Where this rank stands, and whom it talks to. Ranks are numbered axis by axis, outer to inner ``pp``,
    ``dp_replicate``, ``dp_shard``, ``cp``, ``tp``; ``expert_shard`` and ``ep`` divide ``dp_shard * cp * tp`` neighbours
    once more, ``ep`` inside."""

    rank: int
    device_type: str
    sizes: Mapping[str, int]
    coordinates: Mapping[str, int]
    """Size of every axis and this rank's place on it; besides the axes ``fsdp`` (``dp_shard`` and ``cp`` as one)."""
    groups: Mapping[str, dist.ProcessGroup]
    """Of the axes with more than one device."""
    spmd: DeviceMesh
    """``dp_replicate``, ``fsdp``, ``tp``: the devices of this rank's pipeline stages."""
    experts: DeviceMesh | None
    """The same devices as ``dp_replicate``, ``expert_shard``, ``ep``, where the plan has ``ep``."""

    @property
    def world_size(self) -> int:
        return self.sizes["pp"] * self.spmd.size()

    @property
    def fsdp(self) -> DeviceMesh:
        """What `fully_shard` shards over; two-dimensional with replicas."""
        return self.spmd["dp_replicate", "fsdp"] if self.sizes["dp_replicate"] > 1 else self.spmd["fsdp"]

    @property
    def expert_fsdp(self) -> DeviceMesh:
        """The same for experts."""
        assert self.experts is not None
        if self.sizes["dp_replicate"] > 1:
            return self.experts["dp_replicate", "expert_shard"]
        return self.experts["expert_shard"]

    @property
    def tp(self) -> DeviceMesh | None:
        """What parameters lie over besides, if anything."""
        return self.spmd["tp"] if self.sizes["tp"] > 1 else None

    @property
    def ep(self) -> DeviceMesh | None:
        return self.experts["ep"] if self.experts is not None else None

    @property
    def data_parallel(self) -> int:
        """Ranks that get different samples."""
        return self.sizes["dp_replicate"] * self.sizes["dp_shard"]

    @property
    def data_coordinate(self) -> int:
        """Which of the ``data_parallel`` shares of the batch is this rank's."""
        return self.coordinates["dp_replicate"] * self.sizes["dp_shard"] + self.coordinates["dp_shard"]

    def axis_groups(self, candidate: Candidate) -> AxisGroups:
        """The axes that operations are laid out over. Rings pass keys round sequences in zig-zag order."""
        names, sizes = mesh_axes(candidate)
        ring = RING if candidate.context == "ulysses_ring" else "cp"
        groups = tuple(self.groups.get(name) for name in names)
        return AxisGroups(
            names=names,
            sizes=sizes,
            coordinates=tuple(self.coordinates[name] for name in names),
            groups=groups,
            zigzag=self.sizes[ring] if "ring" in candidate.context else 1,
            experts=ExpertGroup(self.groups.get("ep"), self.sizes["ep"], self.coordinates["ep"])
            if candidate.ep > 1
            else None,
        )


def make_meshes(candidate: Candidate, *, rank: int, device_type: str) -> Meshes:
    """Groups and meshes of one rank; the default process group must exist.

    With the ``fake`` backend this is one rank of any world; outside of `FakeTensorMode`, for meshes read their own
    coordinates.
    """
    c = candidate
    places = torch.arange(c.num_devices).view(c.pp, c.dp_replicate, c.dp_shard, c.cp, c.tp)
    merged = {
        "spmd": (c.pp, c.dp_replicate, c.state_shard, c.tp),
        "experts": (c.pp, c.dp_replicate, c.state_shard * c.tp // c.ep, c.ep),
    }
    names = {"spmd": ("dp_replicate", "fsdp", "tp"), "experts": ("dp_replicate", "expert_shard", "ep")}
    sizes = {"pp": c.pp, "dp_replicate": c.dp_replicate, "dp_shard": c.dp_shard, "cp": c.cp, "tp": c.tp}
    coordinates = dict(zip(sizes, _place(rank, tuple(places.shape)), strict=True))
    for kind, shape in merged.items():
        place = _place(rank, shape)
        sizes.update(zip(names[kind], shape[1:], strict=True))
        coordinates.update(zip(names[kind], place[1:], strict=True))
    groups = {"pp": _group(places, rank, 0, "pp"), "cp": _group(places, rank, 3, "cp")}
    if c.context == "ulysses_ring":
        rings = c.cp // c.ulysses
        inner = places.view(-1, rings, c.ulysses, c.tp)
        for dim, name in enumerate((RING, ULYSSES), start=1):
            sizes[name], coordinates[name] = inner.shape[dim], _place(rank, tuple(inner.shape))[dim]
            groups[name] = _group(inner, rank, dim, name)
    if c.cp > 1:
        groups["dp_shard"] = _group(places, rank, 2, "dp_shard")
    meshes = {}
    for kind, shape in merged.items():
        if kind == "experts" and c.ep == 1:
            continue
        arranged = places.view(shape)
        for dim, name in enumerate(names[kind], start=1):
            if name not in groups:
                groups[name] = _group(arranged, rank, dim, name)
        # A mesh needs a group on every dim, also where this rank is alone.
        own = [groups[name] or _new_group([rank], name) for name in names[kind]]
        meshes[kind] = DeviceMesh.from_group(own, device_type, arranged[coordinates["pp"]], mesh_dim_names=names[kind])
    if c.cp == 1:
        groups["dp_shard"] = groups.get("fsdp")
    return Meshes(
        rank=rank,
        device_type=device_type,
        sizes=sizes,
        coordinates=coordinates,
        groups={name: group for name, group in groups.items() if group is not None},
        spmd=meshes["spmd"],
        experts=meshes.get("experts"),
    )


def _place(rank: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    place = []
    for size in reversed(shape):
        rank, at = divmod(rank, size)
        place.append(at)
    return tuple(reversed(place))


def _group(places: torch.Tensor, rank: int, dim: int, name: str) -> dist.ProcessGroup | None:
    """The ranks that differ from this one along ``dim`` only; none where it is alone."""
    if places.shape[dim] == 1:
        return None
    at = list(_place(rank, tuple(places.shape)))
    along: list[int | slice] = [*at[:dim], slice(None), *at[dim + 1 :]]
    return _new_group(places[tuple(along)].tolist(), name)


def _new_group(ranks: list[int], name: str) -> dist.ProcessGroup:
    return dist.new_group(ranks, use_local_synchronization=True, group_desc=name)
