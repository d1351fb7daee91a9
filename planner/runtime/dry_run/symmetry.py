"""Which ranks of a job run the same step, so that one of them speaks for all.

Every rank of a pipeline position issues the same operations; ranks differ in what they hold where a dim of a parameter
does not divide evenly: the last ones hold less, or nothing. Then the fullest and the emptiest are run. Under ring
attention ranks of ``cp`` do the same blocks in another order, so the first and the last are run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from planner.layouts import placements
from planner.layouts.data_parallel import shard_dim
from planner.plan import Candidate, ParamLayout
from planner.runtime.parts import chunked

Shape = tuple[int, ...]
PLACE = ("pp", "dp_replicate", "dp_shard", "cp", "tp")


@dataclass(frozen=True)
class Representative:
    """A rank that is run, and those that it is run for."""

    rank: int
    represents: tuple[int, ...]
    why: str


def place(rank: int, candidate: Candidate) -> dict[str, int]:
    """Coordinates of a rank; the innermost axis varies fastest."""
    found = {}
    for axis in reversed(PLACE):
        rank, found[axis] = divmod(rank, getattr(candidate, axis))
    return found


def representatives(candidate: Candidate, params: Iterable[tuple[Shape, ParamLayout]]) -> tuple[Representative, ...]:
    """One rank per pipeline position, more where what ranks hold is uneven.

    Args:
        params: every parameter's shape and layout.
    """
    params = [(shape, layout) for shape, layout in params if shape]
    inner = candidate.num_devices // candidate.pp
    kinds: dict[tuple[object, ...], list[int]] = {}
    signatures = _Signatures(candidate, params)
    for offset in range(inner):
        kinds.setdefault(signatures.of(place(offset, candidate)), []).append(offset)
    first, *others = kinds.values()
    run = [first, *others[-1:]]
    for between in others[:-1]:
        run[0] = sorted([*run[0], *between])
    found = []
    for position in range(candidate.pp):
        base = position * inner
        for i, offsets in enumerate(run):
            why = _why(candidate, len(kinds), last=i > 0)
            found.append(Representative(base + offsets[0], tuple(base + o for o in offsets), why))
    return tuple(found)


class _Signatures:
    """What tells ranks of one pipeline position apart."""

    def __init__(self, candidate: Candidate, params: Sequence[tuple[Shape, ParamLayout]]) -> None:
        c = self._candidate = candidate
        self._tp: set[tuple[int, ...]] = set()
        self._fsdp: set[tuple[int, ...]] = set()
        self._experts: set[tuple[int, ...]] = set()
        for shape, layout in params:
            if "ep" in layout.placements:
                self._uneven((shape[0] // c.ep, *shape[1:]), c.expert_shard, self._experts)
                continue
            for local in self._over_tp(shape, layout.placements, layout.num_chunks):
                self._uneven(local, c.state_shard, self._fsdp)

    def of(self, at: Mapping[str, int]) -> tuple[object, ...]:
        c = self._candidate
        shard = at["dp_shard"] * c.cp + at["cp"]
        expert_shard = (shard * c.tp + at["tp"]) // c.ep
        return (
            *(parts[at["tp"]] for parts in sorted(self._tp)),
            *(parts[shard] for parts in sorted(self._fsdp)),
            *(parts[expert_shard] for parts in sorted(self._experts)),
            "ring" in c.context and at["cp"],
        )

    @staticmethod
    def _uneven(local: Shape, shards: int, found: set[tuple[int, ...]]) -> None:
        """Note what the devices that share a parameter hold of the dim that is cut, unless it is the same."""
        size = local[shard_dim(local, shards)]
        if size % shards:
            found.add(chunked(size, shards))

    def _over_tp(self, shape: Shape, at: Mapping[str, str], chunks: int) -> set[Shape]:
        """Shapes that ranks of ``tp`` hold."""
        placed = placements.parse(at.get("tp", "R"))
        if placed.kind != "S":
            return {shape}
        each = shape[placed.dim] // chunks
        parts = chunked(each, self._candidate.tp)
        if each % self._candidate.tp:
            self._tp.add(parts)
        return {(*shape[: placed.dim], part * chunks, *shape[placed.dim + 1 :]) for part in parts}


def _why(candidate: Candidate, num_kinds: int, *, last: bool) -> str:
    same = "same pipeline position" if candidate.pp > 1 else "all ranks run the same"
    if num_kinds == 1:
        return f"{same}, equal shares"
    if last:
        return f"{same}, the emptiest of {num_kinds} kinds of share"
    return f"{same}, the fullest of {num_kinds} kinds of share, and those between"
