"""From one plan to another: which parameters and optimizer states every device has to fetch.

Under a plan a device holds of every parameter (with its optimizer states, which lie alike) a product of index sets, one
per dim: what its stages, ``ep``, ``tp`` and then data parallelism leave it. What it must fetch of another plan's share
is that share less what it holds. Somebody who is left may have it; if nobody has, the checkpoint does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from planner.graph import ModelGraph
from planner.layouts.model import param_layouts
from planner.layouts.pins import matches
from planner.layouts.placements import parse
from planner.plan import Candidate, ParamLayout, Plan
from planner.solvers.block_layout.planned import plan_layouts
from planner.stages import stage_cuts

Indices = NDArray[np.int64]
Runs = tuple[tuple[int, int], ...]
"""Ascending [start, stop) of the indices of one dim that a device holds."""


@dataclass(frozen=True)
class Moving:
    """Elements of parameters, by device of the plan moved to."""

    held: Indices
    """Its share under that plan."""
    kept: Indices
    """Of that, what it holds already."""
    lost: Indices
    """Of that, what no device holds that is left."""

    @property
    def fetched(self) -> Indices:
        """Of its share, what another device has."""
        return self.held - self.kept - self.lost


@dataclass(frozen=True)
class Holding:
    """What the devices of a plan hold."""

    graph: ModelGraph
    plan: Plan
    _runs: dict[tuple[object, ...], tuple[list[Indices], list[Indices]]] = field(default_factory=dict)

    @cached_property
    def layouts(self) -> Mapping[str, ParamLayout]:
        said = self.plan.layouts or param_layouts(plan_layouts(self.graph, self.plan), self.plan.candidate)
        return {p.fqn: next(one for one in said if matches(one.pattern, p.fqn)) for p in self.graph.params}

    @cached_property
    def stages_of(self) -> Mapping[str, frozenset[int]]:
        """Per parameter, the ranks of ``pp`` that hold it."""
        cuts, found = stage_cuts(self.graph, self.plan.stages), dict[str, set[int]]()
        for stage, rank in enumerate(self.plan.stage_ranks):
            for segment in self.graph.segments[cuts[stage] : cuts[stage + 1]]:
                for relative, _ in self.graph.blocks[segment.block].params:
                    found.setdefault(self.graph.canonical(segment, relative), set()).add(rank)
        return {fqn: frozenset(ranks) for fqn, ranks in found.items()}

    @property
    def per_stage(self) -> int:
        return self.plan.candidate.num_devices // self.plan.candidate.pp

    def kind(self, fqn: str) -> tuple[object, ...]:
        """Parameters of one kind lie alike within a stage."""
        layout = self.layouts[fqn]
        return tuple(sorted(layout.placements.items())), layout.num_chunks, self._experts(fqn)

    def _experts(self, fqn: str) -> tuple[tuple[int, ...], ...]:
        """Who holds which expert, where the plan says it."""
        if "ep" not in self.layouts[fqn].placements:
            return ()
        for placed in self.plan.experts:
            depth = placed.block.count(".") + 1
            if matches(placed.block, ".".join(fqn.split(".")[:depth])):
                return placed.ranks
        return ()

    def shards(self, fqn: str, shape: Sequence[int]) -> tuple[list[Indices], list[Indices]]:
        """Per dim, starts and stops of the runs of every device of one stage, ``[device, run]``; empty runs fill up."""
        key = (*self.kind(fqn), *shape)
        if key not in self._runs:
            layout, experts = self.layouts[fqn], self._experts(fqn)
            devices = [
                shard_runs(shape, layout, self.plan.candidate, place, experts) for place in range(self.per_stage)
            ]
            self._runs[key] = _arrays(devices, len(shape))
        return self._runs[key]


def shard_runs(
    shape: Sequence[int], layout: ParamLayout, c: Candidate, place: int, experts: Sequence[Sequence[int]] = ()
) -> tuple[Runs, ...]:
    """Per dim, the indices of a parameter that a device holds.

    Args:
        place: of the device within its pipeline stage.
        experts: per expert the ranks of ``ep`` that hold it; in order where empty.
    """
    runs: list[Runs] = [((0, size),) for size in shape]
    neighbour = place % (c.state_shard * c.tp)
    if "ep" in layout.placements:
        own, index, devices = neighbour % c.ep, neighbour // c.ep, c.expert_shard
        if experts:
            runs[0] = tuple((e, e + 1) for e, ranks in enumerate(experts) if own in ranks)
        else:
            runs[0] = _part(runs[0], own, c.ep)
    else:
        index, devices = neighbour // c.tp, c.state_shard
        tp = parse(layout.placements.get("tp", "R"))
        if tp.kind == "S":
            size = shape[tp.dim] // layout.num_chunks
            chunks = [((i * size, (i + 1) * size),) for i in range(layout.num_chunks)]
            runs[tp.dim] = tuple(run for chunk in chunks for run in _part(chunk, neighbour % c.tp, c.tp))
    places = (parse(layout.placements.get(axis, "R")) for axis in ("dp_shard", "cp"))
    sharded = next((place for place in places if place.kind == "S"), None)
    if c.zero_stage and sharded is not None:
        runs[sharded.dim] = _part(runs[sharded.dim], index, devices)
    return tuple(runs)


def _part(runs: Runs, index: int, count: int) -> Runs:
    """Of what runs hold together, one of ``count`` parts as `torch.chunk` cuts."""
    total = sum(stop - start for start, stop in runs)
    longest = -(-total // count)
    first, last, found, seen = index * longest, min((index + 1) * longest, total), [], 0
    for start, stop in runs:
        low, high = max(first, seen), min(last, seen + stop - start)
        if low < high:
            found.append((start + low - seen, start + high - seen))
        seen += stop - start
    return tuple(found)


def _arrays(devices: Sequence[tuple[Runs, ...]], num_dims: int) -> tuple[list[Indices], list[Indices]]:
    starts, stops = [], []
    for dim in range(num_dims):
        most = max(1, *(len(runs[dim]) for runs in devices))
        padded = np.array([[*runs[dim], *[(0, 0)] * (most - len(runs[dim]))] for runs in devices], dtype=np.int64)
        starts.append(padded[:, :, 0])
        stops.append(padded[:, :, 1])
    return starts, stops


def moving(old: Holding, new: Holding, alive: Sequence[bool]) -> Moving:
    """What it takes to go from one plan to another.

    Device ``r`` is rank ``r`` of both plans.

    Args:
        alive: per device of the old plan; those of the new one must be.
    """
    devices = new.plan.candidate.num_devices
    held, kept, lost = (np.zeros(devices, dtype=np.int64) for _ in range(3))
    alike: Counter[tuple[object, ...]] = Counter()
    example: dict[tuple[object, ...], tuple[str, tuple[int, ...]]] = {}
    for param in old.graph.params:
        if param.fqn in old.stages_of:
            stages = old.stages_of[param.fqn], new.stages_of[param.fqn]
            key: tuple[object, ...] = (param.shape, old.kind(param.fqn), new.kind(param.fqn), stages)
            alike[key] += 1
            example[key] = param.fqn, param.shape
    for key, times in alike.items():
        fqn, shape = example[key]
        theirs, ours = old.shards(fqn, shape), new.shards(fqn, shape)
        gone = _gone(old, fqn, alive, theirs)
        for stage in new.stages_of[fqn]:
            ranks = stage * new.per_stage + np.arange(new.per_stage)
            held[ranks] += times * _overlap(ours, ours)
            stage_before, before = np.divmod(ranks, old.per_stage)
            had = np.isin(stage_before, list(old.stages_of[fqn]))
            own = [side[before] for side in theirs[0]], [side[before] for side in theirs[1]]
            kept[ranks] += times * had * _overlap(ours, own)
            for shard in gone:
                one = [side[shard : shard + 1] for side in theirs[0]], [side[shard : shard + 1] for side in theirs[1]]
                lost[ranks] += times * _overlap(ours, one)
    return Moving(held, kept, lost)


def _gone(old: Holding, fqn: str, alive: Sequence[bool], shards: tuple[list[Indices], list[Indices]]) -> list[int]:
    """Devices of a stage, one for each share that nobody holds any more."""
    rows = [np.zeros((old.per_stage, 0), dtype=np.int64), *shards[0], *shards[1]]
    shares = [row.tobytes() for row in np.concatenate(rows, axis=1)]
    first = {share: place for place, share in reversed(list(enumerate(shares)))}
    left = {
        share
        for place, share in enumerate(shares)
        if any(alive[stage * old.per_stage + place] for stage in old.stages_of[fqn])
    }
    return [place for share, place in first.items() if share not in left]


def _overlap(a: tuple[list[Indices], list[Indices]], b: tuple[list[Indices], list[Indices]]) -> Indices:
    """Per device, elements that two products of runs have in common; one row of ``b`` stands for all."""
    total = np.ones(1, dtype=np.int64)
    for a_start, a_stop, b_start, b_stop in zip(*a, *b, strict=True):
        pairs = product(range(a_start.shape[1]), range(b_start.shape[1]))
        common = sum(
            np.maximum(0, np.minimum(a_stop[:, i], b_stop[:, j]) - np.maximum(a_start[:, i], b_start[:, j]))
            for i, j in pairs
        )
        total = total * common
    return np.asarray(total, dtype=np.int64)
