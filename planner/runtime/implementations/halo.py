"""Convolution and pooling over sharded positions: borders from the ranks that hold them, by one all-to-all.

Every rank makes the results of its own positions. It reads what their windows reach, of which others may hold some, and
pads where they reach beyond the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planner.capture.program import Call
from planner.errors import UsageError
from planner.graph import Op
from planner.layouts.borders import Rows, border, window
from planner.runtime.implementations.experts import Sent
from planner.runtime.operations import operation
from planner.runtime.parts import positions
from planner.runtime.site import Held, Run, Site


def halo(ops: Sequence[Op], calls: Sequence[Call], site: Site, names: Sequence[str]) -> Run:
    """Along every dim that an axis with borders shards."""
    (op,), (call,) = ops, calls
    x, out = op.inputs[0], op.outputs[0]
    axes = [i for i, name in enumerate(names) if name == "halo"]
    borders = [Border(op, site, axis) for axis in axes]
    for border_of in borders:
        if sum(p.dim == border_of.dim and p.kind == "S" for p in site.layouts[x]) > 1:
            raise UsageError(
                f"{op.name} over dim {border_of.dim} in parts of several axes: rows beyond a border may be with ranks "
                "that share no group. Let one axis shard it."
            )
    alone = operation(op, _unpadded(op, call, [border.dim for border in borders]), site)
    fill = float("-inf") if op.name.startswith("max_pool") else 0.0

    def along(tensor: Tensor, held: Held, rest: Sequence[Border]) -> Tensor:
        if not rest:
            return alone({**held, x: tensor})[out]
        first, *others = rest
        made = [along(F.pad(run, pads, value=fill), held, others) for run, pads in first.runs(tensor)]
        return made[0] if len(made) == 1 else torch.cat(made, first.dim)

    def run(held: Held) -> dict[int, Tensor]:
        tensor = held[x]
        for along_dim in borders:
            tensor = along_dim.fetched(tensor)
        made = along(tensor, held, borders)
        if op.name == "avg_pool2d" and False in call.args[5:6]:  # padding does not count
            made = made / along(torch.ones_like(tensor), held, borders)
        return {out: made}

    return run


def _unpadded(op: Op, call: Call, dims: Sequence[int]) -> Call:
    """The call without its padding along some dims."""
    place, count = (4 if op.name == "convolution" else 3), len(call.args[1]) if op.name != "convolution" else None
    if len(call.args) <= place:
        return call
    given = list(call.args[place])
    every = given * count if count and len(given) == 1 else given
    without = [0 if i + 2 in dims else p for i, p in enumerate(every)]
    return replace(call, args=(*call.args[:place], without, *call.args[place + 1 :]))


@dataclass(frozen=True)
class Border:
    """What this rank reads along a dim, and from whom."""

    op: Op
    site: Site
    axis: int

    @cached_property
    def dim(self) -> int:
        return self.site.layouts[self.op.inputs[0]][self.axis].dim

    @cached_property
    def rows(self) -> Rows:
        mesh, x = self.site.mesh, self.op.inputs[0]
        ranks = [mesh.moved_to(self.axis, rank) for rank in range(mesh.sizes[self.axis])]
        held, made = (
            [positions(self.site.layouts[v], self.site.shapes[v], self.dim, rank) for rank in ranks]
            for v in (x, self.op.outputs[0])
        )
        reaching, length = window(self.op, self.dim, self.site.shapes), self.site.shapes[x][self.dim]
        return border(reaching, held, made, length, mesh.coordinates[self.axis])

    def fetched(self, x: Tensor) -> Tensor:
        """All rows that the own results read."""
        rows, own = self.rows, x.movedim(self.dim, 0)
        leaving = own.index_select(0, torch.tensor(rows.taken, device=x.device, dtype=torch.int64))
        came: Any = Sent.apply(leaving, rows.sent, rows.got, self.site.mesh.group_name(self.axis))
        every = torch.cat([own, came]).index_select(0, torch.tensor(rows.places, device=x.device))
        return every.movedim(0, self.dim)

    def runs(self, x: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
        """The rows of each run of results, with the padding that they need."""
        read = self.rows.reads
        before = (0, 0) * (x.dim() - 1 - self.dim)
        parts = x.split([b - a for a, b, _ in read], self.dim)
        return [(part, (*before, *pads)) for part, (_, _, pads) in zip(parts, read, strict=True)]
