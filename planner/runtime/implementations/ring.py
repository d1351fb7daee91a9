"""Attention whose keys and values go round among the ranks that share a sequence.

In a ring of ``n`` they go to the next rank ``n - 1`` times, keys and values in one message, while the ones before are
worked on. Backward they go round again, their gradients behind them, which take one step more to be home. Under a
causal mask in zig-zag order every rank does half of a square in each step; in the sequence's own order the last rank
works in all of them. Liu et al. 2023, arXiv 2310.01889.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from planner.capture.program import Call
from planner.graph import Op, Ref
from planner.runtime.implementations.attention import Merged, Piece, Runs, operands, runs_of, scale_of, without_dropout
from planner.runtime.implementations.kernels import attend_backward
from planner.runtime.moves import FUNCTIONAL, wait
from planner.runtime.site import Held, Run, Site


def ring(ops: Sequence[Op], calls: Sequence[Call], site: Site, names: Sequence[str]) -> Run:
    """Own queries against own keys, then against those of the rank before, and so on."""
    (op,), (call,) = ops, calls
    query, key, value = operands(call)
    without_dropout(call, "ring")
    axis = next(i for i, name in enumerate(names) if name == "ring")
    ranks = [site.mesh.moved_to(axis, rank) for rank in range(site.mesh.sizes[axis])]
    stored, own_order = zip(*(runs_of(site, key, rank) for rank in ranks), strict=True)
    way = Ring(
        own=site.mesh.coordinates[axis],
        stored=stored,
        runs=own_order,
        name=site.mesh.group_name(axis),
        causal=bool(call.args[4]),
        scale=scale_of(call),
    )
    mask = call.args[3].value if isinstance(call.args[3], Ref) else None

    def run(held: Held) -> dict[int, Tensor]:
        bias = None if mask is None else held[mask]
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=held[query].dtype).masked_fill(~bias, float("-inf"))
        return {op.outputs[0]: _Ring.apply(held[query], held[key], held[value], bias, way)}

    return run


@dataclass(frozen=True)
class Ring:
    """Who works on what when."""

    own: int
    stored: tuple[Runs, ...]
    runs: tuple[Runs, ...]
    """Per rank the rows that it holds, ascending: as masks have them, and in the sequence's own order."""
    name: str
    causal: bool
    scale: float | None

    @cached_property
    def lengths(self) -> list[int]:
        """Rows of every rank."""
        return [sum(length for _, length in runs) for runs in self.runs]

    def owners(self) -> Iterator[int]:
        """Whose keys are here, step by step."""
        yield from ((self.own - step) % len(self.lengths) for step in range(len(self.lengths)))

    def pieces(self, owner: int) -> list[Piece]:
        """What to do with an owner's keys: every run of queries sees those that come before it."""
        mine, theirs = self.lengths[self.own], self.lengths[owner]
        if not self.causal or owner == self.own:
            return [Piece((0, mine), (0, theirs), causal=self.causal)]
        found: list[Piece] = []
        at = 0
        for start, length in self.runs[self.own]:
            seen = sum(count for first, count in self.runs[owner] if first < start)
            if found and found[-1].keys == (0, seen):
                found[-1] = Piece((found[-1].queries[0], at + length), (0, seen))
            elif seen:
                found.append(Piece((at, at + length), (0, seen)))
            at += length
        return found

    def columns(self, bias: Tensor | None, owner: int, piece: Piece) -> Tensor | None:
        """The mask's part for a piece."""
        if bias is None:
            return None
        rows = bias.narrow(-2, piece.queries[0], piece.queries[1] - piece.queries[0]) if bias.shape[-2] > 1 else bias
        if bias.shape[-1] == 1:
            return rows
        parts = [rows.narrow(-1, start, length) for start, length in self.stored[owner]]
        return torch.cat(parts, -1)[..., : piece.keys[1]]

    def learn(self, learned: Tensor, owner: int, piece: Piece, grad: Tensor) -> None:
        """Adds a piece's gradient of the mask."""
        rows = slice(*piece.queries) if learned.shape[-2] > 1 else slice(None)
        at = 0
        for start, length in self.stored[owner]:
            columns = slice(start, start + length) if learned.shape[-1] > 1 else slice(None)
            there = learned[..., rows, columns]
            there += grad[..., at : at + length].sum_to_size(there.shape)
            at += length

    def passed_on(self, buffer: Tensor, owner: int) -> Callable[[], Tensor]:
        """Sends to the next rank what concerns an owner's keys; gives what concerns those of the rank before it."""
        count, row = len(self.lengths), buffer.numel() // self.lengths[owner]
        sent, got = [0] * count, [0] * count
        sent[(self.own + 1) % count] = buffer.numel()
        got[(self.own - 1) % count] = row * self.lengths[(owner - 1) % count]
        started = FUNCTIONAL.all_to_all_single(buffer, got, sent, self.name)
        return lambda: wait(started)


def _unpacked(buffer: Tensor, k: Tensor, v: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values in one message, shaped as the own ones but for their number."""
    shapes = [(*t.shape[:2], length, t.shape[3]) for t in (k, v)]
    sizes = [shape[0] * shape[1] * shape[2] * shape[3] for shape in shapes]
    first, second = buffer.split(sizes)
    return first.view(shapes[0]), second.view(shapes[1])


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, way: Ring) -> Tensor:
        result, buffer = Merged(q, v), torch.cat([k.flatten(), v.flatten()])
        for step, owner in enumerate(way.owners()):
            last = step == len(way.lengths) - 1
            coming = None if last else way.passed_on(buffer, owner)
            keys, values = _unpacked(buffer, k, v, way.lengths[owner])
            for piece in way.pieces(owner):
                result.add(piece, keys, values, way.columns(bias, owner, piece), way.scale)
            if coming is not None:
                buffer = coming()
        out = result.out.to(q.dtype)
        ctx.save_for_backward(q, k, v, bias, out, result.lse)
        ctx.way = way
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, bias, out, lse = ctx.saved_tensors
        way: Ring = ctx.way
        given, buffer = torch.zeros_like(q), torch.cat([k.flatten(), v.flatten()])
        learned = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        arriving: Callable[[], Tensor] | None = None
        for step, owner in enumerate(way.owners()):
            last = step == len(way.lengths) - 1
            coming = None if last else way.passed_on(buffer, owner)
            keys, values = _unpacked(buffer, k, v, way.lengths[owner])
            shares = []
            for piece in way.pieces(owner):
                a, b = slice(*piece.queries), slice(*piece.keys)
                dq, *others, scores = attend_backward(
                    grad[:, :, a], q[:, :, a], keys[:, :, b], values[:, :, b], out[:, :, a], lse[:, :, a],
                    way.columns(bias, owner, piece), causal=piece.causal, scale=way.scale,
                )  # fmt: skip
                given[:, :, a] += dq
                shares.append((b, others))
                if learned is not None and scores is not None:
                    way.learn(learned, owner, piece, scores)
            total = torch.zeros_like(buffer) if arriving is None else arriving()
            for b, others in shares:
                for whole, share in zip(_unpacked(total, k, v, way.lengths[owner]), others, strict=True):
                    whole[:, :, b] += share
            arriving = way.passed_on(total, owner)
            if coming is not None:
                buffer = coming()
        assert arriving is not None
        dk, dv = _unpacked(arriving(), k, v, way.lengths[way.own])
        return given, dk, dv, learned, None
