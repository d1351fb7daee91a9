"""Attention whose queries are sharded along the sequence, against all keys; and pieces, of which rings are made too.

Fused kernels run on *pieces*: a run of own queries against a run of keys, all of them or up to the diagonal. Results of
pieces are merged by their log-sum-exp; backward every piece takes the merged result and log-sum-exp, and yields its
share of the gradients (Liu et al. 2023, arXiv 2310.01889; Dao et al. 2022, arXiv 2205.14135, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from planner.capture.program import Call
from planner.errors import UsageError
from planner.graph import Op
from planner.layouts.cuts import in_runs
from planner.runtime.implementations.kernels import attend, attend_backward, merge
from planner.runtime.operations import operation
from planner.runtime.parts import AxisGroups, in_own_order, positions, reordered
from planner.runtime.site import Held, Run, Site

DROPOUT, SCALE = 5, 6
"""Places of arguments."""


Runs = tuple[tuple[int, int], ...]
"""(start, length)."""


class Piece(NamedTuple):
    """Own queries [start, end) against keys [start, end)."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    causal: bool = False


def context_all_gather(ops: Sequence[Op], calls: Sequence[Call], site: Site, names: Sequence[str]) -> Run:
    """Own queries against all keys; a causal mask begins at each query's place in the sequence."""
    (op,), (call,) = ops, calls
    if not call.args[4]:
        return operation(op, call, site)
    query, key, value = operands(call)
    without_dropout(call, "context_all_gather")
    length, zigzag = site.shapes[query][2], site.mesh.zigzag
    pieces: list[Piece] = []
    at = 0
    for start, count in runs_of(site, query, site.mesh)[1]:
        own = at, at + count
        pieces += [Piece(own, (0, start))] if start else []
        pieces.append(Piece(own, (start, start + count), causal=True))
        at += count
    sequences = (0, 0, int(length % (2 * zigzag) == 0), 0)

    def run(held: Held) -> dict[int, Tensor]:
        k, v = (reordered(held[t], sequences, zigzag, back=True) for t in (key, value))
        return {op.outputs[0]: _Pieces.apply(held[query], k, v, pieces, scale_of(call))}

    return run


def operands(call: Call) -> list[int]:
    """Values of queries, keys and values."""
    return [arg.value for arg in call.args[:3]]


def scale_of(call: Call) -> float | None:
    """Of the scores, where the model gives one."""
    found = call.args[SCALE] if len(call.args) > SCALE else None
    return None if found is None else float(found)


def without_dropout(call: Call, method: str) -> None:
    """Raises a `UsageError` where the model drops scores."""
    if len(call.args) > DROPOUT and call.args[DROPOUT]:
        raise UsageError(
            f"attention drops {call.args[DROPOUT]:g} of its scores, which {method} over a sequence in parts cannot do: "
            "set the model's attention dropout to 0, or plan without cp."
        )


def runs_of(site: Site, v: int, mesh: AxisGroups) -> tuple[Runs, Runs]:
    """Rows of queries or keys that a rank holds, as they are stored and in the sequence's own order."""
    length = site.shapes[v][2]
    held = positions(site.layouts[v], site.shapes[v], 2, mesh)
    return in_runs(held), in_runs(in_own_order(held, length, mesh.zigzag))


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece], scale: float | None) -> Tensor:
        result = Merged(q, v)
        for piece in pieces:
            result.add(piece, k, v, None, scale)
        out = result.out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, result.lse)
        ctx.given = pieces, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        pieces, scale = ctx.given
        given, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for piece in pieces:
            a, b = slice(*piece.queries), slice(*piece.keys)
            dq, *others, _ = attend_backward(
                grad[:, :, a], q[:, :, a], k[:, :, b], v[:, :, b], out[:, :, a], lse[:, :, a], None,
                causal=piece.causal, scale=scale,
            )  # fmt: skip
            given[:, :, a] += dq
            for total, share in zip((dk, dv), others, strict=True):
                total[:, :, b] += share
        return given, dk, dv, None, None


@dataclass
class Merged:
    """Of own queries, what the pieces so far make."""

    q: Tensor
    v: Tensor

    def __post_init__(self) -> None:
        exact = torch.promote_types(self.q.dtype, torch.float32)
        rows = self.q.shape[:3]
        self.out = self.q.new_zeros(*rows, self.v.shape[3], dtype=exact)
        self.lse = self.q.new_full(rows, float("-inf"), dtype=exact)

    def add(self, piece: Piece, k: Tensor, v: Tensor, bias: Tensor | None, scale: float | None) -> None:
        a, b = slice(*piece.queries), slice(*piece.keys)
        out, lse = attend(self.q[:, :, a], k[:, :, b], v[:, :, b], bias, causal=piece.causal, scale=scale)
        merge(self.out[:, :, a], self.lse[:, :, a], out, lse)
