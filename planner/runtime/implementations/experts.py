"""A layer's routed experts: each rank with all for its own tokens, or with its own for those of all (``dispatch``).

Every rank orders the visits of its tokens by expert, as the program does. Under dispatch the ordered rows then go to
the ranks that hold the experts, by one all-to-all of how many there are and one of the rows; there they are ordered by
expert (they come ordered by source), multiplied, and go back the way they came. Nothing is padded and nothing dropped,
and a rank may have no rows at all. Of an expert with replicas every source has one to send to; what replicas learn is
summed, so that they stay equal.

Where tensors hold no data (a dry run) sources are taken to send each rank as many rows as any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from planner.capture.program import Call
from planner.graph import Op
from planner.layouts.dispatch import ExpertOps, expert_ops
from planner.layouts.placements import Shape
from planner.runtime.moves import FUNCTIONAL, sum_over, wait
from planner.runtime.operations import in_turn
from planner.runtime.parts import ExpertGroup
from planner.runtime.site import Held, Run, Site


def experts(ops: Sequence[Op], calls: Sequence[Call], site: Site, names: Sequence[str]) -> Run:
    """From the ordering of the tokens' visits by expert to the sum of what experts made of them."""
    parts = expert_ops(ops, site.shapes)
    # Visits follow no sequence: in whatever order tokens lie, each gets its own back.
    site = replace(site, mesh=replace(site.mesh, zigzag=1))
    group = _group(site, names)
    inner = _inner_shapes(parts, site)
    if group is None or (group.size == 1 and not group.holders):
        return in_turn(ops, calls, replace(site, inner=inner))
    by_op = dict(zip(ops, calls, strict=True))
    slots = len(group.slots(parts.num_experts)[0])
    own = {v: (slots, *site.shapes[v][1:]) for v in parts.per_expert}
    every = {v: (-1, *site.local(v)[1:]) for v in parts.visits}

    def part(members: Sequence[Op], shapes: Mapping[int, Shape], read: set[int]) -> Run:
        return in_turn(members, [by_op[op] for op in members], replace(site, inner=shapes), read)

    later = {v for op in parts.after for v in op.inputs}
    before = part(parts.before, inner, later | parts.read_inside)
    inside = part(parts.inside, every | own, {parts.product})
    after = part(parts.after, inner, set())
    exchange = Exchange(group, parts.num_experts)

    def run(held: Held) -> dict[int, Tensor]:
        here = {**held, **before(held)}
        way = exchange.plan(here[parts.rows], here[parts.ends])
        there = {v: exchange.shared(held[v]) for v in parts.weights}
        rows = here[parts.rows] if parts.rows in later else here.pop(parts.rows)
        there |= {parts.rows: exchange.there(rows, way), parts.ends: way.ends}
        del rows
        here[parts.product] = exchange.back(inside(there)[parts.product], way)
        return {**here, **after(here)}

    return run


def _group(site: Site, names: Sequence[str]) -> ExpertGroup | None:
    """Who divides the experts: the ranks of ``ep``, or of an axis that dispatches."""
    if site.mesh.experts is not None:
        return site.mesh.experts
    axis = next((i for i, name in enumerate(names) if name == "dispatch"), None)
    if axis is None:
        return None
    return ExpertGroup(site.mesh.groups[axis], site.mesh.sizes[axis], site.mesh.coordinates[axis])


def _inner_shapes(parts: ExpertOps, site: Site) -> Mapping[int, Shape]:
    """Shapes on this rank of what is made and read inside of the node: rows are those of its own tokens."""
    tokens = next(v for v in parts.by_token if v in site.layouts)
    share = site.local(tokens)[0], site.shapes[tokens][0]
    return {
        v: (site.shapes[v][0] * share[0] // share[1], *site.shapes[v][1:])
        for v in parts.by_token
        if v not in site.layouts
    }


@dataclass(frozen=True)
class Way:
    """Where rows go, and in what order they are multiplied."""

    sent: list[int]
    got: list[int]
    """Rows to and from every rank."""
    leaving: tuple[Tensor, Tensor] | None
    """Order in which rows are sent, and its inverse; ``None``: as they are."""
    arriving: tuple[Tensor, Tensor]
    """Order by expert of what came, and its inverse."""
    ends: Tensor
    """Where each own expert's rows end."""


@dataclass(frozen=True)
class Exchange:
    """Rows to the ranks that hold their experts and back."""

    group: ExpertGroup
    num_experts: int

    @cached_property
    def name(self) -> str:
        assert self.group.group is not None
        return str(self.group.group.group_name)

    @cached_property
    def slots(self) -> tuple[tuple[int, ...], ...]:
        return self.group.slots(self.num_experts)

    @cached_property
    def taken(self) -> tuple[tuple[bool, ...], ...]:
        """Per rank and slot, whether this rank sends there: of replicas each source has one, in turn."""
        ranks = [[r for r, held in enumerate(self.slots) if e in held] for e in range(self.num_experts)]
        mine = [of_expert[self.group.rank % len(of_expert)] for of_expert in ranks]
        return tuple(tuple(mine[e] == r for e in held) for r, held in enumerate(self.slots))

    @cached_property
    def in_order(self) -> bool:
        """Whether rows that are ordered by expert are ordered by rank as well."""
        pairs = zip(sum(self.slots, ()), sum(self.taken, ()), strict=True)
        used = [expert for expert, taken in pairs if taken]
        return used == sorted(used)

    def plan(self, rows: Tensor, ends: Tensor) -> Way:
        """How this rank's rows (ordered by expert, ``ends`` says where each ends) travel."""
        size, own = self.group.size, len(self.slots[0])
        counts = ends.diff(prepend=ends.new_zeros(1)).to(torch.int64)
        slots = torch.tensor(self.slots, device=ends.device).flatten()
        leaving = counts[slots] * torch.tensor(self.taken, device=ends.device).flatten()
        coming = _all_to_all(leaving, [own] * size, [own] * size, self.name).view(size, own)
        if isinstance(counts, FakeTensor):
            sent = [len(rows) * (r + 1) // size - len(rows) * r // size for r in range(size)]
            got = [sent[self.group.rank]] * size
        else:
            both = torch.stack([leaving.view(size, own).sum(1), coming.sum(1)]).tolist()
            sent, got = both
        order = None
        if not self.in_order:
            starts = (ends.to(torch.int64) - counts)[slots]
            order = _blocks(starts, leaving, sum(sent))
        came = coming.flatten()
        starts = (came.cumsum(0) - came).view(size, own)
        return Way(
            sent=sent,
            got=got,
            leaving=order,
            arriving=_blocks(starts.T.flatten(), coming.T.flatten(), sum(got)),
            ends=coming.sum(0).cumsum(0).to(torch.int32),
        )

    def there(self, rows: Tensor, way: Way) -> Tensor:
        sent = rows if way.leaving is None else _Permuted.apply(rows, *way.leaving)
        return _Permuted.apply(Sent.apply(sent, way.sent, way.got, self.name), *way.arriving)

    def back(self, made: Tensor, way: Way) -> Tensor:
        order, inverse = way.arriving
        came = Sent.apply(_Permuted.apply(made, inverse, order), way.got, way.sent, self.name)
        return came if way.leaving is None else _Permuted.apply(came, *reversed(way.leaving))

    def shared(self, weight: Tensor) -> Tensor:
        """Weights of experts, whose gradients are summed over replicas."""
        several = [e for e, ranks in enumerate(self.group.holders) if len(ranks) > 1]
        if not several:
            return weight
        mine = self.slots[self.group.rank]
        pairs = [(mine.index(e), i) for i, e in enumerate(several) if e in mine]
        return _Replicated.apply(weight, pairs, len(several), self.name)


def _blocks(starts: Tensor, lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Rows of some blocks one behind the other, and the inverse of that order."""
    shift = starts - (lengths.cumsum(0) - lengths)
    places = torch.arange(total, device=starts.device)
    order = places + shift.repeat_interleave(lengths, output_size=total)
    return order, torch.empty_like(order).index_copy_(0, order, places)


def _all_to_all(rows: Tensor, sent: list[int], got: list[int], name: str) -> Tensor:
    return wait(FUNCTIONAL.all_to_all_single(rows.contiguous(), got, sent, name))


class Sent(torch.autograd.Function):
    """Rows to other ranks by their numbers, gradients back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], got: list[int], name: str) -> Tensor:
        ctx.way = sent, got, name
        return _all_to_all(rows, sent, got, name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        sent, got, name = ctx.way
        return _all_to_all(grad, got, sent, name), None, None, None


class _Permuted(torch.autograd.Function):
    """Rows in another order; backward by the inverse, where an index would be added up atomically."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, pairs: list[tuple[int, int]], count: int, name: str) -> Tensor:
        ctx.way = pairs, count, name
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        pairs, count, name = ctx.way
        total = grad.new_zeros(count, *grad.shape[1:])
        for slot, i in pairs:
            total[i] = grad[slot]
        total = sum_over(total, name)
        given = grad.clone()
        for slot, i in pairs:
            given[slot] = total[i]
        return given, None, None, None
